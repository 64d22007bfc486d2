// What the viewers compute, without touching the page: planes, colours, thresholds, contours, hot spots, links.
// Plain functions on numbers, so that each is tested by itself.

// For each plane: the volume's axis along [slices, rows, columns], and whether it is flipped on the screen.
// Radiological convention: an axial slice has the patient's right on the left and the front on top.
export const AXES = {
  axial: [[2, false], [1, true], [0, true]],
  coronal: [[1, false], [2, true], [0, true]],
  sagittal: [[0, false], [2, true], [1, true]],
};
export const PLANES = Object.keys(AXES);
const ENDS = [["L", "R"], ["P", "A"], ["F", "H"]]; // what lies at the low and the high end of each axis
// Matplotlib's perceptually uniform maps. Viridis and Cividis read the same with any colour vision.
export const COLORS = {
  Viridis: ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"],
  Cividis: ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"],
  Inferno: ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"],
  Magma: ["#000004", "#180f3d", "#440f76", "#721f81", "#9e2f7f", "#cd4071", "#f1605d", "#fd9668", "#feca8d", "#fcfdbf"],
};

/** @param {Iterable<number>} codes */
export function largest(codes) {
  let most = 0;
  for (const code of codes) if (code > most) most = code;
  return most;
}

export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export function colorTable(stops) {
  const table = new Uint8Array(256 * 3);
  const parts = stops.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (parts.length - 1);
    const low = Math.min(Math.floor(at), parts.length - 2);
    for (let c = 0; c < 3; c++) {
      table[3 * i + c] = Math.round(parts[low][c] + (parts[low + 1][c] - parts[low][c]) * (at - low));
    }
  }
  return table;
}

// ---- volumes -----------------------------------------------------------------------------------------------

