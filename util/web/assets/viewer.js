/**
 * The slice viewer of every page: linked pictures of volumes on one grid, with slider, outlines and pointer read-out.
 *
 * An element with `data-viewer` (grid and volumes, see util/web/viewer_parts.py) becomes a `SliceViewer`; its `.panel`s
 * show layers: the key of a volume, or a pair of keys (the second minus the first). Voxels come from a script for each
 * volume, `<config.voxels><key>.js`, because a page opened from disk may load scripts but not fetch files.
 *
 * Pages configure it by `data-` attributes, or by `Mask2CT.viewers` and `SliceViewer.show`. To extend it: what all viewers
 * share (plane, window, range) is a key of `view` and a control in `bindControls`; what one viewer shows is a method.
 */
"use strict";
(() => {
  const { config, NO_VALUE, withMinus, decode, sliceGeometry, colourRange, colourOf, paint, drawOutlines, valueText } = Mask2CT;
  const MAX_BYTES = 256 * 2 ** 20; // of voxels kept in memory though no picture on the screen needs them
  const SETTLE_MS = 120; // pictures that only fly past are not loaded
  const OUTLINE = "#ffe14a"; // of numbered regions
  const view = { plane: config.plane, window: "lung", limit: config.limit, lines: true };
  const viewers = [];
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  // --- voxels ---------------------------------------------------------------------------------------------------------
  /** Decoded volumes by key, loaded once when they are first needed. */
  const store = {
    entries: new Map(), // key: {promise, resolve, reject, voxels}

    voxels(key) {
      return this.entries.get(key)?.voxels;
    },

    load(key) {
      const known = this.entries.get(key);
      if (known) return known.promise;
      const entry = {};
      entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
      this.entries.set(key, entry);
      const script = document.createElement("script");
      script.src = `${config.voxels}${encodeURIComponent(key)}.js`;
      script.onload = () => script.remove();
      script.onerror = () => entry.reject(new Error(`The voxels are missing: ${config.voxels}${key}.js`));
      document.head.append(script);
      return entry.promise;
    },

    async receive(key, base64) {
      const entry = this.entries.get(key);
      try {
        entry.voxels = await decode(base64);
        entry.resolve();
      } catch (error) {
        entry.reject(error);
      }
    },

    /** Drops the oldest volumes that no visible panel needs, until the others fit into `MAX_BYTES`. */
    trim() {
      const panels = viewers.flatMap((viewer) => viewer.panels.filter((panel) => panel.visible));
      const used = new Set(panels.flatMap((panel) => panel.viewer.keysOf(panel)));
      const unused = [...this.entries].filter(([key, { voxels }]) => voxels && !used.has(key));
      let bytes = unused.reduce((sum, [, { voxels }]) => sum + voxels.byteLength, 0);
      for (const [key, { voxels }] of unused) {
        if (bytes <= MAX_BYTES) return;
        bytes -= voxels.byteLength;
        this.entries.delete(key);
      }
    },
  };

  // --- one viewer -----------------------------------------------------------------------------------------------------
  /** Panels on one grid that show the same place. */
  class SliceViewer {
    /** `root`: an element with `data-viewer`; it may hold a slider, a play button and an output for the place. */
    constructor(root) {
      Object.assign(this, JSON.parse(root.dataset.viewer)); // grid, volumes, mask, zones, zone_names
      this.root = root;
      this.at = [...this.grid.start]; // the voxel through which all planes go
      this.cursor = null; // the voxel under the pointer
      this.timer = 0;
      this.slider = root.querySelector(".slices input");
      this.position = root.querySelector(".slices output");
      this.playButton = root.querySelector(".play");
      this.placeOutput = root.querySelector(".place");
      this.panels = [...root.querySelectorAll(".panel")].map((figure) => this.adopt(figure));
      this.slider?.addEventListener("input", () => this.move(this.plane(), Number(this.slider.value)));
      this.playButton?.addEventListener("click", () => this.play(!this.timer));
      for (const target of root.querySelectorAll("[data-go]")) {
        target.addEventListener("click", () => this.go(JSON.parse(target.dataset.go)));
      }
      this.layout();
    }

    /** Makes a panel of a figure and listens to its pointer. */
    adopt(figure) {
      const find = (name) => figure.querySelector(name);
      const panel = {
        viewer: this, figure, stage: find(".stage"), canvases: [...figure.querySelectorAll("canvas.voxels")],
        lines: find("canvas.lines"), edges: [...figure.querySelectorAll(".edge")], cross: find(".cross"),
        bar: find(".bar"), value: find(".value"), ...JSON.parse(figure.dataset.panel), // kind, layers, plane, role, ...
        sources: null, visible: false,
      };
      const { stage } = panel;
      stage.addEventListener("pointermove", (event) => this.hover(this.pick(panel, event)));
      stage.addEventListener("pointerleave", () => this.hover(null));
      stage.addEventListener("wheel", (event) => {
        if (!event.shiftKey) return; // the bare wheel scrolls the page
        event.preventDefault();
        const plane = this.plane(panel), axis = config.planes[plane][2];
        this.move(plane, this.at[axis] + ((event.deltaY || event.deltaX) < 0 ? 1 : -1));
      }, { passive: false });
      if (panel.plane) stage.addEventListener("click", (event) => this.go(this.pick(panel, event) || this.at));
      const cut = find("input.cut");
      if (cut) this.bindCut(panel, cut);
      return panel;
    }

    /** The line of a before-and-after picture follows its slider and the pressed pointer. */
    bindCut(panel, cut) {
      const set = () => panel.figure.style.setProperty("--cut", `${cut.value}%`);
      cut.addEventListener("input", set);
      panel.stage.addEventListener("pointermove", (event) => {
        if (!(event.buttons & 1)) return;
        const box = panel.stage.getBoundingClientRect();
        cut.value = ((event.clientX - box.left) / box.width) * 100;
        set();
      });
      set();
    }

    // Places ............................................................................................................
    /** The plane of a panel; without one, of the toolbar. */
    plane(panel) {
      return panel?.plane || view.plane;
    }

    slice(panel) {
      return sliceGeometry(this.grid, this.plane(panel), this.at);
    }

    /** The voxel under the pointer, null beside the picture. */
    pick(panel, event) {
      const slice = this.slice(panel), box = panel.stage.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left) / box.width) * slice.width);
      const row = Math.floor(((event.clientY - box.top) / box.height) * slice.height);
      const inside = column >= 0 && row >= 0 && column < slice.width && row < slice.height;
      return inside ? slice.voxel(column, row) : null;
    }

    /** Moves all planes to a voxel; the pointer's voxel goes with them. */
    go(at) {
      const bounded = at.map((k, axis) => clamp(k, 0, this.grid.shape[axis] - 1));
      if (this.cursor) this.cursor = this.cursor.map((k, axis) => (bounded[axis] === this.at[axis] ? k : bounded[axis]));
      this.at = bounded;
      this.showPosition();
      this.redraw();
    }

    /** Moves one plane to a slice. */
    move(plane, index) {
      const at = [...this.at];
      at[config.planes[plane][2]] = index;
      this.go(at);
    }

    /** Goes to and fro through the slices that hold something. */
    play(on) {
      clearInterval(this.timer);
      this.timer = 0;
      this.playButton.setAttribute("aria-pressed", String(on));
      this.playButton.textContent = on ? "❚❚ Stop" : "▶ Play through the slices";
      if (!on) return;
      let step = 1;
      this.timer = setInterval(() => {
        const plane = this.plane(), axis = config.planes[plane][2], [low, high] = this.grid.extent[axis];
        if (this.at[axis] + step > high) step = -1;
        if (this.at[axis] + step < low) step = 1;
        this.move(plane, clamp(this.at[axis] + step, low, high));
      }, 1000 / config.frames_per_second);
    }

    /** Sizes, edge letters and slider: known before the voxels are. */
    layout() {
      for (const panel of this.panels) {
        const { aspect, edges } = this.slice(panel);
        panel.stage.style.aspectRatio = aspect;
        panel.edges.forEach((edge, i) => { edge.textContent = edges[i]; });
      }
      this.cursor = null;
      this.showPosition();
    }

    showPosition() {
      if (!this.slider) return;
      const axis = config.planes[this.plane()][2], index = this.at[axis], count = this.grid.shape[axis];
      const text = `${index + 1} of ${count} · ${((index + 0.5) * this.grid.spacing[axis]).toFixed(0)} mm`;
      this.slider.max = count - 1;
      this.slider.value = index;
      this.slider.setAttribute("aria-valuetext", text);
      this.position.textContent = text;
    }

    // Drawing ...........................................................................................................
    /** Shows other layers in a panel; `change` may hold `title`, `kind` and `zones`, too. */
    show(panel, layers, change = {}) {
      Object.assign(panel, { layers, sources: null }, change);
      if ("title" in change) panel.figure.querySelector(".title").textContent = change.title;
      if ("kind" in change) panel.figure.className = `panel ${panel.kind}`;
      this.showBar(panel);
      this.draw(panel);
    }

    redraw() {
      for (const panel of this.panels) {
        this.showBar(panel);
        this.draw(panel);
      }
    }

    /** Keys of all volumes that a panel needs. */
    keysOf(panel) {
      const keys = [...panel.layers.flat(), panel.outline];
      if (view.lines || this.placeOutput) keys.push(this.mask);
      if (panel.zones.length || this.placeOutput) keys.push(this.zones);
      return [...new Set(keys.filter(Boolean))];
    }

    /** Draws a panel that is on the screen, once its voxels are there. */
    draw(panel) {
      if (!panel.visible || !panel.layers.length) return;
      const keys = this.keysOf(panel), { layers } = panel;
      if (!keys.every((key) => store.voxels(key))) {
        Promise.all(keys.map((key) => store.load(key))).then(
          () => { if (panel.layers === layers) this.draw(panel); store.trim(); },
          (error) => this.fail(panel, error.message),
        );
        return;
      }
      const slice = this.slice(panel);
      panel.sources = layers.map((layer) => this.source(layer));
      panel.sources.forEach((source, i) => paint(panel.canvases[i], slice, source.value, colourOf(source, view)));
      drawOutlines(panel.lines, slice, this.outlines(panel));
      panel.figure.dataset.state = "ready";
      this.read(panel);
    }

    /** Frees the pictures of a panel that left the screen. */
    release(panel) {
      for (const canvas of [...panel.canvases, panel.lines]) canvas.width = canvas.height = 0;
      delete panel.figure.dataset.state;
      panel.sources = null;
    }

    fail(panel, message) {
      panel.figure.dataset.state = "failed";
      panel.value.textContent = message;
    }

    /** A layer as something to paint: `kind`, `step`, and `value(index)` as stored. */
    source(layer) {
      if (!Array.isArray(layer)) {
        const voxels = store.voxels(layer);
        return { ...this.volumes[layer], value: (i) => voxels[i] };
      }
      const [from, to] = layer.map((key) => store.voxels(key));
      return { kind: "difference", step: this.volumes[layer[0]].step, value: (i) => to[i] - from[i] };
    }

    /** What is outlined in a panel: the mask's labels, its zones by rank, its numbered regions. */
    outlines(panel) {
      const mask = view.lines && store.voxels(this.mask), zones = store.voxels(this.zones);
      const regions = store.voxels(panel.outline), onWhite = panel.sources[0].kind === "difference", all = [];
      const labelColour = (k) => (onWhite ? "#8a93a0" : config.labels[k]?.[0] || "#ffffff");
      if (mask) all.push({ group: (i) => mask[i], colour: labelColour, width: 2 });
      if (zones && panel.zones.length) {
        all.push({ group: (i) => panel.zones.indexOf(zones[i]) + 1, colour: (k) => config.ranks[k - 1], width: 5 });
      }
      if (regions) all.push({ group: (i) => regions[i], colour: () => OUTLINE, width: 5, numbered: true });
      return all;
    }

    // Read-out ..........................................................................................................
    showBar(panel) {
      const range = colourRange(panel.kind, view);
      if (!panel.bar) return;
      panel.bar.hidden = !range;
      if (!range) return;
      const [low, high] = range, unit = panel.kind === "score" ? "spreads" : "HU";
      panel.bar.querySelector(".low").textContent = withMinus(low);
      panel.bar.querySelector(".high").textContent = `${low < 0 ? "+" : ""}${high} ${unit}`;
    }

    hover(at) {
      this.cursor = at;
      this.panels.forEach((panel) => this.read(panel));
      if (this.placeOutput) this.placeOutput.textContent = this.placeText();
    }

    /** Shows the pointer's place and its value in a panel that shows its slice. */
    read(panel) {
      const { cursor } = this, slice = this.slice(panel), mark = panel.bar?.querySelector("b");
      const there = cursor && panel.sources && cursor[slice.through] === this.at[slice.through];
      panel.stage.classList.toggle("pointed", Boolean(there));
      panel.value.textContent = "";
      if (mark) mark.hidden = true;
      if (!there) return;
      const column = slice.width - 1 - cursor[slice.across], row = slice.height - 1 - cursor[slice.down];
      panel.cross.style.left = `${((column + 0.5) / slice.width) * 100}%`;
      panel.cross.style.top = `${((row + 0.5) / slice.height) * 100}%`;
      const index = slice.index(column, row), stored = panel.sources.map((source) => source.value(index));
      const texts = panel.sources.map((source, i) => valueText(source, stored[i]));
      panel.value.textContent = texts.length > 1 ? `before ${texts[0]}, after ${texts[1]}` : texts[0];
      panel.value.title = `voxel ${cursor.map((k, axis) => k * this.grid.block[axis]).join(", ")} (right, front, up)`;
      const range = colourRange(panel.sources[0].kind, view);
      if (mark && range && stored[0] !== NO_VALUE) {
        const share = (stored[0] * panel.sources[0].step - range[0]) / (range[1] - range[0]);
        mark.hidden = false;
        mark.style.left = `${clamp(share, 0, 1) * 100}%`;
      }
    }

    /** Label and zone under the pointer. */
    placeText() {
      const mask = store.voxels(this.mask), zones = store.voxels(this.zones), [x, y] = this.grid.shape;
      if (!this.cursor || !mask) return "";
      const index = this.cursor[0] + x * (this.cursor[1] + y * this.cursor[2]);
      const zone = zones?.[index] ? `: ${this.zone_names[zones[index] - 1]}` : "";
      return `${config.labels[mask[index]]?.[1] || "outside the mask"}${zone}`;
    }
  }

  // --- the page -------------------------------------------------------------------------------------------------------
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const panel = viewers.flatMap((viewer) => viewer.panels).find(({ figure }) => figure === target);
      panel.visible = isIntersecting;
      if (isIntersecting) setTimeout(() => panel.viewer.draw(panel), SETTLE_MS);
      else panel.viewer.release(panel);
    }
  }, { rootMargin: "500px 0px" });

  /** Shows the settings of the view, and draws everything anew. */
  function update() {
    const range = document.getElementById("window-range");
    if (range) range.textContent = `${config.windows[view.window].map(withMinus).join(" to ")} HU`;
    for (const viewer of viewers) viewer.redraw();
  }

  /** A pressed button sets `data-set` to `data-value` and releases the others of its row. */
  function bindChoice(button) {
    button.addEventListener("click", () => {
      const { set, value } = button.dataset;
      for (const each of document.querySelectorAll(`button[data-set=${set}]`)) {
        each.setAttribute("aria-pressed", String(each === button));
      }
      if (set === "size") {
        document.body.style.setProperty("--panel", `${config.sizes[value]}px`);
        return;
      }
      view[set] = value;
      if (set === "plane") for (const viewer of viewers) viewer.layout();
      update();
    });
  }

  /** Connects the controls of the toolbar that this page has. */
  function bindControls() {
    const onChange = (id, act) => document.getElementById(id)?.addEventListener("change", (event) => act(event.target));
    document.querySelectorAll("button[data-set]").forEach(bindChoice);
    onChange("limit", (select) => { view.limit = Number(select.value); update(); });
    onChange("lines", (box) => { view.lines = box.checked; update(); });
    onChange("smooth", (box) => document.body.classList.toggle("sharp", !box.checked));
    for (const name of ["diverging", "sequential"]) {
      document.body.style.setProperty(`--${name}`, `linear-gradient(90deg, ${config[name].join(", ")})`);
    }
  }

  for (const root of document.querySelectorAll("[data-viewer]")) viewers.push(new SliceViewer(root));
  bindControls();
  update();
  for (const { panels } of viewers) for (const { figure } of panels) observer.observe(figure);
  Object.assign(Mask2CT, { view, viewers, SliceViewer, addVolume: (key, base64) => store.receive(key, base64) });
})();
