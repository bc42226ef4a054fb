/**
 * Voxels as pixels: what the slice viewer (viewer.js) is made of. These functions hold no state.
 *
 * Arrays are RAS with the first axis fastest, stored as int16 multiples of a step. Every axis runs backwards on the
 * picture (radiological display: the patient's right on the left). `Mask2CT` is the only global name.
 */
"use strict";
window.Mask2CT = (() => {
  const config = JSON.parse(document.body.dataset.config); // see `viewer_config` of util/web/viewer_parts.py
  const NO_VALUE = -32768; // stored where a voxel has no value
  const HALO = "#0b0d11"; // below numbered outlines, so that they show on white too

  /** "#rrggbb" as a pixel of a little-endian 32-bit image. */
  function pixelOf(hex) {
    const n = parseInt(hex.slice(1), 16);
    return (0xff000000 | ((n & 255) << 16) | (n & 0xff00) | (n >> 16)) >>> 0;
  }

  const background = pixelOf(config.background);
  const palettes = {
    diverging: Uint32Array.from(config.diverging, pixelOf),
    sequential: Uint32Array.from(config.sequential, pixelOf),
  };
  const labelPixels = new Map(Object.entries(config.labels).map(([k, [colour]]) => [Number(k), pixelOf(colour)]));

  // --- texts ----------------------------------------------------------------------------------------------------------
  const withMinus = (text) => String(text).replace("-", "−");

  /** A number with its sign; 0 has none. */
  function signed(value, digits = 1) {
    const text = value.toFixed(digits);
    return withMinus(Number(text) === 0 ? (0).toFixed(digits) : value > 0 ? `+${text}` : text);
  }

  /** The read-out of a stored value of a volume of this kind. */
  function valueText({ kind, step }, stored) {
    if (stored === NO_VALUE) return "no lung";
    if (kind === "mask") return stored === 0 ? "background" : config.labels[stored]?.[1] || `label ${stored}`;
    const value = stored * step, digits = step < 1 ? 1 : 0;
    if (kind === "score") return `${signed(value, digits)} spreads`;
    return `${kind === "difference" ? signed(value, digits) : withMinus(value.toFixed(digits))} HU`;
  }

  // --- voxels ---------------------------------------------------------------------------------------------------------
  /** Base64 of gzip of int16 values as an array. */
  async function decode(base64) {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("This browser is too old for these pictures (it lacks DecompressionStream).");
    }
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Int16Array(await new Response(stream).arrayBuffer());
  }

  /**
   * How the slice of a plane through the voxel `at` lies on the picture.
   *
   * Returns the axes `across`, `down` and `through` the picture, the letters at its `edges`, its `width` and `height` in
   * pixels, `aspect` (width by height in mm), `step` (what one pixel to the right adds to an index), and the functions
   * `index(column, row)` (of a pixel's voxel in the array) and `voxel(column, row)` (its three coordinates).
   */
  function sliceGeometry(grid, plane, at) {
    const [across, down, through, edges] = config.planes[plane];
    const [x, y] = grid.shape, stride = [1, x, x * y];
    const width = grid.shape[across], height = grid.shape[down];
    const first = at[through] * stride[through] + (height - 1) * stride[down] + (width - 1) * stride[across];
    return {
      across, down, through, edges, width, height, step: -stride[across],
      aspect: (width * grid.spacing[across]) / (height * grid.spacing[down]),
      index: (column, row) => first - row * stride[down] - column * stride[across],
      voxel: (column, row) => {
        const voxel = [...at];
        voxel[across] = width - 1 - column;
        voxel[down] = height - 1 - row;
        return voxel;
      },
    };
  }

  // --- colours --------------------------------------------------------------------------------------------------------
  /** Lowest and highest value of a kind's colours; null for kinds without a colour bar. */
  function colourRange(kind, view) {
    if (kind === "difference") return [-view.limit, view.limit];
    if (kind === "score") return [-config.score_limit, config.score_limit];
    return kind === "spread" ? [0, view.limit] : null;
  }

  /** A function from stored values to pixels, for a volume of this kind. */
  function colourOf({ kind, step }, view) {
    if (kind === "mask") return (v) => (v === 0 ? background : labelPixels.get(v) ?? 0xffffffff);
    const [low, high] = colourRange(kind, view) || config.windows[view.window], width = high - low;
    const shade = (v) => Math.max(0, Math.min(255, Math.round(((v * step - low) / width) * 255)));
    const palette = { difference: palettes.diverging, score: palettes.diverging, spread: palettes.sequential }[kind];
    if (palette) return (v) => (v === NO_VALUE ? background : palette[shade(v)]);
    return (v) => (v === NO_VALUE ? background : (0xff000000 | (shade(v) * 0x010101)) >>> 0);
  }

  /** Pixel `below` under `above` of this opacity. */
  function mix(below, above, opacity) {
    const channel = (shift) => Math.round(((below >> shift) & 255) * (1 - opacity) + ((above >> shift) & 255) * opacity);
    return (0xff000000 | (channel(16) << 16) | (channel(8) << 8) | channel(0)) >>> 0;
  }

  /**
   * A function from indices to pixels. A source with `under` (another source) lies on it, as opaque as its values are
   * large: from no change, which is clear, to half of the range, which has the whole opacity of the view.
   */
  function shader(source, view) {
    const colour = colourOf(source, view), { value, step, under } = source;
    if (!under) return (i) => colour(value(i));
    const below = colourOf(under, view), full = view.limit / 2;
    return (i) => {
      const stored = value(i), ground = below(under.value(i));
      if (stored === NO_VALUE) return ground;
      return mix(ground, colour(stored), view.overlay * Math.min(1, Math.abs(stored * step) / full));
    };
  }

  // --- drawing --------------------------------------------------------------------------------------------------------
  /** Paints a slice: `pixel` gives the pixel of an index. */
  function paint(canvas, slice, pixel) {
    const { width, height, step } = slice;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const pixels = new Uint32Array(image.data.buffer);
    for (let row = 0, p = 0; row < height; row++) {
      for (let column = 0, i = slice.index(0, row); column < width; column++, i += step) pixels[p++] = pixel(i);
    }
    context.putImageData(image, 0, 0);
  }

  /** Lines between the voxels of different groups: a path for each group, and where its topmost voxel lies. */
  function boundaries(slice, groupAt, fine) {
    const { width, height } = slice, paths = new Map(), tops = new Map();
    const group = (column, row) => (
      column < 0 || row < 0 || column >= width || row >= height ? 0 : groupAt(slice.index(column, row)));
    const line = (k, column, row, dx, dy) => {
      if (!k) return;
      if (!paths.has(k)) paths.set(k, new Path2D());
      paths.get(k).moveTo(column * fine, row * fine);
      paths.get(k).lineTo((column + dx) * fine, (row + dy) * fine);
    };
    for (let row = 0; row <= height; row++) {
      for (let column = 0; column <= width; column++) {
        const here = group(column, row);
        for (const [neighbour, dx, dy] of [[group(column - 1, row), 0, 1], [group(column, row - 1), 1, 0]]) {
          if (here !== neighbour) for (const k of [here, neighbour]) line(k, column, row, dx, dy);
        }
        if (here && !tops.has(here)) tops.set(here, [column * fine, row * fine]);
      }
    }
    return { paths, tops };
  }

  /**
   * Draws outlines of groups of voxels on a canvas of their own, finer than the voxels.
   *
   * Each of `outlines` has `group(index)` (0: none), `colour(group)`, `width` in pixels, and `numbered`: with a dark halo
   * and the group's number above it.
   */
  function drawOutlines(canvas, slice, outlines) {
    const fine = Math.max(2, Math.ceil(640 / Math.max(slice.width, slice.height)));
    Object.assign(canvas, { width: slice.width * fine, height: slice.height * fine }); // this clears it, too
    const pen = canvas.getContext("2d"), size = Math.round(canvas.width / 17);
    Object.assign(pen, { font: `bold ${size}px sans-serif`, lineCap: "square", lineJoin: "round" });
    for (const { group, colour, width, numbered } of outlines) {
      const { paths, tops } = boundaries(slice, group, fine);
      const numbers = numbered ? [...tops].map(([k, [x, y]]) => [k, x + 4, Math.max(size, y - 8)]) : [];
      if (numbered) {
        Object.assign(pen, { strokeStyle: HALO, lineWidth: 3 * width });
        for (const path of paths.values()) pen.stroke(path);
        for (const number of numbers) pen.strokeText(...number);
      }
      pen.lineWidth = width;
      for (const [k, path] of paths) {
        pen.strokeStyle = colour(k);
        pen.stroke(path);
      }
      for (const [k, x, y] of numbers) {
        pen.fillStyle = colour(k);
        pen.fillText(k, x, y);
      }
    }
  }

  return {
    config, NO_VALUE, withMinus, signed, valueText, decode, sliceGeometry, colourRange, shader, paint, drawOutlines,
  };
})();