async function inflate(base64) {
  if (!globalThis.DecompressionStream) {
    throw new Error("this browser is too old to unpack the scan; use a current Firefox, Chrome, Edge or Safari.");
  }
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// Codes as mst/viewer/packing.py packs them: 16 bits as all low bytes, then all high ones; steps between rows, with the sign as last bit.
/** @param {Uint8Array} bytes @param {number[]} shape @param {number} bits @param {boolean} delta */
export function unpackCodes(bytes, shape, bits, delta) {
  const size = shape[0] * shape[1] * shape[2];
  if (bytes.length !== size * (bits / 8)) throw new Error("the volume's size does not fit its shape");
  /** @type {Uint8Array | Uint16Array} */
  let codes = bytes;
  if (bits === 16) {
    codes = new Uint16Array(size);
    for (let i = 0; i < size; i++) codes[i] = bytes[i] | (bytes[size + i] << 8);
  }
  if (!delta) return codes;
  const row = shape[2], plane = shape[1] * shape[2];
  for (let i = 0; i < size; i++) codes[i] = (codes[i] >> 1) ^ -(codes[i] & 1);
  for (let x = 0; x < shape[0]; x++) {
    for (let at = x * plane + row; at < (x + 1) * plane; at++) codes[at] += codes[at - row];
  }
  return codes;
}

// What codes of 0..top stand for, and back.
export const scaleOf = ({ low, high }, top) => ({
  top,
  value: (code) => low + (code / top) * (high - low),
  code: (value) => ((value - low) / (high - low)) * top,
});

// A volume of a payload on `shape` voxels; one that was sent coarser is enlarged.
export async function readVolume(entry, shape) {
  const own = entry.shape || shape;
  let codes = unpackCodes(new Uint8Array(await inflate(entry.data)), own, entry.bits, entry.delta);
  if (own.some((n, axis) => n !== shape[axis])) codes = enlarge(codes, own, shape, entry.factors);
  return { codes, ...scaleOf(entry, 2 ** entry.bits - 1) };
}

// A map sent at a lower resolution, put on the scan's voxels by repeating values.
export function enlarge(codes, from, to, factors) {
  if (codes.length !== from[0] * from[1] * from[2]) throw new Error("a map's size does not fit its shape");
  return repeat(codes, from, to, to.map((n, axis) =>
    Array.from({ length: n }, (_, i) => Math.min(Math.floor(i / factors[axis]), from[axis] - 1))));
}

// A model's own patches on the map's voxels: each voxel takes the value of the patch that its centre lies in.
export function spread(codes, { shape, start, size }, to) {
  return repeat(codes, shape, to, to.map((n, axis) => Array.from({ length: n }, (_, i) => {
    const cell = Math.floor((i + 0.5 - start[axis]) / size[axis]);
    return cell >= 0 && cell < shape[axis] ? cell : -1;
  })));
}

function repeat(codes, from, to, [xs, ys, zs]) {
  const out = new Uint8Array(to[0] * to[1] * to[2]);
  let at = 0;
  for (const x of xs) for (const y of ys) {
    const row = (x * from[1] + y) * from[2];
    if (x < 0 || y < 0) at += zs.length;
    else for (const z of zs) out[at++] = z < 0 ? 0 : codes[row + z];
  }
  return out;
}

// ---- planes ------------------------------------------------------------------------------------------------

// How a plane runs through a volume [X, Y, Z] in C order. In neurological convention the patient's right is right.
export function geometry(plane, shape, spacing, neurological = false) {
  const strides = [shape[1] * shape[2], shape[2], 1];
  const [depth, rows, columns] = AXES[plane].map(([axis, radiological], line) => {
    const flip = neurological && line === 2 && axis === 0 ? !radiological : radiological;
    return {
      axis,
      flip,
      count: shape[axis],
      stride: strides[axis],
      mm: spacing[axis],
      ends: flip ? [ENDS[axis][1], ENDS[axis][0]] : ENDS[axis],
    };
  });
  return { plane, depth, rows, columns };
}

// Calls visit(index in the volume, pixel) for every pixel of a slice.
export function eachPixel({ depth, rows, columns }, slice, visit) {
  const base = (depth.flip ? depth.count - 1 - slice : slice) * depth.stride;
  let pixel = 0;
  for (let r = 0; r < rows.count; r++) {
    const row = base + (rows.flip ? rows.count - 1 - r : r) * rows.stride;
    for (let c = 0; c < columns.count; c++) {
      visit(row + (columns.flip ? columns.count - 1 - c : c) * columns.stride, pixel++);
    }
  }
}

// A slice's codes, row by row.
export function cut({ depth, rows, columns }, slice, codes, out) {
  const base = (depth.flip ? depth.count - 1 - slice : slice) * depth.stride;
  const step = columns.flip ? -columns.stride : columns.stride;
  const first = columns.flip ? (columns.count - 1) * columns.stride : 0;
  let pixel = 0;
  for (let r = 0; r < rows.count; r++) {
    let at = base + (rows.flip ? rows.count - 1 - r : r) * rows.stride + first;
    for (let c = 0; c < columns.count; c++, at += step) out[pixel++] = codes[at];
  }
  return out;
}

// ---- boxes: a part of the viewer's grid, for what covers no more of the scan ---------------------------------

// A box { start, shape } with the geometry of each plane through it.
export const boxed = ({ start, shape }, spacing, neurological = false) => ({
  start,
  shape,
  spaces: Object.fromEntries(PLANES.map((plane) => [plane, geometry(plane, shape, spacing, neurological)])),
});

// Where a slice of the grid meets a box: the box's own slice, and the first row and column of it on the grid's slice;
// null where it passes by.
export function meet(space, { start, spaces }, slice) {
  const own = spaces[space.plane];
  const here = slice - start[space.depth.axis];
  if (here < 0 || here >= own.depth.count) return null;
  const first = (line, part) => (line.flip ? line.count - start[line.axis] - part.count : start[line.axis]);
  return { own, slice: here, row: first(space.rows, own.rows), column: first(space.columns, own.columns) };
}

// The place in a box's codes of a voxel of the grid; -1 beside the box.
export function placeIn({ start, shape }, index) {
  const [i, j, k] = index.map((v, axis) => v - start[axis]);
  const inside = i >= 0 && j >= 0 && k >= 0 && i < shape[0] && j < shape[1] && k < shape[2];
  return inside ? (i * shape[1] + j) * shape[2] + k : -1;
}

// A box's codes on another box; zero where it does not reach.
/** @template {Uint8Array | Uint16Array} T @param {T} codes @returns {T} */
export function onBox(codes, from, to) {
  const out = /** @type {T} */ (new /** @type {any} */ (codes.constructor)(to.shape[0] * to.shape[1] * to.shape[2]));
  const low = from.start.map((at, axis) => Math.max(at, to.start[axis]));
  const high = from.start.map((at, axis) => Math.min(at + from.shape[axis], to.start[axis] + to.shape[axis]));
  if (low.some((at, axis) => at >= high[axis])) return out;
  for (let i = low[0]; i < high[0]; i++) for (let j = low[1]; j < high[1]; j++) {
    const source = placeIn(from, [i, j, low[2]]);
    out.set(codes.subarray(source, source + high[2] - low[2]), placeIn(to, [i, j, low[2]]));
  }
  return out;
}

export const toWorld = (affine, index) =>
  [0, 1, 2].map((r) => affine[r][0] * index[0] + affine[r][1] * index[1] + affine[r][2] * index[2] + affine[r][3]);

export function toVoxel(affine, point) {
  const [a, b, c] = affine.map((row) => row.slice(0, 3));
  const d = point.map((p, r) => p - affine[r][3]);
  const det = (m) =>
    m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
    m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
    m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
  const whole = det([a, b, c]);
  return [0, 1, 2].map((col) => det([a, b, c].map((row, r) => row.map((v, i) => (i === col ? d[r] : v)))) / whole);
}

// Columns of a grid in which that many images of one shape come out largest.
export function bestColumns(count, width, height, ratio) {
  let best = 1, most = 0;
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const side = Math.min(width / columns, (height / rows) * ratio);
    if (side > most * 1.02) { most = side; best = columns; }
  }
  return best;
}

