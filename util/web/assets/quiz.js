/**
 * A click on a picture of the quiz marks a place, instead of enlarging it, and tells it to the page around this one.
 */
"use strict";
(() => {
  const viewer = Mask2CT.viewerOf(document.querySelector("[data-viewer]")), said = document.getElementById("place");
  viewer.onPick = (voxel) => {
    if (!voxel) return;
    viewer.pinned = voxel;
    viewer.panels.forEach((panel) => viewer.read(panel));
    said.textContent = `Marked: voxel ${voxel.join(", ")}. Another click marks another place.`;
    window.parent.postMessage({ voxel }, window.location.origin);
  };
})();
