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
  const { config, NO_VALUE, withMinus, decode, sliceGeometry, colourRange, shader, paint, drawOutlines, valueText } = Mask2CT;
  const { bindStage, bindPage, enlarge, remember, showPlace } = Mask2CT;
  const MAX_BYTES = 256 * 2 ** 20; // of voxels kept in memory though no picture on the screen needs them
  const SETTLE_MS = 120; // pictures that only fly past are not loaded
  const OUTLINE = "#ffe14a"; // of numbered regions
  const FIRST = "axial", THREE = ["coronal", "sagittal"]; // planes below one another, where three are shown
  const RULER_SHARE = 0.35; // of a picture's width, at most
  // `plane` may be "three"; `overlay` is the opacity of differences on the CT, 0 for none.
  const view = { plane: config.plane, window: "lung", limit: config.limit, lines: true, hairs: true, overlay: 0 };
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

  /** The longest of 1, 2, 5, 10, 20, 50, ... mm that is not longer than `most`. */
  function roundLength(most) {
    const power = 10 ** Math.floor(Math.log10(most));
    return power * [5, 2, 1].find((factor) => factor * power <= most);
  }

  // --- one viewer -----------------------------------------------------------------------------------------------------
  /** The parts of a picture. */
  function stageParts(stage) {
    const all = (name) => [...stage.querySelectorAll(name)];
    const [lines] = all("canvas.lines"), [cross] = all(".cross");
    return { stage, canvases: all("canvas.voxels"), lines, edges: all(".edge"), cross, hairs: null, ruler: null };
  }

  /** Panels on one grid that show the same place. */
  class SliceViewer {
    /** `root`: an element with `data-viewer`; it may hold a slider, a play button and an output for the place. */
    constructor(root) {
      Object.assign(this, JSON.parse(root.dataset.viewer)); // grid, volumes, mask, zones, zone_names
      this.root = root;
      this.at = [...this.grid.start]; // the voxel through which all planes go
      this.cursor = null; // the voxel under the pointer
      this.zooms = {}; // by plane: scale, and the place of the left upper corner as a share of the picture's frame
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
      const panel = {
        viewer: this, figure, ...stageParts(figure.querySelector(".stage")), bar: figure.querySelector(".bar"),
        value: figure.querySelector(".value"), ...JSON.parse(figure.dataset.panel), // kind, layers, plane, role, ...
        sources: null, visible: false, main: null, // of a further plane of a panel: that panel
      };
      bindStage(panel);
      const cut = figure.querySelector("input.cut");
      if (cut) this.bindCut(panel, cut);
      return panel;
    }

    /** Shows a panel in three planes below one another, or in one again. */
    spread(panel) {
      const wanted = view.plane === "three" && !panel.plane && panel.kind !== "wipe";
      const further = this.panels.filter(({ main }) => main === panel);
      if (wanted === further.length > 0) return;
      if (!wanted) {
        panel.stage.parentElement.replaceWith(panel.stage);
        this.panels = this.panels.filter(({ main }) => main !== panel);
        return;
      }
      const stack = document.createElement("div");
      stack.className = "stack";
      panel.stage.before(stack);
      stack.append(panel.stage);
      for (const plane of THREE) {
        const stage = panel.stage.cloneNode(true);
        stage.querySelectorAll(".made").forEach((made) => made.remove());
        stack.append(stage);
        const each = { ...panel, ...stageParts(stage), plane, main: panel, bar: null, value: null, sources: null };
        bindStage(each);
        this.panels.push(each);
        this.frame(each);
      }
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
      return panel?.plane || (view.plane === "three" ? FIRST : view.plane);
    }

    /** Whether a panel is one of several planes, so that it shows the place of the others. */
    isCrossed(panel) {
      return Boolean(panel.plane) || (view.plane === "three" && panel.kind !== "wipe");
    }

    zoomOf(panel) {
      return this.zooms[this.plane(panel)] || { scale: 1, x: 0, y: 0 };
    }

    setZoom(panel, zoom) {
      this.zooms[this.plane(panel)] = zoom;
      this.panels.forEach((each) => this.frame(each));
      this.panels.forEach((each) => this.read(each));
    }

    slice(panel) {
      return sliceGeometry(this.grid, this.plane(panel), this.at);
    }

    /** The voxel under the pointer, null beside the picture. */
    pick(panel, event) {
      const slice = this.slice(panel), box = panel.stage.getBoundingClientRect(), { scale, x, y } = this.zoomOf(panel);
      const column = Math.floor((((event.clientX - box.left) / box.width - x) / scale) * slice.width);
      const row = Math.floor((((event.clientY - box.top) / box.height - y) / scale) * slice.height);
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
      remember(this);
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
      for (const panel of this.panels.filter(({ main, visible }) => visible && !main)) this.spread(panel);
      for (const panel of this.panels) this.frame(panel);
      this.cursor = null;
      this.showPosition();
    }

    /** Size, letters, zoom, crosshair and ruler of a picture. */
    frame(panel) {
      const slice = this.slice(panel), { aspect, edges, width, height } = slice, { style } = panel.stage;
      const { scale, x, y } = this.zoomOf(panel), zoom = { "--zoom": scale, "--left": `${x * 100}%`, "--top": `${y * 100}%` };
      style.aspectRatio = aspect;
      style.setProperty("--aspect", aspect);
      for (const [name, value] of Object.entries(zoom)) style.setProperty(name, value);
      panel.edges.forEach((edge, i) => { edge.textContent = edges[i]; });
      if (!panel.hairs) return; // not yet on the screen
      panel.stage.classList.toggle("crossed", view.hairs && this.isCrossed(panel));
      const share = (index, length) => ((length - 0.5 - index) / length) * scale;
      panel.hairs[0].style.left = `${(share(this.at[slice.across], width) + x) * 100}%`;
      panel.hairs[1].style.top = `${(share(this.at[slice.down], height) + y) * 100}%`;
      const millimetres = (width * this.grid.spacing[slice.across]) / scale, length = roundLength(RULER_SHARE * millimetres);
      panel.ruler.style.width = `${(length / millimetres) * 100}%`;
      panel.ruler.textContent = `${length} mm`;
    }

    /** Crosshair, ruler and button of a picture, made when it is first seen. */
    furnish(panel) {
      if (panel.hairs) return;
      const make = (tag, name) => {
        const node = document.createElement(tag);
        node.className = `${name} made`;
        panel.stage.append(node);
        return node;
      };
      panel.hairs = [make("i", "hair across"), make("i", "hair down")];
      panel.ruler = make("span", "ruler");
      const button = Object.assign(make("button", "enlarge"), { type: "button", title: "Enlarge (F)", textContent: "⤢" });
      button.setAttribute("aria-label", "Enlarge");
      button.addEventListener("click", (event) => { event.stopPropagation(); enlarge(panel); });
      button.addEventListener("pointerdown", (event) => event.stopPropagation());
    }

    showPosition() {
      const axis = config.planes[this.plane()][2], index = this.at[axis], count = this.grid.shape[axis];
      const text = `${index + 1} of ${count} · ${((index + 0.5) * this.grid.spacing[axis]).toFixed(0)} mm`;
      showPlace(this, `${this.plane()} ${text}`);
      if (!this.slider) return;
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
      if ("kind" in change && !panel.main) panel.figure.className = `panel ${panel.kind}`;
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
      if (view.overlay) keys.push(panel.under);
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
      this.furnish(panel);
      this.frame(panel);
      panel.sources = layers.map((layer) => this.source(layer));
      this.layOn(panel);
      panel.sources.forEach((source, i) => paint(panel.canvases[i], slice, shader(source, view)));
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
      (panel.main || panel).value.textContent = message;
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

    /** Lays a difference on its CT, where the view asks for it. */
    layOn(panel) {
      const [source] = panel.sources, [layer] = panel.layers;
      const key = panel.under || (Array.isArray(layer) ? layer[0] : ""); // the volume before
      const laid = source.kind === "difference" && view.overlay > 0 && key !== "";
      if (laid) source.under = this.source(key);
      panel.stage.classList.toggle("overlaid", laid);
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

    /** Rings the pointer's place in a panel that shows its slice. */
    markPlace(panel) {
      const { cursor } = this, slice = this.slice(panel), { scale, x, y } = this.zoomOf(panel);
      const there = cursor && panel.sources && cursor[slice.through] === this.at[slice.through];
      panel.stage.classList.toggle("pointed", Boolean(there));
      if (!there) return;
      panel.cross.style.left = `${(((slice.width - 0.5 - cursor[slice.across]) / slice.width) * scale + x) * 100}%`;
      panel.cross.style.top = `${(((slice.height - 0.5 - cursor[slice.down]) / slice.height) * scale + y) * 100}%`;
    }

    /** Shows the pointer's place, and the value of its voxel in every panel. */
    read(panel) {
      this.markPlace(panel);
      if (panel.main) return; // one read-out for all its planes
      const { cursor } = this, mark = panel.bar?.querySelector("b"), [x, y] = this.grid.shape;
      panel.value.textContent = "";
      if (mark) mark.hidden = true;
      if (!cursor || !panel.sources) return;
      const index = cursor[0] + x * (cursor[1] + y * cursor[2]);
      const stored = panel.sources.map((source) => source.value(index));
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
      const viewer = viewers.find(({ panels }) => panels.some(({ figure }) => figure === target));
      const shown = () => viewer.panels.filter(({ figure }) => figure === target);
      for (const panel of shown()) panel.visible = isIntersecting;
      if (isIntersecting) viewer.spread(shown()[0]);
      for (const panel of shown()) {
        if (isIntersecting) setTimeout(() => viewer.draw(panel), SETTLE_MS);
        else viewer.release(panel);
      }
    }
  }, { rootMargin: "500px 0px" });

  /** Shows the settings of the view, and draws everything anew. */
  function update() {
    const range = document.getElementById("window-range"), limit = document.getElementById("limit");
    if (range) range.textContent = `${config.windows[view.window].map(withMinus).join(" to ")} HU`;
    if (limit) limit.value = view.limit;
    for (const viewer of viewers) viewer.redraw();
  }

  /** Sets a key of the view; the buttons that set it show so. */
  function choose(set, value) {
    for (const each of document.querySelectorAll(`button[data-set=${set}]`)) {
      each.setAttribute("aria-pressed", String(each.dataset.value === value));
    }
    if (set === "size") {
      document.body.style.setProperty("--panel", `${config.sizes[value]}px`);
      return;
    }
    view[set] = value;
    if (set === "plane") for (const viewer of viewers) viewer.layout();
    update();
    remember();
  }

  const box = (name) => document.getElementById(name);

  /** Opacity of the differences on the CT, from their controls. */
  const opacity = () => (box("overlay")?.checked ? Number(box("opacity").value) / 100 : 0);

  /** Reads the boxes to tick. */
  function readBoxes() {
    view.lines = box("lines")?.checked ?? view.lines;
    view.overlay = opacity();
    box("opacity")?.toggleAttribute("disabled", !view.overlay);
    update();
  }

  /** Ticks a box by its key, or turns what has no box. */
  function tick(name) {
    if (name === "hairs") view.hairs = !view.hairs;
    else if (box(name)) box(name).checked = !box(name).checked;
    readBoxes();
  }

  /** Shows what an address asks for, as far as the page has it. */
  function apply(wanted) {
    if (wanted.plane in config.planes || wanted.plane === "three") choose("plane", wanted.plane);
    if (wanted.window) choose("window", wanted.window);
    if (wanted.limit) view.limit = wanted.limit;
    if (box("overlay") && wanted.overlay) {
      box("overlay").checked = true;
      box("opacity").value = wanted.overlay * 100;
    }
    readBoxes();
  }

  /** Connects the controls of the toolbar that this page has. */
  function bindControls() {
    const onChange = (id, act) => box(id)?.addEventListener("change", (event) => act(event.target));
    for (const button of document.querySelectorAll("button[data-set]")) {
      button.addEventListener("click", () => choose(button.dataset.set, button.dataset.value));
    }
    onChange("limit", (select) => { view.limit = Number(select.value); update(); remember(); });
    for (const name of ["lines", "overlay"]) onChange(name, () => { readBoxes(); remember(); });
    box("opacity")?.addEventListener("input", readBoxes);
    onChange("smooth", (smooth) => document.body.classList.toggle("sharp", !smooth.checked));
    for (const name of ["diverging", "sequential"]) {
      document.body.style.setProperty(`--${name}`, `linear-gradient(90deg, ${config[name].join(", ")})`);
    }
  }

  for (const root of document.querySelectorAll("[data-viewer]")) viewers.push(new SliceViewer(root));
  bindControls();
  readBoxes();
  for (const { panels } of viewers) for (const { figure } of panels) observer.observe(figure);
  bindPage({ view, viewers, choose, tick, apply });
  Object.assign(Mask2CT, { view, viewers, SliceViewer, addVolume: (key, base64) => store.receive(key, base64) });
})();
