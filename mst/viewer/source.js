// The scan's grey values: sent whole, or an overview whose slices follow from the server as they come into sight.
import { clamp, cut, onBox, placeIn, readVolume, scaleOf, unpackCodes } from "./slices.js";

const BLOCK = 8; // slices of one request
const AT_ONCE = 2; // requests
const MOST_KEPT = 160e6; // bytes of slices kept
const RETRY_MS = 3000;

export class ScanSource {
  // arrived(axis, first, count): called when slices of full resolution have come.
  constructor(payload, arrived = (_axis, _first, _count) => {}) {
    this.data = payload;
    this.arrived = arrived;
    this.kept = new Map(); // "axis/block" -> the codes of its slices, the one used last at the end
    this.bytes = 0;
    this.wanted = []; // blocks to ask for, the most urgent last
    this.asked = new Map(); // their requests, by block
    this.ahead = {}; // by axis: which way the last step through the slices went
    this.stopper = new AbortController();
    this.top = 0;
    this.value = (code) => code;
    this.code = (value) => value;
  }

  async read() {
    const { scan, shape, slices } = this.data;
    const sent = await readVolume(scan, scan.shape || shape);
    this.overview = { codes: sent.codes, start: [0, 0, 0], shape: scan.shape || shape, factors: scan.factors || [1, 1, 1] };
    if (!slices) {
      Object.assign(this, { top: sent.top, value: sent.value, code: sent.code });
      return this;
    }
    Object.assign(this, scaleOf(slices, 65535));
    // On one scale with the slices that follow.
    const table = Uint16Array.from({ length: sent.top + 1 }, (_, code) => clamp(Math.round(this.code(sent.value(code))), 0, 65535));
    this.overview.codes = Uint16Array.from(sent.codes, (code) => table[code]);
    return this;
  }

  // Whether the overview is all there is: nothing finer follows, and its voxels are the grid's.
  get whole() { return this.overview.factors.every((f) => f === 1); }
  get streams() { return Boolean(this.data.slices); }

  // A slice of the grid, row by row; false where it is the overview's, until the slice itself has come.
  cut(space, slice, out) {
    if (this.whole) { cut(space, slice, this.overview.codes, out); return true; }
    const { axis } = space.depth;
    const codes = this.streams ? this.slice(axis, slice) : null;
    if (codes) { lay(space, codes, this.data.shape, out); return true; }
    this.coarse(space, slice, out);
    if (this.streams) this.want(axis, slice);
    return false;
  }

  // The code at a voxel, as fine as it is known.
  at(index, axis) {
    const place = placeIn({ start: [0, 0, 0], shape: this.data.shape }, index);
    if (this.whole) return this.overview.codes[place];
    const codes = this.slice(axis, index[axis]);
    if (codes) {
      const [a, b] = others(axis);
      return codes[index[a] * this.data.shape[b] + index[b]];
    }
    const { factors, shape } = this.overview;
    return this.overview.codes[placeIn(this.overview, index.map((v, i) => Math.min(Math.floor(v / factors[i]), shape[i] - 1)))];
  }

  slice(axis, slice) {
    const key = `${axis}/${Math.floor(slice / BLOCK)}`;
    const block = this.kept.get(key);
    if (!block) return null;
    this.kept.delete(key);
    this.kept.set(key, block);
    const size = block.shape[1] * block.shape[2];
    const at = (slice - block.first) * size;
    return block.codes.subarray(at, at + size);
  }

  coarse({ depth, rows, columns }, slice, out) {
    const { codes, shape, factors } = this.overview;
    const strides = [shape[1] * shape[2], shape[2], 1];
    const along = (line) => Int32Array.from({ length: line.count }, (_, i) => {
      const at = line.flip ? line.count - 1 - i : i;
      return Math.min(Math.floor(at / factors[line.axis]), shape[line.axis] - 1) * strides[line.axis];
    });
    const base = Math.min(Math.floor(slice / factors[depth.axis]), shape[depth.axis] - 1) * strides[depth.axis];
    const right = along(columns);
    let pixel = 0;
    for (const down of along(rows)) for (const step of right) out[pixel++] = codes[base + down + step];
  }