// ---- intensities and thresholds ----------------------------------------------------------------------------

export function grayTable(volume, [low, high]) {
  const table = new Uint8Array(volume.top + 1);
  const from = volume.code(low);
  const scale = 255 / Math.max(volume.code(high) - from, 1e-9);
  for (let code = 0; code <= volume.top; code++) table[code] = clamp(Math.round((code - from) * scale), 0, 255);
  return table;
}

// The code below which that share of the region's voxels lies; zeros outside the region do not count.
export function quantile(counts, share) {
  let total = 0;
  for (let i = 0; i < 256; i++) total += counts[i];
  let below = 0;
  for (let i = 0; i < 256; i++) {
    below += counts[i];
    if (below >= share * total) return i;
  }
  return 255;
}

// Otsu's level: it parts the values into dark and bright with the least spread within each.
export function otsu(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  const counts = new Float64Array(64);
  for (const v of values) counts[Math.min(63, Math.floor(((v - low) / (high - low || 1)) * 64))]++;
  let all = 0, sum = 0, dark = 0, darkSum = 0, best = -1, level = 0;
  counts.forEach((n, i) => { all += n; sum += n * i; });
  for (let i = 0; i < 63; i++) {
    dark += counts[i];
    darkSum += counts[i] * i;
    if (!dark || dark === all) continue;
    const apart = dark * (all - dark) * (darkSum / dark - (sum - darkSum) / (all - dark)) ** 2;
    if (apart > best) { best = apart; level = i; }
  }
  return low + ((level + 1) / 64) * (high - low);
}

// ---- lines over a slice ------------------------------------------------------------------------------------

// The edges of the pixels that hold, as [x0, y0, x1, y1, ...] in pixels from the slice's corner.
export function borders(holds, rows, columns) {
  const lines = [];
  const on = (r, c) => r >= 0 && c >= 0 && r < rows && c < columns && holds(r * columns + c);
  for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
    if (!holds(r * columns + c)) continue;
    if (!on(r - 1, c)) lines.push(c, r, c + 1, r);
    if (!on(r + 1, c)) lines.push(c, r + 1, c + 1, r + 1);
    if (!on(r, c - 1)) lines.push(c, r, c, r + 1);
    if (!on(r, c + 1)) lines.push(c + 1, r, c + 1, r + 1);
  }
  return lines;
}

// A slice with a row or column of zeros on each side, in which lines close.
export function framed(codes, rows, columns) {
  const out = new Uint8Array((rows + 2) * (columns + 2));
  for (let r = 0; r < rows; r++) out.set(codes.subarray(r * columns, (r + 1) * columns), (r + 1) * (columns + 2) + 1);
  return out;
}

// Lines of one value through a slice (marching squares), in pixels from its corner; pixel centres are at 0.5.
export function contour(values, rows, columns, level) {
  const lines = [];
  for (let r = 0; r + 1 < rows; r++) for (let c = 0; c + 1 < columns; c++) {
    const at = r * columns + c;
    const a = values[at], b = values[at + 1], d = values[at + columns], e = values[at + columns + 1];
    const state = +(a >= level) | (+(b >= level) << 1) | (+(e >= level) << 2) | (+(d >= level) << 3);
    if (state === 0 || state === 15) continue;
    const between = (from, to) => (level - from) / (to - from);
    const top = () => [c + 0.5 + between(a, b), r + 0.5], bottom = () => [c + 0.5 + between(d, e), r + 1.5];
    const left = () => [c + 0.5, r + 0.5 + between(a, d)], right = () => [c + 1.5, r + 0.5 + between(b, e)];
    const add = (from, to) => lines.push(...from(), ...to());
    if (state === 1 || state === 14) add(left, top);
    else if (state === 2 || state === 13) add(top, right);
    else if (state === 4 || state === 11) add(right, bottom);
    else if (state === 8 || state === 7) add(bottom, left);
    else if (state === 3 || state === 12) add(left, right);
    else if (state === 6 || state === 9) add(top, bottom);
    else if (state === 5) { add(left, top); add(right, bottom); }
    else { add(top, right); add(bottom, left); }
  }
  return lines;
}

