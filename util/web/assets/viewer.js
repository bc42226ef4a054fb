// Linked slices of a results page. A case's voxels come from web/<key>.js when its row nears the screen, and go again.
"use strict";
(() => {
  const { config, minus, decode } = Slices;
  const state = { plane: "axial", window: "lung", limit: config.limit };
  const cases = new Map();

  const labels = new Map(Object.entries(config.labels).map(([k, [colour]]) => [Number(k), Slices.abgr(colour)]));
  const labelName = (k) => (k === 0 ? "background" : (config.labels[k] || [0, `label ${k}`])[1]);

  // --- voxels ---------------------------------------------------------------------------------------------------------
  function load(c) {
    if (!c.wanted || c.script) return;
    c.script = document.createElement("script");
    c.script.src = `web/${encodeURIComponent(c.key)}.js`;
    c.script.onerror = () => { fail(c, `The voxels of this case are missing: web/${c.key}.js`); };
    document.head.append(c.script);
  }

  window.mask2ctCase = async (key, panels) => {
    const c = cases.get(key), script = c.script;
    try {
      const volumes = await Promise.all(panels.map((p) => decode(p.voxels)));
      if (!c.wanted || c.script !== script) return;
      const outlines = await Promise.all(panels.map((p) => p.outline && decode(p.outline)));
      c.data = panels.map((p, i) => ({ kind: p.kind, step: p.step, voxels: volumes[i], outline: outlines[i] }));
      c.element.dataset.state = "ready";
      draw(c);
    } catch (error) {
      fail(c, `The voxels of this case cannot be read (${error}).`);
    }
  };

  function fail(c, message) {
    c.element.dataset.state = "failed";
    c.element.querySelector(".note").textContent = message;
  }

  function unload(c) {
    if (c.script) c.script.remove();
    c.script = c.data = null;
    delete c.element.dataset.state;
    for (const panel of c.panels) {
      panel.canvas.width = panel.canvas.height = 0;
      panel.overlay?.remove();
      panel.overlay = null;
    }
  }

  // --- drawing --------------------------------------------------------------------------------------------------------
  const geometry = (c) => Slices.geometry(c.grid, state.plane);

  function colour(kind, step) {
    if (kind === "mask") return (v) => (v === 0 ? Slices.background : labels.get(v) ?? 0xffffffff);
    return kind === "score" ? Slices.colour("difference", step, { limit: config.score_limit }) : Slices.colour(kind, step, state);
  }

  function draw(c) {
    if (!c.data) return;
    const g = geometry(c);
    c.data.forEach(({ kind, step, voxels, outline }, i) => {
      if (outline) drawOutline(c, c.panels[i], outline);
      Slices.paint(c.panels[i].canvas, g, c.at, (v) => voxels[v], colour(kind, step));
    });
    values(c);
  }

  // Numbered regions as lines between voxels, on a canvas of its own so that the picture below stays as it is.
  function drawOutline(c, panel, regions) {
    const g = geometry(c), { w, h } = g, fine = Math.max(2, Math.ceil(512 / Math.max(w, h)));
    if (!panel.overlay) {
      panel.overlay = document.createElement("canvas");
      panel.overlay.className = "outline";
      panel.canvas.after(panel.overlay);
    }
    Object.assign(panel.overlay, { width: w * fine, height: h * fine }); // this clears it, too
    const at = (column, row) => (
      column < 0 || row < 0 || column >= w || row >= h ? 0 : regions[Slices.index(g, c.at, column, row)]);
    const pen = panel.overlay.getContext("2d"), named = new Set();
    const lines = new Path2D(), numbers = [];
    for (let row = 0; row <= h; row++) {
      for (let column = 0; column <= w; column++) {
        const own = at(column, row), x = column * fine, y = row * fine;
        if (own !== at(column - 1, row)) { lines.moveTo(x, y); lines.lineTo(x, y + fine); }
        if (own !== at(column, row - 1)) { lines.moveTo(x, y); lines.lineTo(x + fine, y); }
        if (own && !named.has(own)) { named.add(own); numbers.push([String(own), x + fine + 4, Math.max(28, y - 6)]); }
      }
    }
    const thin = Math.max(2, fine / 4);
    Object.assign(pen, { font: "bold 30px sans-serif", lineJoin: "round", fillStyle: "#ffe14a" });
    for (const [colour, width] of [["#0b0d11", 3 * thin], ["#ffe14a", thin]]) { // dark below, so that it shows on white too
      Object.assign(pen, { strokeStyle: colour, lineWidth: width });
      pen.stroke(lines);
      if (width > thin) for (const number of numbers) pen.strokeText(...number);
    }
    for (const number of numbers) pen.fillText(...number);
  }

  // Sizes, edge letters and the slider of a row: known before its voxels are.
  function layout(c) {
    const { across, down, through, edges, w, h } = geometry(c);
    const ratio = `${w * c.grid.spacing[across]} / ${h * c.grid.spacing[down]}`;
    for (const panel of c.panels) {
      panel.stage.style.aspectRatio = ratio;
      panel.edges.forEach((edge, i) => { edge.textContent = edges[i]; });
    }
    c.slider.max = c.grid.shape[through] - 1;
    c.slider.value = c.at[through];
    c.cursor = null;
    position(c);
    values(c);
  }

  function position(c) {
    const { through } = geometry(c), k = c.at[through];
    const text = `${k + 1} of ${c.grid.shape[through]} · ${((k + 0.5) * c.grid.spacing[through]).toFixed(0)} mm`;
    c.position.textContent = text;
    c.slider.setAttribute("aria-valuetext", text);
  }

  function move(c, slice) {
    const { through } = geometry(c);
    c.at[through] = Math.max(0, Math.min(c.grid.shape[through] - 1, slice));
    c.slider.value = c.at[through];
    position(c);
    draw(c);
  }

  // --- values under the cursor ----------------------------------------------------------------------------------------
  function values(c) {
    const { across, down, through, w, h, stride } = geometry(c);
    c.panels.forEach((panel, i) => {
      const shown = c.cursor && c.data;
      panel.stage.classList.toggle("pointed", Boolean(shown));
      if (!shown) { panel.value.textContent = ""; return; }
      const [column, row] = c.cursor;
      const at = [];
      at[across] = w - 1 - column; at[down] = h - 1 - row; at[through] = c.at[through];
      const { kind, step, voxels } = c.data[i];
      const v = voxels[at[0] * stride[0] + at[1] * stride[1] + at[2] * stride[2]];
      panel.cross.style.left = `${((column + 0.5) / w) * 100}%`;
      panel.cross.style.top = `${((row + 0.5) / h) * 100}%`;
      const hu = kind === "difference" ? `${v > 0 ? "+" : ""}${(v * step).toFixed(1)}` : String(v * step);
      const spreads = `${v > 0 ? "+" : ""}${(v * step).toFixed(1)} spreads`;
      panel.value.textContent = kind === "mask" ? labelName(v) : kind === "score" ? minus(spreads) : `${minus(hu)} HU`;
      panel.value.title = `voxel ${at.map((a, axis) => a * c.grid.block[axis]).join(", ")} (right, front, up)`;
    });
  }

  function point(c, event) {
    const { w, h } = geometry(c), box = event.currentTarget.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * w);
    const row = Math.floor(((event.clientY - box.top) / box.height) * h);
    c.cursor = column >= 0 && row >= 0 && column < w && row < h ? [column, row] : null;
    values(c);
  }

  // --- the page -------------------------------------------------------------------------------------------------------
  function adopt(element) {
    const grid = JSON.parse(element.dataset.grid);
    const c = { element, grid, key: element.id, at: [...grid.start], data: null, script: null, wanted: false, cursor: null };
    c.slider = element.querySelector(".slices input");
    c.position = element.querySelector(".slices output");
    c.panels = [...element.querySelectorAll(".panel")].map((figure) => ({
      canvas: figure.querySelector("canvas"), stage: figure.querySelector(".stage"),
      edges: [...figure.querySelectorAll(".edge")], cross: figure.querySelector(".cross"),
      value: figure.querySelector(".value"),
    }));
    c.slider.addEventListener("input", () => move(c, Number(c.slider.value)));
    for (const { canvas } of c.panels) {
      canvas.addEventListener("pointermove", (event) => point(c, event));
      canvas.addEventListener("pointerleave", () => { c.cursor = null; values(c); });
      canvas.addEventListener("wheel", (event) => { // the bare wheel scrolls the page
        if (!event.shiftKey) return;
        event.preventDefault();
        move(c, c.at[geometry(c).through] + ((event.deltaY || event.deltaX) < 0 ? 1 : -1));
      }, { passive: false });
    }
    cases.set(c.key, c);
    layout(c);
  }

  function chosen() {
    const [low, high] = config.windows[state.window];
    document.getElementById("window-range").textContent = minus(`${low}`) + " to " + minus(`${high}`) + " HU";
    for (const bar of document.querySelectorAll(".bar:not(.score)")) {
      bar.querySelector(".low").textContent = `−${state.limit}`;
      bar.querySelector(".high").textContent = `+${state.limit} HU`;
    }
  }

  function redraw() {
    chosen();
    for (const c of cases.values()) draw(c);
  }

  for (const element of document.querySelectorAll(".case")) adopt(element);
  for (const button of document.querySelectorAll("button[data-set]")) {
    button.addEventListener("click", () => {
      const { set, value } = button.dataset;
      for (const other of document.querySelectorAll(`button[data-set=${set}]`)) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      if (set === "size") { document.body.style.setProperty("--panel", `${config.sizes[value]}px`); return; }
      state[set] = value;
      if (set === "plane") for (const c of cases.values()) layout(c);
      redraw();
    });
  }
  document.getElementById("limit")?.addEventListener("change", (event) => {
    state.limit = Number(event.target.value);
    redraw();
  });
  const smooth = document.getElementById("smooth");
  const sharpen = () => document.body.classList.toggle("sharp", !smooth.checked);
  smooth.addEventListener("change", sharpen);
  sharpen();
  document.getElementById("filter")?.addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const c of cases.values()) {
      c.element.hidden = !c.element.querySelector(".about").textContent.toLowerCase().includes(wanted);
    }
  });
  document.body.style.setProperty("--diverging", `linear-gradient(90deg, ${config.diverging.join(", ")})`);
  chosen();

  if (typeof DecompressionStream === "undefined") {
    for (const c of cases.values()) fail(c, "This browser is too old for these pictures (it lacks DecompressionStream).");
    return;
  }
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const c = cases.get(target.id);
      c.wanted = isIntersecting;
      if (isIntersecting) setTimeout(() => load(c), 120); // rows that only fly past are not read
      else unload(c);
    }
  }, { rootMargin: "500px 0px" });
  for (const c of cases.values()) observer.observe(c.element);
})();