  // Asks for a slice, and for those that come next the way one scrolls.
  want(axis, slice) {
    const block = Math.floor(slice / BLOCK);
    const last = this.ahead[axis]?.block ?? block;
    const way = block === last ? this.ahead[axis]?.way ?? 1 : Math.sign(block - last);
    this.ahead[axis] = { block, way };
    const most = Math.ceil(this.data.shape[axis] / BLOCK);
    const near = [block + way * 2, block + way, block].filter((b) => b >= 0 && b < most).map((b) => `${axis}/${b}`);
    this.wanted = [...this.wanted.filter((key) => !near.includes(key)), ...near.filter((key) => !this.kept.has(key) && !this.asked.has(key))].slice(-12);
    this.next();
  }

  next() {
    while (this.asked.size < AT_ONCE && this.wanted.length) {
      const key = this.wanted.pop();
      if (this.kept.has(key) || this.asked.has(key)) continue;
      this.request(key);
    }
  }

  // Whether a block has come.
  request(key) {
    const asking = this.ask(key).then(() => true, (error) => {
      if (!this.stopper.signal.aborted) console.error(error);
      return false;
    });
    this.asked.set(key, asking);
    return asking;
  }

  async ask(key) {
    const [axis, block] = key.split("/").map(Number);
    const { shape, slices } = this.data;
    const first = block * BLOCK, count = Math.min(BLOCK, shape[axis] - first);
    try {
      const answer = await fetch(`${slices.url}/${axis}/${first}/${count}`, { signal: this.stopper.signal });
      if (!answer.ok) throw new Error(`slices did not come: ${answer.status}`);
      const [a, b] = others(axis);
      const size = [count, shape[a], shape[b]];
      const codes = unpackCodes(new Uint8Array(await answer.arrayBuffer()), size, 16, true);
      this.keep(key, { codes, first, shape: size });
      this.asked.delete(key);
      this.arrived(axis, first, count);
    } catch (error) {
      // Not at once: a server that is gone is left alone for a while. Then what is in sight asks again.
      if (!this.stopper.signal.aborted) {
        setTimeout(() => {
          this.asked.delete(key);
          this.arrived(axis, first, count);
        }, RETRY_MS);
      }
      throw error;
    } finally {
      this.next();
    }
  }

  keep(key, block) {
    this.kept.set(key, block);
    this.bytes += block.codes.byteLength;
    for (const [old, { codes }] of this.kept) {
      if (this.bytes <= MOST_KEPT || old === key) break;
      this.kept.delete(old);
      this.bytes -= codes.byteLength;
    }
  }

  // The codes of a box of the grid at full resolution, as far as they can be had.
  async block(box) {
    const grid = { start: [0, 0, 0], shape: this.data.shape };
    if (this.whole) return onBox(/** @type {Uint16Array} */ (this.overview.codes), grid, box);
    const [first, last] = [box.start[2], box.start[2] + box.shape[2]];
    const out = new Uint16Array(box.shape[0] * box.shape[1] * box.shape[2]);
    const size = box.shape[1] * box.shape[2];
    for (let k = first; k < last; k++) {
      const key = `2/${Math.floor(k / BLOCK)}`;
      if (this.streams && !this.kept.has(key)) await (this.asked.get(key) ?? this.request(key));
      const codes = this.streams ? this.slice(2, k) : null;
      for (let i = 0; i < box.shape[0]; i++) for (let j = 0; j < box.shape[1]; j++) {
        const [x, y] = [box.start[0] + i, box.start[1] + j];
        out[i * size + j * box.shape[2] + k - first] = codes ? codes[x * this.data.shape[1] + y] : this.at([x, y, k], 2);
      }
    }
    return out;
  }

  stop() {
    this.stopper.abort();
    this.wanted = [];
  }
}

const others = (axis) => [0, 1, 2].filter((other) => other !== axis);

// A slice as the server sends it, its two axes in the volume's order, row by row as the screen has it.
function lay({ depth, rows, columns }, codes, shape, out) {
  const [a, b] = others(depth.axis);
  const strides = { [a]: shape[b], [b]: 1 };
  const step = columns.flip ? -strides[columns.axis] : strides[columns.axis];
  const start = columns.flip ? (columns.count - 1) * strides[columns.axis] : 0;
  let pixel = 0;
  for (let r = 0; r < rows.count; r++) {
    let at = (rows.flip ? rows.count - 1 - r : r) * strides[rows.axis] + start;
    for (let c = 0; c < columns.count; c++, at += step) out[pixel++] = codes[at];
  }
}
