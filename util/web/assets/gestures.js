/**
 * What the pointer and the keys do with the pictures: slices, window, zoom, enlarging, help, and the view in the address.
 *
 * The viewer (viewer.js) calls `bindStage` for each picture and `bindPage` once. All state that is shared lies in its
 * `view`; a viewer's place and zoom lie in the `SliceViewer`.
 */
"use strict";
(() => {
  const { config } = Mask2CT;
  const CLICK_PX = 4; // a pointer that moved less has clicked
  const NOTCH = 50; // of the wheel, in pixels; touchpads send less, more often
  const TOUCH_PX = 12; // of a finger's way for a slice
  const MAX_ZOOM = 12;
  const REMEMBER_MS = 300; // the address follows once the hand rests; browsers limit how often it may change
  const PAGE_SLICES = 10;
  const WINDOW_KEYS = Object.fromEntries(
    Object.entries({ l: "lung", m: "mediastinum", b: "bone", w: "model" }).filter(([, name]) => name in config.windows),
  );
  const isChest = "lung" in config.windows;
  const PLANE_KEYS = { a: "axial", c: "coronal", s: "sagittal", t: "three" };
  const HELP = [
    ["Wheel, ↑ ↓ ← →", "next and previous slice (pointer on a picture)"],
    ["Page ↑ ↓, Home, End", `ten slices; first and last slice of the ${isChest ? "lungs" : "labels"}`],
    ["Drag", "window: to the side its width, up and down its level"],
    ...(isChest ? [["L, M, B, W", "window of lung, mediastinum, bone; the model's whole window"]] : []),
    ["Ctrl + wheel, + and −", "zoom"],
    ["Shift + drag, middle button", "move the zoomed picture"],
    ["0", "back to the whole picture"],
    ["Touch", "one finger across: slices; two: zoom and move; a tap enlarges"],
    ["Click, F", "enlarge to the screen; Esc goes back"],
    ["1 to 9", "that picture of the row, while one is enlarged"],
    ["A, C, S, T", "axial, coronal, sagittal, three planes"],
    ["Click in three planes", "moves the crosshair; X hides it"],
    ["O", "outlines of the mask"],
    ["D", `differences on the ${isChest ? "CT" : "volume"}`],
    ["?", "this help"],
  ];
  let pointed = null; // the panel under the pointer
  let page = null; // {view, roots, viewerOf, choose, tick, apply} of the viewer

  const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

  function element(tag, properties, ...children) {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  }

  // --- slices, window, zoom -------------------------------------------------------------------------------------------
  function step(panel, slices) {
    const { viewer } = panel, plane = viewer.plane(panel);
    viewer.move(plane, viewer.at[config.planes[plane][2]] + slices);
  }

  /** Goes to the first (0) or last (1) slice that holds something. */
  function toEnd(panel, end) {
    const { viewer } = panel, plane = viewer.plane(panel);
    viewer.move(plane, viewer.grid.extent[config.planes[plane][2]][end]);
  }

  /** Where the pointer is, as shares of the picture's frame. */
  function shares(panel, event) {
    const box = panel.stage.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }

  /** Zooms by a factor; the place at `x`, `y` (shares of the frame) stays where it is. */
  function zoom(panel, factor, [x, y] = [0.5, 0.5]) {
    const { viewer } = panel, old = viewer.zoomOf(panel), scale = clamp(old.scale * factor, 1, MAX_ZOOM);
    const move = (at, offset) => clamp(at - ((at - offset) / old.scale) * scale, 1 - scale, 0);
    viewer.setZoom(panel, { scale, x: move(x, old.x), y: move(y, old.y) });
  }

  function pan(panel, start, dx, dy) {
    const { width, height } = panel.stage.getBoundingClientRect(), { scale } = start;
    const x = clamp(start.x + dx / width, 1 - scale, 0), y = clamp(start.y + dy / height, 1 - scale, 0);
    panel.viewer.setZoom(panel, { scale, x, y });
  }

  /** Two fingers: their distance zooms, their middle moves the picture. */
  function pinch(panel, before, after) {
    const middle = ([one, two]) => ({ clientX: (one.clientX + two.clientX) / 2, clientY: (one.clientY + two.clientY) / 2 });
    const apart = ([one, two]) => Math.max(1, Math.hypot(one.clientX - two.clientX, one.clientY - two.clientY));
    const from = middle(before), to = middle(after);
    zoom(panel, apart(after) / apart(before), shares(panel, to));
    pan(panel, panel.viewer.zoomOf(panel), to.clientX - from.clientX, to.clientY - from.clientY);
  }

  function dragWindow([low, high], dx, dy) {
    const level = (low + high) / 2 + (dy * (high - low)) / 400, width = Math.max(10, (high - low) * Math.exp(dx / 250));
    config.windows.own = [Math.round(level - width / 2), Math.round(level + width / 2)];
    page.choose("window", "own");
  }

  // --- the pointer ----------------------------------------------------------------------------------------------------
  /** What a press begins: a function of the way (dx, dy) in pixels, or null. */
  function beginDrag(panel, event) {
    const { viewer } = panel;
    if (event.button === 1 || (event.button === 0 && event.shiftKey)) {
      const start = viewer.zoomOf(panel);
      return (dx, dy) => pan(panel, start, dx, dy);
    }
    if (event.button !== 0 || panel.kind === "wipe") return null; // there, the line follows the pointer
    if (event.pointerType === "touch") {
      const plane = viewer.plane(panel), first = viewer.at[config.planes[plane][2]];
      return (dx, dy) => viewer.move(plane, first + Math.round((dx - dy) / TOUCH_PX));
    }
    const range = config.windows[page.view.window];
    return (dx, dy) => dragWindow(range, dx, dy);
  }

  function bindStage(panel) {
    const { stage, viewer } = panel;
    let press = null, moved = false, turned = 0;
    const fingers = new Map(); // by pointer: where it is
    stage.addEventListener("pointerdown", (event) => {
      moved = false;
      if (event.pointerType === "touch") fingers.set(event.pointerId, event);
      if (fingers.size === 2) { // they zoom and move; nothing else
        press = null;
        stage.setPointerCapture(event.pointerId);
        return;
      }
      press = { x: event.clientX, y: event.clientY, act: beginDrag(panel, event) };
      if (event.button === 1) event.preventDefault(); // not the browser's own scrolling
      if (press.act) stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", (event) => {
      pointed = panel;
      if (fingers.has(event.pointerId)) {
        const before = [...fingers.values()];
        fingers.set(event.pointerId, event);
        if (fingers.size === 2) {
          moved = true;
          pinch(panel, before, [...fingers.values()]);
          return;
        }
      }
      if (press) {
        const dx = event.clientX - press.x, dy = event.clientY - press.y;
        moved ||= Math.hypot(dx, dy) >= CLICK_PX;
        if (moved) press.act?.(dx, dy);
      }
      viewer.hover(viewer.pick(panel, event));
    });
    for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => { press = null; fingers.delete(event.pointerId); });
    stage.addEventListener("pointerleave", () => {
      if (pointed === panel) pointed = null;
      viewer.hover(null);
    });
    stage.addEventListener("click", (event) => {
      if (moved) return;
      const voxel = viewer.pick(panel, event);
      if (viewer.onPick) viewer.onPick(voxel);
      else if (viewer.isCrossed(panel)) viewer.go(voxel || viewer.at);
      else enlarge(panel);
    });
    stage.addEventListener("wheel", (event) => {
      event.preventDefault(); // beside the pictures, the wheel scrolls the page
      const delta = event.deltaY || event.deltaX;
      if (event.ctrlKey || event.metaKey) {
        zoom(panel, Math.exp(-clamp(delta, -100, 100) / 300), shares(panel, event));
        return;
      }
      turned += clamp(delta, -NOTCH, NOTCH);
      if (Math.abs(turned) < NOTCH) return;
      step(panel, turned < 0 ? 1 : -1);
      turned = 0;
    }, { passive: false });
  }

  // --- one picture on the whole screen --------------------------------------------------------------------------------
  const large = { dialog: null, panel: null, gap: null };

  function enlargedDialog() {
    const title = element("strong", {}), place = element("output", {});
    const windows = element("span", { className: "buttons" });
    for (const button of document.querySelectorAll("button[data-set=window]")) windows.append(button.cloneNode(true));
    const back = element("button", { type: "button", className: "back", textContent: "Back (Esc)" });
    const dialog = element("dialog", { className: "enlarged" }, element("header", {}, title, place, windows, back));
    windows.addEventListener("click", ({ target }) => target.dataset.set && page.choose("window", target.dataset.value));
    back.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", putBack);
    document.body.append(dialog);
    return Object.assign(dialog, { title_: title, place });
  }

  function putBack() {
    if (!large.panel) return;
    large.gap.replaceWith(large.panel.figure);
    large.panel = null;
  }

  /** Shows a picture on the whole screen; the one that is there goes back to its row. */
  function enlarge(panel) {
    large.dialog ||= enlargedDialog();
    const main = panel.main || panel, same = large.panel === main;
    putBack();
    if (same) {
      large.dialog.close();
      return;
    }
    const { figure, viewer } = main;
    large.gap = element("div", { className: "panel gap" });
    large.gap.style.height = `${figure.offsetHeight}px`;
    large.panel = main;
    figure.replaceWith(large.gap);
    large.dialog.append(figure);
    large.dialog.title_.textContent = viewer.root.querySelector("h2")?.textContent || document.title;
    if (!large.dialog.open) large.dialog.showModal();
    page.choose("window", page.view.window);
    viewer.showPosition();
  }

  // --- keys -----------------------------------------------------------------------------------------------------------
  function help() {
    const rows = HELP.map(([keys, text]) => element("tr", {}, element("th", { scope: "row", textContent: keys }),
      element("td", { textContent: text })));
    const close = element("button", { type: "button", textContent: "Close (Esc)", className: "back" });
    const dialog = element("dialog", { className: "help card" }, element("h2", { textContent: "Pointer and keys" }),
      element("table", {}, element("tbody", {}, ...rows)), close);
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    document.body.append(dialog);
    dialog.showModal();
  }

  /** What the keys do with the picture under the pointer, or the enlarged one. */
  const panelKeys = {
    ArrowUp: (panel) => step(panel, 1), ArrowRight: (panel) => step(panel, 1),
    ArrowDown: (panel) => step(panel, -1), ArrowLeft: (panel) => step(panel, -1),
    PageUp: (panel) => step(panel, PAGE_SLICES), PageDown: (panel) => step(panel, -PAGE_SLICES),
    Home: (panel) => toEnd(panel, 0), End: (panel) => toEnd(panel, 1),
    "+": (panel) => zoom(panel, 1.25), "=": (panel) => zoom(panel, 1.25), "-": (panel) => zoom(panel, 0.8),
    0: (panel) => zoom(panel, 0), f: enlarge,
  };
  const pageKeys = {
    "?": help, o: () => page.tick("lines"), d: () => page.tick("overlay"), x: () => page.tick("hairs"),
    ...Object.fromEntries(Object.entries(WINDOW_KEYS).map(([key, name]) => [key, () => page.choose("window", name)])),
    ...Object.fromEntries(Object.entries(PLANE_KEYS).map(([key, name]) => [key, () => page.choose("plane", name)])),
  };

  function onKey(event) {
    const { target, key } = event, range = target.type === "range";
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog.help")) return;
    if (target.matches("select, textarea, input:not([type=range], [type=checkbox])")) return;
    const panel = large.panel || pointed, name = key.length === 1 ? key.toLowerCase() : key;
    if (panel && panelKeys[name] && !(range && name.length > 1)) {
      event.preventDefault();
      panelKeys[name](panel);
    } else if (large.panel && name >= "1" && name <= "9") {
      const figure = large.gap.parentElement.querySelectorAll(":scope > .panel")[Number(name) - 1];
      const next = large.panel.viewer.panels.find((panel) => !panel.main && panel.figure === figure);
      if (next) enlarge(next);
    } else {
      pageKeys[name]?.();
    }
  }

  // --- the view in the address ----------------------------------------------------------------------------------------
  let waiting = 0;

  const nameOf = (root) => root.id || String(page.roots.indexOf(root));

  /** Writes the view into the address, so that a link to it shows the same. */
  function remember(viewer) {
    if (viewer) page.last = viewer;
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const { view, last } = page, own = config.windows[view.window].join(",");
      const state = { plane: view.plane, window: view.window === "own" ? own : view.window, limit: view.limit };
      if (last) Object.assign(state, { case: nameOf(last.root), at: last.at.join(",") });
      if (view.overlay) state.overlay = view.overlay;
      history.replaceState(null, "", `#${new URLSearchParams(state)}`);
    }, REMEMBER_MS);
  }

  /** Shows the view of the address; addresses may be damaged, so that nothing in them is trusted. */
  function recall() {
    const state = new URLSearchParams(location.hash.slice(1)), numbers = (name) => state.get(name)?.split(",").map(Number);
    if (!state.has("plane") && !state.has("at")) return; // a plain link to a part of the page
    const range = numbers("window"), limit = Number(state.get("limit")), overlay = Number(state.get("overlay"));
    if (range?.length === 2 && range[0] < range[1]) config.windows.own = range;
    const known = Object.hasOwn(config.windows, state.get("window"));
    page.apply({
      plane: state.get("plane"), window: known ? state.get("window") : config.windows.own && "own",
      limit: limit > 0 ? limit : 0, overlay: overlay > 0 && overlay <= 1 ? overlay : 0,
    });
    const root = page.roots.find((each) => nameOf(each) === state.get("case")), at = numbers("at");
    if (!root) return;
    const viewer = page.viewerOf(root);
    if (at?.length === 3 && at.every(Number.isInteger)) viewer.go(at);
    viewer.root.scrollIntoView();
  }

  function bindPage(ofViewer) {
    page = ofViewer;
    document.addEventListener("keydown", onKey);
    window.addEventListener("hashchange", recall);
    const button = element("button", { type: "button", className: "back", textContent: "? Keys" });
    button.addEventListener("click", help);
    document.querySelector(".toolbar")?.append(button);
    recall();
  }

  /** Says above an enlarged picture of a viewer which slice it shows. */
  function showPlace(viewer) {
    if (large.panel?.viewer !== viewer) return;
    const plane = viewer.plane(large.panel);
    large.dialog.place.textContent = `${plane} ${viewer.placeIn(plane)}`;
  }

  Object.assign(Mask2CT, { bindStage, bindPage, enlarge, remember, showPlace });
})();
