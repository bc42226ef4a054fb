/**
 * The slice viewer of every page: linked pictures of volumes on one grid, with slider, outlines and pointer read-out.
 *
 * An element with `data-viewer` (grid and volumes, see util/web/viewer_parts.py) becomes a `SliceViewer` once it nears the
 * screen; its `.panel`s show layers: the key of a volume, or a pair of keys (the second minus the first). Their pictures
 * are made when they are first seen, so that a page of many cases opens at once. The voxels are those of voxels.js.
 *
 * Pages configure it by `data-` attributes, or by `Mask2CT.viewerOf` and `SliceViewer.show`. To extend it: what all viewers
 * share (plane, window, range) is a key of `view` and a control in `bindControls`; what one viewer shows is a method.
 */
"use strict";
(() => {
  const { config, NO_VALUE, withMinus, voxels, sliceGeometry, colourRange, paint, fineness, boundaries, drawOutlines } = Mask2CT;
  const { unitOf, valueText, bindStage, bindPage, enlarge, remember, showPlace } = Mask2CT;
  const SETTLE_MS = 120; // pictures that only fly past are not loaded, or in half the resolution
  const AHEAD = 24; // slices ahead of the shown one that are loaded when there is time
  const MARGIN = "500px 0px"; // so far from the screen, cases are made and pictures drawn
  const OUTLINE = "#ffe14a"; // of numbered regions, and of changes beyond the colours
  const FIRST = "axial", THREE = ["coronal", "sagittal"]; // planes below one another, where three are shown
  const COARSE = "~"; // ends the keys of volumes in half the resolution (see util/web/web_data.py)
  const SIGNED = ["difference", "score"]; // kinds that can be laid on a CT
  const RULER_SHARE = 0.35; // of a picture's width, at most
  // `plane` may be "three"; `limit` 0 is each picture's own range; `overlay` is the opacity of differences on the CT.
  const view = { plane: config.plane, window: Object.keys(config.windows)[0], limit: config.limit, lines: true, hairs: true, overlay: 0 };
  const roots = [...document.querySelectorAll("[data-viewer]")];
  const viewers = []; // of the roots that came near the screen
  document.documentElement.classList.toggle("framed", window !== window.top); // as in the live page
  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  /** An element of this class, with further properties and children. */
  function element(tag, className, properties = {}, ...children) {
    const node = Object.assign(document.createElement(tag), { className }, properties);
    node.append(...children);
    return node;
  }

  /** The longest of 1, 2, 5, 10, 20, 50, ... mm that is not longer than `most`. */
  function roundLength(most) {
    const power = 10 ** Math.floor(Math.log10(most));
    return power * [5, 2, 1].find((factor) => factor * power <= most);
  }

  // --- one viewer -----------------------------------------------------------------------------------------------------
  /** Names the pictures of a panel for readers who do not see them. */
  function nameCanvases({ figure, canvases }) {
    for (const each of canvases) {
      each.setAttribute("role", "img");
      each.setAttribute("aria-label", figure.querySelector(".title").textContent);
    }
  }

  /** Fills the frame of a picture; returns its parts. */
  function makePicture(stage, panel) {
    const canvas = (name) => element("canvas", name);
    const canvases = (panel.kind === "wipe" ? ["before", "after"] : ["only"]).map((name) => canvas(`voxels ${name}`));
    nameCanvases({ ...panel, canvases });
    const lines = canvas("lines"), ruler = element("span", "ruler");
    const [cross, pin] = ["cross", "pin"].map((name) => element("i", name, { hidden: true }));
    const edges = ["left", "right", "up", "down"].map((name) => element("span", `edge ${name}`));
    const hairs = ["across", "down"].map((name) => element("i", `hair ${name}`));
    const button = element("button", "enlarge", { type: "button", title: "Enlarge (F)", textContent: "⤢" });
    button.setAttribute("aria-label", "Enlarge");
    lines.setAttribute("aria-hidden", "true");
    stage.replaceChildren(...canvases, lines, ...edges, cross, pin, ...hairs, ruler, button);
    return { stage, canvases, lines, edges, cross, pin, hairs, ruler, button };
  }

  function makeBar() {
    const mark = element("b", "", { hidden: true });
    return element("div", "bar", {}, element("span", "low"), element("span", "scale", {}, element("i", ""), mark), element("span", "high"));
  }

  /** Panels on one grid that show the same place. */
  class SliceViewer {
    /** `root`: an element with `data-viewer`; it may hold a slider, a play button and an output for the place. */
    constructor(root) {
      Object.assign(this, JSON.parse(root.dataset.viewer)); // grid, coarse, volumes, mask, zones, zone_names
      this.root = root;
      this.at = [...this.grid.start]; // the voxel through which all planes go
      this.cursor = null; // the voxel under the pointer
      this.pinned = null; // a voxel that stays marked
      this.onPick = null; // what a click on a voxel does, in place of enlarging or moving the planes
      this.zooms = {}; // by plane: scale, and the place of the left upper corner as a share of the picture's frame
      this.cache = new Map(); // values and lines of the slices shown, by key and axis through them
      this.timer = 0;
      this.moving = 0; // a timer, while slices follow each other quickly
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

    /** Makes a panel of a figure. */
    adopt(figure) {
      return {
        viewer: this, figure, ...JSON.parse(figure.dataset.panel), // kind, layers, plane, role, ...
        stage: figure.querySelector(".stage"), canvases: [], bar: null, value: null, // made when it is first seen
        sources: null, visible: false, turn: 0, main: null, // of a further plane of a panel: that panel
      };
    }

    /** Makes the picture of a panel, its colour bar and its read-out. */
    furnish(panel) {
      if (panel.canvases.length) return;
      Object.assign(panel, makePicture(panel.stage, panel));
      bindStage(panel);
      panel.button.addEventListener("click", (event) => { event.stopPropagation(); enlarge(panel); });
      panel.button.addEventListener("pointerdown", (event) => event.stopPropagation());
      if (panel.main) return;
      panel.value = element("output", "value");
      panel.stage.after(panel.value);
      if (panel.kind === "wipe") this.bindCut(panel);
      this.showBar(panel);
      this.frame(panel);
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
      const stack = element("div", "stack");
      panel.stage.before(stack);
      stack.append(panel.stage);
      for (const plane of THREE) {
        const each = { ...panel, stage: element("div", "stage"), canvases: [], plane, main: panel, bar: null, value: null, sources: null };
        stack.append(each.stage);
        this.panels.push(each);
        this.furnish(each);
        this.frame(each);
      }
    }

    /** The line of a before-and-after picture follows its slider and the pressed pointer. */
    bindCut(panel) {
      const cut = element("input", "cut", { type: "range", min: 0, max: 100, value: 50 });
      cut.setAttribute("aria-label", "Left of the line before, right of it after");
      panel.stage.after(cut);
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

    /** The view of a panel: that of all, in the panel's own range of differences where none is chosen. */
    viewOf(panel) {
      return { ...view, limit: view.limit || panel.limit };
    }

    /** The slice of a panel through a voxel, in full resolution. */
    slice(panel, at = this.at) {
      return { ...sliceGeometry(this.grid, this.plane(panel), at), grid: this.grid, suffix: "" };
    }

    /** The same in half the resolution, which large volumes have too. */
    coarseSlice(panel, at = this.at) {
      const place = at.map((k, axis) => Math.floor((k * this.coarse.shape[axis]) / this.grid.shape[axis]));
      const fine = 2 * fineness(this.slice(panel)); // the lines stay as fine as they are
      return { ...sliceGeometry(this.coarse, this.plane(panel), place), grid: this.coarse, suffix: COARSE, fine };
    }

    /** The slice to draw: while slices fly past, in half the resolution where the full one is not yet there. */
    drawnSlice(panel) {
      const slice = this.slice(panel);
      if (!this.coarse || !this.moving || voxels.areThere(this.namesOf(panel, slice))) return slice;
      return this.coarseSlice(panel);
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
      const before = this.at;
      this.at = bounded;
      this.showPosition();
      clearTimeout(this.moving);
      this.moving = setTimeout(() => this.settle(before), SETTLE_MS);
      voxels.forget(neededNames());
      this.redraw();
      if (this.coarse) this.loadAhead(before, (panel, at) => this.coarseSlice(panel, at));
      remember(this);
    }

    /** Draws in full resolution what was drawn in half of it, once the slices rest. */
    settle(before) {
      this.moving = 0;
      for (const panel of this.panels) if (panel.drawn?.suffix) this.draw(panel);
      this.loadAhead(before, (panel, at) => this.slice(panel, at));
    }

    /** Loads what the next slices need, in the direction in which the place moved; `sliceAt` is that of a panel. */
    loadAhead(before, sliceAt) {
      const ahead = this.at.map((k, axis) => clamp(k + AHEAD * Math.sign(k - before[axis]), 0, this.grid.shape[axis] - 1));
      const visible = this.panels.filter((panel) => panel.visible);
      const names = visible.flatMap((panel) => this.namesOf(panel, sliceAt(panel, ahead)));
      voxels.loadLater([...new Set(names)]);
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
      if (!panel.canvases.length) return; // not yet on the screen
      panel.edges.forEach((edge, i) => { edge.textContent = edges[i]; });
      panel.stage.classList.toggle("crossed", view.hairs && this.isCrossed(panel));
      const share = (index, length) => ((length - 0.5 - index) / length) * scale;
      panel.hairs[0].style.left = `${(share(this.at[slice.across], width) + x) * 100}%`;
      panel.hairs[1].style.top = `${(share(this.at[slice.down], height) + y) * 100}%`;
      const millimetres = (width * this.grid.spacing[slice.across]) / scale, length = roundLength(RULER_SHARE * millimetres);
      panel.ruler.style.width = `${(length / millimetres) * 100}%`;
      panel.ruler.textContent = `${length} mm`;
    }

    /** The slice of a plane, in words. */
    placeIn(plane) {
      const axis = config.planes[plane][2], index = this.at[axis];
      return `${index + 1} of ${this.grid.shape[axis]} · ${((index + 0.5) * this.grid.spacing[axis]).toFixed(0)} mm`;
    }

    showPosition() {
      showPlace(this);
      if (!this.slider) return;
      const axis = config.planes[this.plane()][2], text = this.placeIn(this.plane());
      this.slider.max = this.grid.shape[axis] - 1;
      this.slider.value = this.at[axis];
      this.slider.setAttribute("aria-valuetext", text);
      this.position.textContent = text;
    }

    // Drawing ...........................................................................................................
    /** Shows other layers in a panel, in all its planes; `change` may hold `title`, `kind` and `zones`, too. */
    show(panel, layers, change = {}) {
      if ("title" in change) panel.figure.querySelector(".title").textContent = change.title;
      if ("kind" in change) panel.figure.className = `panel ${change.kind}`;
      for (const each of this.panels.filter((one) => one === panel || one.main === panel)) {
        Object.assign(each, { layers, sources: null }, change);
        nameCanvases(each);
        this.showBar(each);
        this.draw(each);
      }
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

    /** Names of the bricks that a panel needs for a slice. */
    namesOf(panel, slice = this.slice(panel)) {
      return this.keysOf(panel).flatMap((key) => voxels.namesOf(slice.grid, key + slice.suffix, slice));
    }

    /** Draws a panel that is on the screen, once its voxels are there. */
    draw(panel) {
      if (!panel.visible || !panel.layers.length) return;
      const slice = this.drawnSlice(panel), names = this.namesOf(panel, slice), turn = panel.turn + 1;
      panel.turn = turn; // only the newest call draws
      if (!voxels.areThere(names)) {
        voxels.load(names).then(
          () => { if (panel.turn === turn) this.draw(panel); voxels.trim(neededNames()); },
          (error) => this.fail(panel, error.message),
        );
        return;
      }
      this.frame(panel);
      panel.drawn = slice;
      panel.sources = panel.layers.map((layer) => this.source(layer, slice));
      this.layOn(panel, slice);
      panel.beyond = this.beyond(panel);
      this.showBar(panel);
      panel.sources.forEach((source, i) => paint(panel.canvases[i], slice, source, this.viewOf(panel)));
      drawOutlines(panel.lines, slice, this.outlines(panel, slice));
      panel.figure.dataset.state = "ready";
      this.read(panel);
    }

    /** Frees the pictures of a panel that left the screen. */
    release(panel) {
      if (!panel.canvases.length) return;
      for (const canvas of [...panel.canvases, panel.lines]) canvas.width = canvas.height = 0;
      delete panel.figure.dataset.state;
      panel.sources = null;
      this.cache.clear();
    }

    fail(panel, message) {
      panel.figure.dataset.state = "failed";
      this.furnish(panel);
      (panel.main || panel).value.textContent = message;
    }

    /** What is kept of a slice of a volume: its `values`, and by name the `lines` between groups of them. */
    kept(key, slice) {
      const stored = key + slice.suffix, name = `${stored} ${slice.through}`, known = this.cache.get(name);
      if (known?.index === slice.index) return known;
      const kept = { index: slice.index, values: voxels.valuesOf(slice.grid, stored, slice), lines: new Map() };
      this.cache.set(name, kept);
      return kept;
    }

    /** Lines between the groups of a slice; `groupOf` gives a value's group under this `name`. */
    lines(key, slice, name = "", groupOf = null) {
      const { values, lines } = this.kept(key, slice);
      if (!lines.has(name)) lines.set(name, boundaries(slice, groupOf ? values.map(groupOf) : values));
      return lines.get(name);
    }

    /** A layer's slice as something to paint: `kind`, `step`, and `values` as stored. */
    source(layer, slice) {
      if (!Array.isArray(layer)) return { ...this.volumes[layer], values: this.kept(layer, slice).values };
      const [from, to] = layer.map((key) => this.kept(key, slice).values);
      return { kind: "difference", step: this.volumes[layer[0]].step, values: to.map((value, p) => value - from[p]) };
    }

    /** Lays a difference on its CT, where the view asks for it. */
    layOn(panel, slice) {
      const [source] = panel.sources, [layer] = panel.layers;
      const key = panel.under || (Array.isArray(layer) ? layer[0] : ""); // the volume before
      const laid = SIGNED.includes(source.kind) && view.overlay > 0 && key !== "";
      if (laid) source.under = this.source(key, slice);
      panel.stage.classList.toggle("overlaid", laid);
    }

    /**
     * Which voxels of a slice of differences lie beyond the range of its colours: `groups` (1 where they do), and
     * whether any lies `below` or `above` it; null where none does.
     */
    beyond(panel) {
      const [{ kind, step, values }] = panel.sources, most = this.viewOf(panel).limit / step;
      if (kind !== "difference") return null;
      let below = false, above = false, groups = null;
      for (let p = 0; p < values.length; p++) {
        const v = values[p];
        if ((v <= most && v >= -most) || v === NO_VALUE) continue;
        groups ||= new Uint8Array(values.length);
        groups[p] = 1;
        if (v > 0) above = true;
        else below = true;
      }
      return groups && { groups, below, above };
    }

    /** What is outlined in a panel: the mask's labels, its zones by rank, its numbered regions. */
    outlines(panel, slice) {
      const onWhite = panel.sources[0].kind === "difference", { zones } = panel, all = [];
      const labelColour = (k) => (onWhite ? "#8a93a0" : config.labels[k]?.[0] || "#ffffff");
      if (view.lines && this.mask) all.push({ lines: this.lines(this.mask, slice), colour: labelColour, width: 2 });
      if (this.zones && zones.length) {
        const lines = this.lines(this.zones, slice, zones.join(), (zone) => zones.indexOf(zone) + 1);
        all.push({ lines, colour: (k) => config.ranks[k - 1], width: 5 });
      }
      if (panel.outline) {
        all.push({ lines: this.lines(panel.outline, slice), colour: () => OUTLINE, width: 5, numbered: true });
      }
      const groups = panel.beyond?.groups;
      if (groups) all.push({ lines: boundaries(slice, groups), colour: () => OUTLINE, width: 2 });
      return all;
    }

    // Read-out ..........................................................................................................
    showBar(panel) {
      const range = colourRange(panel.kind, this.viewOf(panel));
      if (panel.bar) panel.bar.hidden = !range;
      if (!range || !panel.value) return; // it has no bar, or was not yet on the screen
      if (!panel.bar) {
        panel.bar = makeBar();
        panel.value.before(panel.bar);
      }
      const [low, high] = range, unit = unitOf({ kind: panel.kind, unit: this.volumes[panel.layers[0]]?.unit });
      const { below, above } = panel.beyond || {};
      panel.bar.querySelector(".low").textContent = `${below ? "≤ " : ""}${withMinus(low)}`;
      panel.bar.querySelector(".high").textContent = `${above ? "≥ " : ""}${low < 0 ? "+" : ""}${high} ${unit}`;
      panel.bar.title = below || above ? "Outlined in yellow: changes beyond the colours" : "";
    }

    hover(at) {
      this.cursor = at;
      this.panels.forEach((panel) => this.read(panel));
      if (this.placeOutput) this.placeOutput.textContent = this.placeText();
    }

    /** Puts a mark on a voxel of a panel that shows its slice; hides it in others. */
    mark(panel, mark, at) {
      const slice = this.slice(panel), { scale, x, y } = this.zoomOf(panel);
      mark.hidden = !at || !panel.sources || at[slice.through] !== this.at[slice.through];
      if (mark.hidden) return;
      mark.style.left = `${(((slice.width - 0.5 - at[slice.across]) / slice.width) * scale + x) * 100}%`;
      mark.style.top = `${(((slice.height - 0.5 - at[slice.down]) / slice.height) * scale + y) * 100}%`;
    }

    /** Shows the pointer's place, and the value of its voxel in every panel. */
    read(panel) {
      if (!panel.canvases.length) return; // not yet on the screen
      this.mark(panel, panel.cross, this.cursor);
      this.mark(panel, panel.pin, this.pinned);
      if (panel.main) return; // one read-out for all its planes
      const { cursor } = this, mark = panel.bar?.querySelector("b");
      panel.value.textContent = "";
      if (mark) mark.hidden = true;
      if (!cursor || !panel.sources) return;
      const stored = panel.layers.map((layer) => this.stored(layer, cursor));
      if (stored.includes(undefined)) return; // another plane's voxel, not loaded
      const texts = panel.sources.map((source, i) => valueText(source, stored[i]));
      panel.value.textContent = texts.length > 1 ? `before ${texts[0]}, after ${texts[1]}` : texts[0];
      panel.value.title = `voxel ${cursor.join(", ")} (right, front, up)`;
      const range = colourRange(panel.sources[0].kind, this.viewOf(panel));
      if (mark && range && stored[0] !== NO_VALUE) {
        const share = (stored[0] * panel.sources[0].step - range[0]) / (range[1] - range[0]);
        mark.hidden = false;
        mark.style.left = `${clamp(share, 0, 1) * 100}%`;
      }
    }

    /** The stored value of a layer at a voxel; undefined while it is not loaded. */
    stored(layer, at) {
      const [from, to] = [layer].flat().map((key) => voxels.valueAt(this.grid, key, at));
      if (!Array.isArray(layer)) return from;
      return from === undefined || to === undefined ? undefined : to - from;
    }

    /** Label and zone under the pointer. */
    placeText() {
      const label = this.cursor && this.mask ? this.stored(this.mask, this.cursor) : undefined;
      if (label === undefined) return "";
      const zone = this.zones ? this.stored(this.zones, this.cursor) : 0;
      return `${config.labels[label]?.[1] || "outside the mask"}${zone ? `: ${this.zone_names[zone - 1]}` : ""}`;
    }
  }

  // --- the page -------------------------------------------------------------------------------------------------------
  /** Names of the bricks that the pictures on the screen need. */
  function neededNames() {
    const panels = viewers.flatMap((viewer) => viewer.panels.filter((panel) => panel.visible));
    return new Set(panels.flatMap((panel) => panel.viewer.namesOf(panel, panel.viewer.drawnSlice(panel))));
  }

  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const viewer = viewers.find(({ panels }) => panels.some(({ figure }) => figure === target));
      const shown = () => viewer.panels.filter(({ figure }) => figure === target);
      for (const panel of shown()) panel.visible = isIntersecting;
      if (isIntersecting) {
        viewer.furnish(shown()[0]);
        viewer.spread(shown()[0]);
      }
      for (const panel of shown()) {
        if (isIntersecting) setTimeout(() => viewer.draw(panel), SETTLE_MS);
        else viewer.release(panel);
      }
    }
  }, { rootMargin: MARGIN });

  /** The viewer of an element with `data-viewer`, made where it is not yet there. */
  function viewerOf(root) {
    const known = viewers.find((viewer) => viewer.root === root);
    if (known) return known;
    const viewer = new SliceViewer(root);
    viewers.push(viewer);
    viewers.sort((one, two) => roots.indexOf(one.root) - roots.indexOf(two.root));
    for (const { figure } of viewer.panels) observer.observe(figure);
    nearing.unobserve(root);
    return viewer;
  }

  const nearing = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) if (isIntersecting) viewerOf(target);
  }, { rootMargin: MARGIN });

  /** Shows the settings of the view, and draws everything anew. */
  function update() {
    const range = document.getElementById("window-range"), limit = document.getElementById("limit");
    if (range) range.textContent = `${config.windows[view.window].map(withMinus).join(" to ")} ${config.unit || "HU"}`;
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
    remember();
  }

  /** Shows what an address asks for, as far as the page has it. */
  function apply(wanted) {
    if (wanted.plane in config.planes || wanted.plane === "three") choose("plane", wanted.plane);
    if (wanted.window) choose("window", wanted.window);
    view.limit = wanted.limit || config.limit;
    if (box("overlay")) box("overlay").checked = wanted.overlay > 0;
    if (box("overlay") && wanted.overlay) box("opacity").value = wanted.overlay * 100;
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
    box("opacity")?.addEventListener("input", () => { readBoxes(); remember(); });
    onChange("smooth", (smooth) => document.body.classList.toggle("sharp", !smooth.checked));
    for (const name of ["diverging", "sequential"]) {
      document.body.style.setProperty(`--${name}`, `linear-gradient(90deg, ${config[name].join(", ")})`);
    }
  }

  bindControls();
  readBoxes();
  for (const root of roots) nearing.observe(root);
  bindPage({ view, roots, viewerOf, choose, tick, apply });
  Object.assign(Mask2CT, { view, viewers, viewerOf });
})();
