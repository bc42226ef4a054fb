/** The chooser of the population maps: a contrast, and what stands beside its map. */
"use strict";
(() => {
  const { config, viewerOf } = Mask2CT;
  const contrast = document.getElementById("contrast"), beside = document.getElementById("beside");
  if (!contrast) return;
  const viewer = viewerOf(contrast.closest("[data-viewer]"));

  function put(role, title, key) {
    const part = document.querySelector(`[data-part=${role}]`);
    if (!part) return;
    part.hidden = !key;
    if (!key) return;
    part.querySelector("h3").textContent = title;
    for (const panel of viewer.panels.filter((each) => each.role === role)) {
      viewer.show(panel, [key], { kind: viewer.volumes[key].kind });
    }
  }

  function update() {
    const chosen = config.choices[contrast.value];
    for (const option of beside.options) option.disabled = !(option.value in chosen.beside);
    if (beside.selectedOptions[0]?.disabled) beside.value = Object.keys(chosen.beside)[0] || "";
    put("effect", chosen.label, chosen.effect);
    put("beside", beside.selectedOptions[0]?.text || "", chosen.beside[beside.value]);
  }

  contrast.addEventListener("change", update);
  beside.addEventListener("change", update);
  update();
})();
