// Panels of the atlas: slices of one grid that move together. Voxels come from a script a volume, when a panel needs them.
"use strict";
window.Atlas = (() => {
  const { config, NOTHING, minus, signed, decode, geometry, index, colour, paint, outline } = window.Slices;
  const state = { plane: config.plane, window: "lung", limit: config.limit, at: [...config.grid.start], lines: true, cursor: null };
  const KEPT = 30; // volumes in memory
  const volumes = new Map(), waiting = new Map(), panels = [];
  const $ = (id) => document.getElementById(id);

  // --- voxels ---------------------------------------------------------------------------------------------------------
  window.mask2ctVolume = async (key, base64) => {
    try {
      waiting.get(key).resolve(await decode(base64));
    } catch (error) {
      waiting.get(key).reject(error);
    }
  };

  function load(key) {
    if (waiting.has(key)) return waiting.get(key).promise;
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    waiting.set(key, entry);
    const script = document.createElement("script");
    script.src = `${config.voxels}${encodeURIComponent(key)}.js`;
    script.onload = () => script.remove();
    script.onerror = () => entry.reject(new Error(`${config.voxels}${key}.js is missing`));
    document.head.append(script);
    return entry.promise.then((voxels) => { volumes.set(key, voxels); return voxels; });
  }

  const keysOf = (panel) => [...new Set([...panel.layers.flat(), ...(config.mask ? [config.mask] : []),
    ...(panel.zones.length ? ["zones"] : [])])];

  function forget() {
    const used = new Set(panels.filter((p) => p.visible).flatMap(keysOf));
    for (const key of volumes.keys()) {
      if (volumes.size <= KEPT) return;
      if (!used.has(key)) { volumes.delete(key); waiting.delete(key); }
    }
  }

  // A layer as something to paint: a volume, or the second of a pair minus the first.
  function layer(source) {
    if (!Array.isArray(source)) {
      const voxels = volumes.get(source), { kind, step } = config.volumes[source];
      return { kind, step, value: (i) => voxels[i] };
    }
    const [from, to] = source.map((key) => volumes.get(key));
    return { kind: "difference", step: config.volumes[source[0]].step, value: (i) => to[i] - from[i] };
  }

  // --- drawing --------------------------------------------------------------------------------------------------------
  const planeOf = (panel) => panel.figure.dataset.plane || state.plane;

  function draw(panel) {
    if (!panel.visible || !panel.layers.length) return;
    const keys = keysOf(panel), wanted = panel.layers;
    if (!keys.every((key) => volumes.has(key))) {
      Promise.all(keys.map(load)).then(() => { if (panel.layers === wanted) draw(panel); forget(); }, (error) => {
        panel.figure.dataset.state = "failed";
        panel.value.textContent = error.message;
      });
      return;
    }
    const g = geometry(config.grid, planeOf(panel));
    panel.shown = panel.layers.map(layer);
    panel.shown.forEach(({ kind, step, value }, i) => paint(panel.canvases[i], g, state.at, value, colour(kind, step, state)));
    drawLines(panel, g);
    panel.figure.dataset.state = "ready";
    read(panel);
  }

  function drawLines(panel, g) {
    const mask = volumes.get(config.mask), zones = volumes.get("zones");
    const light = panel.shown[0].kind === "difference", made = [];
    if (mask && state.lines) made.push([(i) => mask[i], 2, (k) => (light ? "#8a93a0" : config.labels[k]?.[0] || "#ffffff")]);
    if (zones && panel.zones.length) {
      const rank = (i) => panel.zones.indexOf(zones[i]) + 1;
      made.push([rank, 5, (k) => config.ranks[k - 1]]);
    }
    outline(panel.lines, g, state.at, made);
  }

  // Proportions and edge letters, known before the voxels are.
  function layout(panel) {
    const { across, down, edges, w, h } = geometry(config.grid, planeOf(panel));
    panel.stage.style.aspectRatio = `${w * config.grid.spacing[across]} / ${h * config.grid.spacing[down]}`;
    panel.edges.forEach((edge, i) => { edge.textContent = edges[i]; });
  }

  function redraw() {
    for (const panel of panels) draw(panel);
  }

  // --- values under the pointer -----------------------------------------------------------------------------------------
  function said({ kind, step, value }, i) {
    const v = value(i);
    if (v === NOTHING) return "no lung";
    return kind === "difference" ? `${signed(v * step, step < 1 ? 1 : 0)} HU` : `${minus((v * step).toFixed(step < 1 ? 1 : 0))} HU`;
  }

  function read(panel) {
    const cursor = state.cursor, g = geometry(config.grid, planeOf(panel));
    const there = cursor && panel.shown && cursor[g.through] === state.at[g.through];
    panel.stage.classList.toggle("pointed", Boolean(there));
    panel.value.textContent = "";
    if (panel.mark) panel.mark.hidden = true;
    if (!there) return;
    const column = g.w - 1 - cursor[g.across], row = g.h - 1 - cursor[g.down], i = index(g, state.at, column, row);
    panel.cross.style.left = `${((column + 0.5) / g.w) * 100}%`;
    panel.cross.style.top = `${((row + 0.5) / g.h) * 100}%`;
    const texts = panel.shown.map((shown) => said(shown, i));
    panel.value.textContent = texts.length > 1 ? `before ${texts[0]}, after ${texts[1]}` : texts[0];
    const { kind, step, value } = panel.shown[0];
    if (panel.mark && value(i) !== NOTHING) {
      const share = kind === "difference" ? (value(i) * step) / state.limit / 2 + 0.5 : (value(i) * step) / state.limit;
      panel.mark.hidden = false;
      panel.mark.style.left = `${Math.max(0, Math.min(1, share)) * 100}%`;
    }
  }

  function place() {
    const output = $("place");
    if (!output) return;
    const c = state.cursor, [x, y] = config.grid.shape, mask = volumes.get(config.mask), zones = volumes.get("zones");
    if (!c || !mask) { output.textContent = ""; return; }
    const i = c[0] + x * (c[1] + y * c[2]);
    output.textContent = `${config.labels[mask[i]]?.[1] || "outside the mask"}${zones && zones[i] ? `: ${config.zones[zones[i] - 1]}` : ""}`;
  }

  function pointed(panel, event) {
    const g = geometry(config.grid, planeOf(panel)), box = panel.stage.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * g.w);
    const row = Math.floor(((event.clientY - box.top) / box.height) * g.h);
    if (column < 0 || row < 0 || column >= g.w || row >= g.h) return null;
    const at = [...state.at];
    at[g.across] = g.w - 1 - column;
    at[g.down] = g.h - 1 - row;
    return at;
  }

  function hover(at) {
    state.cursor = at;
    panels.forEach(read);
    place();
  }

  // --- slices ---------------------------------------------------------------------------------------------------------
  const through = () => config.planes[state.plane][2];

  function go(at) {
    state.at = at.map((k, axis) => Math.max(0, Math.min(config.grid.shape[axis] - 1, k)));
    state.cursor = null;
    position();
    redraw();
  }

  function move(slice) {
    const at = [...state.at];
    at[through()] = slice;
    go(at);
  }

  function position() {
    const slider = $("slice"), axis = through(), k = state.at[axis];
    if (slider) {
      slider.max = config.grid.shape[axis] - 1;
      slider.value = k;
      const text = `${k + 1} of ${config.grid.shape[axis]} · ${((k + 0.5) * config.grid.spacing[axis]).toFixed(0)} mm`;
      $("position").textContent = text;
      slider.setAttribute("aria-valuetext", text);
    }
  }

  let timer = 0;
  function play(on) {
    clearInterval(timer);
    timer = 0;
    const button = $("play");
    button.setAttribute("aria-pressed", String(on));
    button.textContent = on ? "❚❚ Stop" : "▶ Play through the slices";
    if (!on) return;
    let step = 1;
    timer = setInterval(() => { // to and fro through the lungs
      const [low, high] = config.grid.range[through()], k = state.at[through()];
      if (k + step > high) step = -1;
      if (k + step < low) step = 1;
      move(Math.max(low, Math.min(high, k + step)));
    }, 1000 / config.speed);
  }

  // --- the page -------------------------------------------------------------------------------------------------------
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const panel = panels.find((p) => p.figure === target);
      panel.visible = isIntersecting;
      if (isIntersecting) draw(panel);
    }
  }, { rootMargin: "300px 0px" });

  function adopt(figure) {
    const find = (name) => figure.querySelector(name);
    const panel = {
      figure, stage: find(".stage"), canvases: [...figure.querySelectorAll("canvas.voxels")], lines: find("canvas.lines"),
      edges: [...figure.querySelectorAll(".edge")], cross: find(".cross"), value: find(".value"), mark: find(".bar b"),
      layers: JSON.parse(figure.dataset.source || "[]"), zones: JSON.parse(figure.dataset.zones || "[]"), visible: false,
    };
    panels.push(panel);
    panel.stage.addEventListener("pointermove", (event) => hover(pointed(panel, event)));
    panel.stage.addEventListener("pointerleave", () => hover(null));
    if (figure.dataset.plane) panel.stage.addEventListener("click", (event) => go(pointed(panel, event) || state.at));
    panel.stage.addEventListener("wheel", (event) => { // the bare wheel scrolls the page
      if (!event.shiftKey) return;
      event.preventDefault();
      const at = [...state.at];
      at[config.planes[planeOf(panel)][2]] += (event.deltaY || event.deltaX) < 0 ? 1 : -1;
      go(at);
    }, { passive: false });
    const cut = find("input.cut");
    if (cut) {
      const set = () => figure.style.setProperty("--cut", `${cut.value}%`);
      cut.addEventListener("input", set);
      panel.stage.addEventListener("pointermove", (event) => {
        if (!(event.buttons & 1)) return;
        const box = panel.stage.getBoundingClientRect();
        cut.value = ((event.clientX - box.left) / box.width) * 100;
        set();
      });
      set();
    }
    layout(panel);
    observer.observe(figure);
    return panel;
  }

  // Shows other volumes in a panel: see `data-source`.
  function show(panel, layers, zones = []) {
    Object.assign(panel, { layers, zones, shown: null });
    draw(panel);
  }

  function bars() {
    for (const bar of document.querySelectorAll(".bar")) {
      bar.querySelector(".low").textContent = bar.classList.contains("spread") ? "0" : `−${state.limit}`;
      bar.querySelector(".high").textContent = bar.classList.contains("spread") ? `${state.limit} HU` : `+${state.limit} HU`;
    }
    const range = $("window-range");
    if (range) range.textContent = config.windows[state.window].map(minus).join(" to ") + " HU";
  }

  function start() {
    document.querySelectorAll(".panel").forEach(adopt);
    for (const button of document.querySelectorAll("button[data-set]")) {
      button.addEventListener("click", () => {
        const { set, value } = button.dataset;
        for (const other of document.querySelectorAll(`button[data-set=${set}]`)) {
          other.setAttribute("aria-pressed", String(other === button));
        }
        state[set] = value;
        if (set === "plane") { panels.forEach(layout); state.cursor = null; position(); }
        bars();
        redraw();
      });
    }
    $("limit")?.addEventListener("change", (event) => { state.limit = Number(event.target.value); bars(); redraw(); });
    $("lines")?.addEventListener("change", (event) => { state.lines = event.target.checked; redraw(); });
    $("slice")?.addEventListener("input", (event) => move(Number(event.target.value)));
    $("play")?.addEventListener("click", () => play(!timer));
    for (const target of document.querySelectorAll("[data-go]")) {
      target.addEventListener("click", () => go(JSON.parse(target.dataset.go)));
    }
    for (const kind of ["diverging", "sequential"]) {
      if (config[kind]) document.body.style.setProperty(`--${kind}`, `linear-gradient(90deg, ${config[kind].join(", ")})`);
    }
    bars();
    position();
  }

  start();
  return { state, panels, show, go, bars, $ };
})();
