/**
 * The voxels of a page: bricks of volumes, loaded when a slice needs them, and the values of slices.
 *
 * A brick comes from a script of its own, `<config.voxels><key>.<number>.js`, because a page opened from disk may load
 * scripts but not fetch files. The script calls `addBrick`. See util/web/web_data.py for what it holds.
 */
"use strict";
(() => {
  const { config } = Mask2CT;
  const MAX_BYTES = 256 * 2 ** 20; // of bricks kept in memory though no picture on the screen needs them
  const MAX_WORKERS = 4;
  const MAX_LOADING = 12; // at a time, so that what is looked at does not wait behind what may be
  const entries = new Map(); // by name: {key, number, promise, resolve, reject, voxels, used}
  const waiting = new Set(); // names of bricks that are needed
  let later = []; // names of bricks that will be needed soon
  let loading = 0, bytes = 0, uses = 0;

  const nameOf = (key, number) => `${key}.${number}`;
  const addressOf = (name) => `${config.voxels}${name.split("/").map(encodeURIComponent).join("/")}.js`;

  // --- decoding -------------------------------------------------------------------------------------------------------
  /** Base64 of gzip of int16 values as an array. Their low bytes come first, then their high bytes. */
  async function decode(base64) {
    if (typeof DecompressionStream === "undefined") {
      throw new Error("This browser is too old for these pictures (it lacks DecompressionStream).");
    }
    const packed = Uint8Array.fromBase64?.(base64) ?? Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const { readable, writable } = new DecompressionStream("gzip"), writer = writable.getWriter();
    const written = writer.write(packed).then(() => writer.close());
    const [buffer] = await Promise.all([new Response(readable).arrayBuffer(), written]);
    const planes = new Uint8Array(buffer), count = planes.length / 2, voxels = new Int16Array(count);
    for (let i = 0; i < count; i++) voxels[i] = planes[i] | (planes[count + i] << 8);
    return voxels;
  }

  /** What a worker does: it decodes one text after another, so that the pictures do not wait meanwhile. */
  function work() {
    self.onmessage = async ({ data: [id, base64] }) => {
      try {
        const voxels = await decode(base64);
        postMessage([id, voxels, ""], [voxels.buffer]);
      } catch (error) {
        postMessage([id, null, error.message]);
      }
    };
  }

  const jobs = new Map(); // by id: what is to be done with a worker's result
  let workers = null, jobCount = 0;

  /** Workers, made when they are first needed; none where the browser does not allow them. */
  function startWorkers() {
    const count = Math.max(1, Math.min(MAX_WORKERS, (navigator.hardwareConcurrency || 2) - 1));
    const script = `data:text/javascript,${encodeURIComponent(`${decode}\n(${work})()`)}`;
    try {
      workers = Array.from({ length: count }, () => new Worker(script));
    } catch {
      workers = [];
    }
    for (const worker of workers) {
      worker.onmessage = ({ data: [id, voxels, problem] }) => {
        const { resolve, reject } = jobs.get(id);
        jobs.delete(id);
        if (voxels) resolve(voxels);
        else reject(new Error(problem));
      };
      worker.onerror = () => { // not allowed after all: the page decodes by itself
        workers = [];
        for (const { base64, resolve, reject } of jobs.values()) decode(base64).then(resolve, reject);
        jobs.clear();
      };
    }
  }

  /** Decodes in a worker, or here where there is none. */
  function decodeAside(base64) {
    if (!workers) startWorkers();
    if (!workers.length) return decode(base64);
    const id = jobCount++;
    return new Promise((resolve, reject) => {
      jobs.set(id, { base64, resolve, reject });
      workers[id % workers.length].postMessage([id, base64]);
    });
  }

  // --- loading --------------------------------------------------------------------------------------------------------
  function pump() {
    while (loading < MAX_LOADING && waiting.size + later.length) {
      const [name = later.shift()] = waiting, entry = entryOf(name);
      waiting.delete(name);
      if (!entry.begun) begin(name, entry);
    }
  }

  function entryOf(name) {
    if (!entries.has(name)) {
      const entry = { begun: false, voxels: null, used: 0 };
      entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
      entry.promise.catch(() => {}); // who waits for it says so
      entries.set(name, entry);
    }
    return entries.get(name);
  }

  function begin(name, entry) {
    const script = document.createElement("script"), end = () => { loading -= 1; script.remove(); pump(); };
    entry.begun = true;
    loading += 1;
    script.src = addressOf(name);
    script.onload = () => entry.promise.then(end, end);
    script.onerror = () => { entry.reject(new Error(`The voxels are missing: ${addressOf(name)}`)); end(); };
    document.head.append(script);
  }

  async function addBrick(key, number, base64) {
    const entry = entryOf(nameOf(key, number));
    try {
      entry.voxels = await decodeAside(base64);
      bytes += entry.voxels.byteLength;
      entry.resolve();
    } catch (error) {
      entry.reject(error);
    }
  }

  /** Loads bricks by name; the promise holds once all are there. */
  function load(names) {
    const promises = names.map((name) => {
      const entry = entryOf(name);
      if (!entry.begun) waiting.add(name);
      return entry.promise;
    });
    pump();
    return Promise.all(promises);
  }

  /** Forgets the bricks that wait and are no longer `needed` (names), because another slice is wanted now. */
  function forget(needed) {
    for (const name of waiting) if (!needed.has(name)) waiting.delete(name);
  }

  /** Loads bricks when nothing else is waiting; those of an earlier call that have not begun are forgotten. */
  function loadLater(names) {
    later = names.filter((name) => !entries.get(name)?.begun);
    pump();
  }

  /** Drops the bricks not used for longest, until those that are not `needed` (names) fit into `MAX_BYTES`. */
  function trim(needed) {
    if (bytes <= MAX_BYTES) return;
    const unused = [...entries].filter(([name, { voxels }]) => voxels && !needed.has(name));
    unused.sort(([, one], [, two]) => one.used - two.used);
    let excess = unused.reduce((sum, [, { voxels }]) => sum + voxels.byteLength, 0) - MAX_BYTES;
    for (const [name, { voxels }] of unused) {
      if (excess <= 0) return;
      excess -= voxels.byteLength;
      bytes -= voxels.byteLength;
      entries.delete(name);
    }
  }

  // --- bricks and slices ----------------------------------------------------------------------------------------------
  const counts = ({ shape, brick }) => shape.map((n, axis) => Math.ceil(n / brick[axis]));

  const layers = new WeakMap(); // by grid: bricks of a layer, by axis and place

  /** The bricks of a grid through which a slice goes: `number`, first voxel `low` and `size` of each. */
  function bricksOf(grid, { through, index }) {
    const layer = Math.floor(index / grid.brick[through]), name = `${through} ${layer}`;
    if (!layers.has(grid)) layers.set(grid, new Map());
    const known = layers.get(grid);
    if (!known.has(name)) known.set(name, layerOf(grid, through, layer));
    return known.get(name);
  }

  function layerOf(grid, through, layer) {
    const [columns, rows, heights] = counts(grid), all = [];
    for (let z = 0; z < heights; z++) {
      for (let y = 0; y < rows; y++) {
        for (let x = 0; x < columns; x++) {
          const place = [x, y, z];
          if (place[through] !== layer) continue;
          const low = place.map((k, axis) => k * grid.brick[axis]);
          const size = low.map((k, axis) => Math.min(grid.brick[axis], grid.shape[axis] - k));
          all.push({ number: x + columns * (y + rows * z), low, size });
        }
      }
    }
    return all;
  }

  /** Names of the bricks of a volume that a slice needs. */
  const namesOf = (grid, key, slice) => bricksOf(grid, slice).map(({ number }) => nameOf(key, number));

  const areThere = (names) => names.every((name) => entries.get(name)?.voxels);

  /** The stored values of a slice, pixel by pixel as on the picture; its bricks have to be there. */
  function valuesOf(grid, key, slice) {
    const { across, down, through, index, width, height } = slice, values = new Int16Array(width * height);
    uses += 1;
    for (const { number, low, size } of bricksOf(grid, slice)) {
      const entry = entries.get(nameOf(key, number)), { voxels } = entry, stride = [1, size[0], size[0] * size[1]];
      entry.used = uses;
      const first = (index - low[through]) * stride[through];
      for (let d = 0; d < size[down]; d++) {
        let p = (height - 1 - low[down] - d) * width + (width - 1 - low[across]), i = first + d * stride[down];
        for (let a = 0; a < size[across]; a++, p--, i += stride[across]) values[p] = voxels[i];
      }
    }
    return values;
  }

  /** The stored value of one voxel; undefined while its brick is not there. */
  function valueAt(grid, key, at) {
    const [columns, rows] = counts(grid), [x, y, z] = at.map((k, axis) => Math.floor(k / grid.brick[axis]));
    const voxels = entries.get(nameOf(key, x + columns * (y + rows * z)))?.voxels;
    if (!voxels) return undefined;
    const low = [x, y, z].map((k, axis) => k * grid.brick[axis]);
    const [width, depth] = low.map((k, axis) => Math.min(grid.brick[axis], grid.shape[axis] - k));
    const [a, b, c] = at.map((k, axis) => k - low[axis]);
    return voxels[a + width * (b + depth * c)];
  }

  Object.assign(Mask2CT, { addBrick, voxels: { load, forget, loadLater, trim, namesOf, areThere, valuesOf, valueAt } });
})();
