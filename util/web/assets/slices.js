// Voxels as pictures: what pages with slices are made of. Arrays are RAS with the first axis fastest; every axis runs
// backwards on the picture (radiological display: the patient's right on the left).
"use strict";
window.Slices = (() => {
  const config = JSON.parse(document.body.dataset.config);
  const NOTHING = -32768; // a voxel without value
  const abgr = (hex) => { // "#rrggbb" as a pixel of a little-endian 32-bit image
    const n = parseInt(hex.slice(1), 16);
    return (0xff000000 | ((n & 255) << 16) | (n & 0xff00) | (n >> 16)) >>> 0;
  };
  const palettes = { difference: config.diverging, spread: config.sequential || [] };
  const colours = Object.fromEntries(Object.entries(palettes).map(([kind, list]) => [kind, Uint32Array.from(list, abgr)]));
  const background = abgr(config.background);
  const minus = (text) => String(text).replace("-", "−");
  const signed = (value, digits = 1) => {
    const text = value.toFixed(digits);
    return minus(Number(text) === 0 ? (0).toFixed(digits) : value > 0 ? `+${text}` : text);
  };

  async function decode(base64) {
    const text = atob(base64), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Int16Array(await new Response(stream).arrayBuffer());
  }

  // How a plane of a grid lies on the picture.
  function geometry(grid, plane) {
    const [across, down, through, edges] = config.planes[plane];
    const [x, y] = grid.shape;
    return { across, down, through, edges, w: grid.shape[across], h: grid.shape[down], stride: [1, x, x * y] };
  }

  // The voxel under a pixel of the slice through `at`.
  function index(g, at, column, row) {
    return at[g.through] * g.stride[g.through] + (g.h - 1 - row) * g.stride[g.down] + (g.w - 1 - column) * g.stride[g.across];
  }

  // Stored values as pixels: differences blue to red around white, spreads from 0, HU as greys of a window.
  function colour(kind, step, view) {
    const bounded = (v) => Math.max(0, Math.min(255, Math.round(v)));
    if (kind === "difference" || kind === "spread") {
      const palette = colours[kind], scale = (step / view.limit) * (kind === "spread" ? 255 : 127.5);
      const zero = kind === "spread" ? 0 : 127.5;
      return (v) => (v === NOTHING ? background : palette[bounded(v * scale + zero)]);
    }
    const [low, high] = config.windows[view.window], scale = 255 / (high - low);
    return (v) => {
      if (v === NOTHING) return background;
      const g = bounded((v * step - low) * scale);
      return (0xff000000 | (g << 16) | (g << 8) | g) >>> 0;
    };
  }

  // One slice; `value` gives a voxel's stored value, `tint` its pixel.
  function paint(canvas, g, at, value, tint) {
    if (canvas.width !== g.w || canvas.height !== g.h) { canvas.width = g.w; canvas.height = g.h; }
    const context = canvas.getContext("2d"), image = context.createImageData(g.w, g.h);
    const pixels = new Uint32Array(image.data.buffer);
    for (let row = 0, p = 0; row < g.h; row++) {
      let v = index(g, at, 0, row);
      for (let column = 0; column < g.w; column++, p++, v -= g.stride[g.across]) pixels[p] = tint(value(v));
    }
    context.putImageData(image, 0, 0);
  }

  // Lines around groups of voxels; each of `layers` is [group of a voxel (0: none), line width in pixels, colour of a group].
  function outline(canvas, g, at, layers) {
    const fine = Math.max(2, Math.ceil(640 / Math.max(g.w, g.h)));
    Object.assign(canvas, { width: g.w * fine, height: g.h * fine }); // this clears it, too
    const pen = canvas.getContext("2d");
    for (const [group, width, tint] of layers) {
      const paths = new Map();
      const edge = (k, x, y, dx, dy) => {
        if (!k) return;
        if (!paths.has(k)) paths.set(k, new Path2D());
        paths.get(k).moveTo(x, y);
        paths.get(k).lineTo(x + dx, y + dy);
      };
      const of = (column, row) => (
        column < 0 || row < 0 || column >= g.w || row >= g.h ? 0 : group(index(g, at, column, row)));
      for (let row = 0; row <= g.h; row++) {
        for (let column = 0; column <= g.w; column++) {
          const here = of(column, row), left = of(column - 1, row), above = of(column, row - 1);
          if (here !== left) { for (const k of [here, left]) edge(k, column * fine, row * fine, 0, fine); }
          if (here !== above) { for (const k of [here, above]) edge(k, column * fine, row * fine, fine, 0); }
        }
      }
      pen.lineWidth = width;
      pen.lineCap = "square";
      for (const [k, path] of paths) { pen.strokeStyle = tint(k); pen.stroke(path); }
    }
  }

  return { config, NOTHING, background, abgr, minus, signed, decode, geometry, index, colour, paint, outline };
})();
