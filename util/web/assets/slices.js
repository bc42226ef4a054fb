/**
 * Slices as pixels: what the slice viewer (viewer.js) is made of. These functions hold no state but a cache of colours.
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

  /** The unit of values of this kind; a volume may have its own. */
  const unitOf = ({ kind, unit }) => unit || { score: "spreads", share: "%" }[kind] || config.unit || "HU";

  /** The read-out of a stored value of a volume. */
  function valueText(source, stored) {
    const { kind, step } = source;
    if (stored === NO_VALUE) return config.no_value || "no lung";
    if (kind === "mask") return stored === 0 ? "background" : config.labels[stored]?.[1] || `label ${stored}`;
    const value = stored * step, digits = step < 1 ? 1 : 0;
    const hasSign = kind === "difference" || kind === "score";
    return `${hasSign ? signed(value, digits) : withMinus(value.toFixed(digits))} ${unitOf(source)}`;
  }

  // --- places ---------------------------------------------------------------------------------------------------------
  /**
   * How the slice of a plane through the voxel `at` lies on the picture.
   *
   * Returns the axes `across`, `down` and `through` the picture and the `index` along the last one, the letters at its
   * `edges`, its `width` and `height` in pixels, `aspect` (width by height in mm), and the function `voxel(column, row)`
   * (the three coordinates of a pixel).
   */
  function sliceGeometry(grid, plane, at) {
    const [across, down, through, edges] = config.planes[plane], width = grid.shape[across], height = grid.shape[down];
    return {
      across, down, through, index: at[through], edges, width, height,
      aspect: (width * grid.spacing[across]) / (height * grid.spacing[down]),
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
    if (kind === "share") return [0, config.share_limit];
    return kind === "spread" ? [0, view.limit] : null;
  }

  const tables = new Map(); // pixels of all stored values, by what decides them

  /** The pixel of every stored value `v` of a volume of this kind, at `v + 32768`. */
  function pixelTable({ kind, step }, view) {
    const [low, high] = colourRange(kind, view) || config.windows[view.window], key = [kind, step, low, high].join();
    if (tables.has(key)) return tables.get(key);
    const palette = { difference: palettes.diverging, score: palettes.diverging, spread: palettes.sequential, share: palettes.sequential }[kind];
    const table = new Uint32Array(2 ** 16);
    for (let i = 0; i < table.length; i++) {
      const stored = i + NO_VALUE, shade = Math.max(0, Math.min(255, Math.round(((stored * step - low) / (high - low)) * 255)));
      if (kind === "mask") table[i] = stored === 0 ? background : labelPixels.get(stored) ?? 0xffffffff;
      else table[i] = palette ? palette[shade] : 0xff000000 | (shade * 0x010101);
    }
    if (kind !== "mask") table[0] = background; // no value
    if (tables.size > 30) tables.clear(); // a drag of the window leaves many
    tables.set(key, table);
    return table;
  }

  /** Pixel `below` under `above` of this opacity. */
  function mix(below, above, opacity) {
    const channel = (shift) => Math.round(((below >> shift) & 255) * (1 - opacity) + ((above >> shift) & 255) * opacity);
    return (0xff000000 | (channel(16) << 16) | (channel(8) << 8) | channel(0)) >>> 0;
  }

  // --- drawing --------------------------------------------------------------------------------------------------------
  const images = new WeakMap(); // by canvas: what is painted on it

  function imageOf(canvas, context) {
    const { width, height } = canvas, known = images.get(canvas);
    if (known?.width === width && known.height === height) return known;
    images.set(canvas, context.createImageData(width, height));
    return images.get(canvas);
  }

  /**
   * Paints a slice from a source: its `kind`, `step` and `values` as stored, pixel by pixel.
   *
   * A source with `under` (another source) lies on it, as opaque as its values are large: from no change, which is clear,
   * to half of the range, which has the whole opacity of the view.
   */
  function paint(canvas, { width, height }, source, view) {
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d"), image = imageOf(canvas, context);
    const pixels = new Uint32Array(image.data.buffer), { values, step, under } = source, table = pixelTable(source, view);
    if (under) {
      const ground = pixelTable(under, view), below = under.values, full = colourRange(source.kind, view)[1] / 2;
      for (let p = 0; p < pixels.length; p++) {
        const stored = values[p], opacity = stored === NO_VALUE ? 0 : view.overlay * Math.min(1, Math.abs(stored * step) / full);
        pixels[p] = mix(ground[below[p] - NO_VALUE], table[stored - NO_VALUE], opacity);
      }
    } else {
      for (let p = 0; p < pixels.length; p++) pixels[p] = table[values[p] - NO_VALUE];
    }
    context.putImageData(image, 0, 0);
  }

  /** How much finer than its pixels the lines of a slice are drawn; slices may say so themselves. */
  const fineness = ({ width, height, fine }) => fine || Math.max(1, Math.round(640 / Math.max(width, height)));

  /**
   * Lines between the pixels of different groups (0: none), as long as they run straight.
   *
   * Returns a path for each group, and where its topmost pixel lies, both `fineness` times finer than the pixels.
   */
  function boundaries(slice, groups) {
    const { width, height } = slice, fine = fineness(slice), paths = new Map(), tops = new Map();
    const pathOf = (k) => paths.get(k) || paths.set(k, new Path2D()).get(k);
    const line = (k, x, y, toX, toY) => {
      if (!k) return;
      const path = pathOf(k);
      path.moveTo(x * fine, y * fine);
      path.lineTo(toX * fine, toY * fine);
    };
    for (let row = 0, p = 0, last = 0; row < height; row++) {
      for (let column = 0; column < width; column++, p++) {
        const k = groups[p];
        if (k && k !== last && !tops.has(k)) tops.set(k, [column * fine, row * fine]);
        last = k;
      }
    }
    const end = (one, two, x, y, toX, toY) => { line(one, x, y, toX, toY); line(two, x, y, toX, toY); };
    for (let row = 0; row <= height; row++) {
      let start = 0, one = 0, two = 0; // above and below the line that runs; equal where none does
      for (let column = 0, p = row * width; column < width; column++, p++) {
        const above = row > 0 ? groups[p - width] : 0, below = row < height ? groups[p] : 0;
        if ((above === below && one === two) || (above === one && below === two)) continue;
        if (one !== two) end(one, two, start, row, column, row);
        start = column;
        one = above;
        two = below;
      }
      if (one !== two) end(one, two, start, row, width, row);
    }
    for (let column = 0; column <= width; column++) {
      let start = 0, one = 0, two = 0;
      for (let row = 0, p = column; row < height; row++, p += width) {
        const left = column > 0 ? groups[p - 1] : 0, right = column < width ? groups[p] : 0;
        if ((left === right && one === two) || (left === one && right === two)) continue;
        if (one !== two) end(one, two, column, start, column, row);
        start = row;
        one = left;
        two = right;
      }
      if (one !== two) end(one, two, column, start, column, height);
    }
    return { paths, tops };
  }

  /**
   * Draws outlines on a canvas of their own, finer than the voxels.
   *
   * Each of `outlines` has `lines` (see `boundaries`), `colour(group)`, `width` in pixels, and `numbered`: with a dark halo
   * and the group's number above it.
   */
  function drawOutlines(canvas, slice, outlines) {
    const fine = fineness(slice);
    const width = slice.width * fine, height = slice.height * fine, pen = canvas.getContext("2d");
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    else pen.clearRect(0, 0, width, height);
    const size = Math.round(canvas.width / 17);
    Object.assign(pen, { font: `bold ${size}px sans-serif`, lineCap: "square", lineJoin: "round" });
    for (const { lines: { paths, tops }, colour, width, numbered } of outlines) {
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
    config, NO_VALUE, withMinus, signed, unitOf, valueText, sliceGeometry, colourRange, paint, fineness, boundaries,
    drawOutlines,
  };
})();
