// The chooser of the population maps: a change, and what stands beside it.
"use strict";
(() => {
  const { config } = window.Slices;
  const { panels, show, $ } = window.Atlas;
  const contrast = $("contrast"), other = $("beside");
  if (!contrast) return;
  const part = (role) => document.querySelector(`[data-part=${role}]`);

  function put(role, title, key) {
    const block = part(role);
    if (!block) return;
    block.hidden = !key;
    if (!key) return;
    block.querySelector("h3").textContent = title;
    const kind = config.volumes[key].kind;
    for (const panel of panels.filter((p) => p.figure.dataset.role === role)) {
      panel.figure.className = `panel ${kind}`;
      const bar = panel.figure.querySelector(".bar");
      if (bar) { bar.className = `bar ${kind}`; bar.hidden = kind === "ct"; }
      show(panel, [key]);
    }
  }

  function update() {
    const chosen = config.choices[contrast.value];
    for (const option of other.options) option.disabled = !(option.value in chosen.beside);
    if (other.selectedOptions[0]?.disabled) other.value = Object.keys(chosen.beside)[0] || "";
    put("effect", chosen.label, chosen.effect);
    put("beside", other.selectedOptions[0]?.text || "", chosen.beside[other.value]);
    window.Atlas.bars();
  }

  contrast.addEventListener("change", update);
  other.addEventListener("change", update);
  update();
})();