// The places where a map is greater than all round it, the greatest first: [{ index: [i, j, k], code }].
// A plateau counts once, at its voxel nearest to its centre; of two closer than `apart` millimetres, the greater.
export function hotSpots(codes, shape, spacing, { least = 51, apart = 6, most = 20 } = {}) {
  const [, ny, nz] = shape;
  const stride = [ny * nz, nz, 1];
  const seen = new Uint8Array(codes.length);
  const place = (at) => [Math.floor(at / stride[0]), Math.floor(at / nz) % ny, at % nz];
  const found = [];
  for (let start = 0; start < codes.length; start++) {
    const code = codes[start];
    if (code < least || seen[start]) continue;
    const plateau = [start];
    seen[start] = 1;
    let highest = true;
    for (let n = 0; n < plateau.length; n++) {
      const [i, j, k] = place(plateau[n]);
      for (let a = Math.max(i - 1, 0); a <= Math.min(i + 1, shape[0] - 1); a++) {
        for (let b = Math.max(j - 1, 0); b <= Math.min(j + 1, ny - 1); b++) {
          for (let c = Math.max(k - 1, 0); c <= Math.min(k + 1, nz - 1); c++) {
            const at = a * stride[0] + b * nz + c;
            if (codes[at] > code) highest = false;
            else if (codes[at] === code && !seen[at]) { seen[at] = 1; plateau.push(at); }
          }
        }
      }
    }
    if (!highest) continue;
    const places = plateau.map(place);
    const middle = [0, 1, 2].map((axis) => places.reduce((sum, p) => sum + p[axis], 0) / places.length);
    const far = (p) => [0, 1, 2].reduce((sum, axis) => sum + ((p[axis] - middle[axis]) * spacing[axis]) ** 2, 0);
    found.push({ index: places.reduce((best, p) => (far(p) < far(best) ? p : best)), code });
  }
  found.sort((a, b) => b.code - a.code);
  const kept = [];
  for (const spot of found) {
    const near = (other) => Math.hypot(...spot.index.map((v, axis) => (v - other.index[axis]) * spacing[axis])) < apart;
    if (!kept.some(near)) kept.push(spot);
    if (kept.length === most) break;
  }
  return kept;
}

// ---- the view in the address -------------------------------------------------------------------------------

const number = (low, high) => (text) => {
  const value = Number(text);
  return text.trim() !== "" && value >= low && value <= high ? value : undefined;
};
const numbers = (count) => (text) => {
  const values = text.split(",").map((part) => (part.trim() === "" ? NaN : Number(part)));
  return values.length === count && values.every(Number.isFinite) ? values : undefined;
};
// Where a camera is and what it looks at, which must not be the same place.
const camera = (text) => {
  const values = numbers(6)(text);
  const apart = values && Math.hypot(...[0, 1, 2].map((axis) => values[axis] - values[3 + axis]));
  return apart >= 0.01 && apart <= 100 ? values : undefined;
};
const choice = (...choices) => (text) => (choices.includes(text) ? text : undefined);
const SIDES = choice("1", "0");
const FIELDS = {
  view: choice("3d", "mip"),
  angle: number(0, 360),
  camera,
  plane: choice(...PLANES),
  slice: number(1, 1e6),
  layout: choice("one", "three"),
  panels: (text) => (/^[a-z]+(,[a-z]+)*$/.test(text) ? text : undefined),
  solo: (text) => (/^[a-z]+$/.test(text) ? text : undefined),
  threshold: number(0, 1),
  maximum: number(0, 1),
  value: number(0, 1e12),
  scale: choice("own", "shared", "paper"),
  map: choice("smooth", "patches"),
  style: choice("filled", "contours", "both"),
  colors: choice(...Object.keys(COLORS)),
  opacity: number(0, 1),
  level: number(-1e9, 1e9),
  width: number(1e-6, 1e9),
  convention: choice("radiological", "neurological"),
  cross: SIDES,
  outline: SIDES,
  at: numbers(3),
};

// "#plane=sagittal&slice=17&threshold=0.99" -> { plane, slice, ... }; what is unknown or senseless is left out.
/** @returns {Record<string, any>} */
export function readLink(hash) {
  const state = {};
  for (const [key, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
    const value = Object.hasOwn(FIELDS, key) ? FIELDS[key](text) : undefined;
    if (value !== undefined) state[key] = value;
  }
  return state;
}

export function writeLink(state) {
  return "#" + Object.entries(state).filter(([key, value]) => Object.hasOwn(FIELDS, key) && value !== undefined && value !== null)
    .map(([key, value]) => `${key}=${typeof value === "number" ? Number(value.toFixed(6)) : value}`).join("&");
}
