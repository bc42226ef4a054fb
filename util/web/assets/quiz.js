/**
 * A click on a picture of the quiz marks a place, instead of enlarging it, and tells it to the page around this one.
 */
"use strict";
(() => {
  const root = document.querySelector("[data-viewer]"), said = document.getElementById("place");
  root.addEventListener("click", (event) => {
    const viewer = Mask2CT.viewerOf(root), panel = viewer.panels.find(({ stage }) => stage.contains(event.target));
    const voxel = panel && viewer.pick(panel, event);
    if (!voxel) return;
    event.stopPropagation();
    event.preventDefault();
    for (const each of document.querySelectorAll(".pin")) each.remove();
    const pin = Object.assign(document.createElement("i"), { className: "pin" }), box = panel.stage.getBoundingClientRect();
    pin.style.left = `${((event.clientX - box.left) / box.width) * 100}%`;
    pin.style.top = `${((event.clientY - box.top) / box.height) * 100}%`;
    panel.stage.append(pin);
    said.textContent = `Marked: voxel ${voxel.join(", ")}. Another click marks another place.`;
    window.parent.postMessage({ voxel }, window.location.origin);
  }, { capture: true });
})();
