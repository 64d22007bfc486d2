// Animated GIF of true-colour frames: each frame brings the 256 colours that its own pixels need.
//
// A saliency map over a grey slice has far more than 256 colours, and neighbours that fall onto one of them show as
// bands. Greys therefore get a ramp of their own, the blends of grey and colour map the rest, chosen from the frame;
// where a pixel's colour is still missed by much, its error is passed on to its neighbours.

const GRAYS = 96; // at most 1.4 of 255 off
const NEAR = 6; // sum over the channels: what is closer than this is not worth dithering
const BITS = 6; // of each channel, when colours are counted and looked up

const isGray = (r, g, b) => Math.max(r, g, b) - Math.min(r, g, b) < 8;
const bin = (r, g, b) => ((r >> (8 - BITS)) << (2 * BITS)) | ((g >> (8 - BITS)) << BITS) | (b >> (8 - BITS));

// The colours of a frame: a ramp of greys, then the colours that part its other pixels best. A box of colours is cut
// in two at its mean, first the one whose pixels lie farthest apart in sum.
export function palette(data) {
  const counts = new Uint32Array(1 << (3 * BITS));
  const sums = [0, 1, 2].map(() => new Float64Array(counts.length));
  const used = [];
  for (let i = 0; i < data.length; i += 4) {
    const r = data[i], g = data[i + 1], b = data[i + 2];
    if (isGray(r, g, b)) continue;
    const at = bin(r, g, b);
    if (!counts[at]++) used.push(at);
    sums[0][at] += r;
    sums[1][at] += g;
    sums[2][at] += b;
  }
  const measure = (bins) => {
    let n = 0, spread = 0, along = 0;
    const mean = [0, 0, 0], square = [0, 0, 0];
    for (const at of bins) {
      n += counts[at];
      for (let c = 0; c < 3; c++) {
        mean[c] += sums[c][at];
        square[c] += sums[c][at] ** 2 / counts[at];
      }
    }
    for (let c = 0; c < 3; c++) {
      const error = square[c] - mean[c] ** 2 / n;
      mean[c] /= n;
      if (error > spread) { spread = error; along = c; }
    }
    return { bins, mean, spread: bins.length > 1 ? spread : 0, along };
  };
  const boxes = used.length ? [measure(used)] : [];
  while (boxes.length && boxes.length < 256 - GRAYS) {
    const widest = boxes.reduce((best, box, i) => (box.spread > boxes[best].spread ? i : best), 0);
    const { bins, mean, spread, along } = boxes[widest];
    if (!(spread > 1e-6)) break;
    const below = [], above = [];
    for (const at of bins) (sums[along][at] / counts[at] <= mean[along] ? below : above).push(at);
    if (!below.length || !above.length) { boxes[widest].spread = 0; continue; }
    boxes[widest] = measure(below);
    boxes.push(measure(above));
  }
  const colors = Array.from({ length: GRAYS }, (_, i) => Array(3).fill(Math.round((255 * i) / (GRAYS - 1))));
  for (const { mean } of boxes) colors.push(mean.map(Math.round));
  while (colors.length < 256) colors.push([0, 0, 0]);
  return colors;
}

// Each pixel's place in a frame's colours. `least` is the error from which on it is passed on (Floyd and Steinberg);
// Infinity dithers nothing.
export function match(data, width, colors, least = NEAR) {
  const out = new Uint8Array(data.length / 4);
  const nearest = new Int16Array(1 << (3 * BITS)).fill(-1);
  let here = new Float32Array(3 * (width + 2)), below = new Float32Array(3 * (width + 2));
  const clip = (v) => (v < 0 ? 0 : v > 255 ? 255 : v);
  for (let i = 0; i < out.length; i++) {
    const x = i % width;
    if (x === 0 && i) { [here, below] = [below, here]; below.fill(0); }
    const red = data[4 * i], green = data[4 * i + 1], blue = data[4 * i + 2];
    if (isGray(red, green, blue)) {
      out[i] = Math.round((((red + green + blue) / 3) * (GRAYS - 1)) / 255);
      continue;
    }
    const e = 3 * (x + 1);
    const r = clip(red + here[e]), g = clip(green + here[e + 1]), b = clip(blue + here[e + 2]);
    const at = bin(r, g, b);
    if (nearest[at] < 0) {
      let best = 0, far = Infinity;
      for (let c = 0; c < colors.length; c++) {
        const d = (colors[c][0] - r) ** 2 + (colors[c][1] - g) ** 2 + (colors[c][2] - b) ** 2;
        if (d < far) { far = d; best = c; }
      }
      nearest[at] = best;
    }
    out[i] = nearest[at];
    const color = colors[nearest[at]];
    const er = r - color[0], eg = g - color[1], eb = b - color[2];
    if (Math.abs(er) + Math.abs(eg) + Math.abs(eb) < least) continue;
    /** @type {[Float32Array, number, number][]} */
    const shares = [[here, 3, 7 / 16], [below, -3, 3 / 16], [below, 0, 5 / 16], [below, 3, 1 / 16]];
    for (const [row, offset, share] of shares) {
      row[e + offset] += er * share;
      row[e + offset + 1] += eg * share;
      row[e + offset + 2] += eb * share;
    }
  }
  return out;
}

export class Gif {
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this.parts = [];
    const start = [...text("GIF89a"), ...short(width), ...short(height), 0x70, 0, 0];
    this.parts.push(Uint8Array.from([...start, 0x21, 0xff, 11, ...text("NETSCAPE2.0"), 3, 1, 0, 0, 0])); // for ever
  }

  add(data, delay) {
    const colors = palette(data);
    this.parts.push(Uint8Array.from([0x21, 0xf9, 4, 4, ...short(delay), 0, 0, 0x2c, 0, 0, 0, 0, ...short(this.width), ...short(this.height),
      0x87, ...colors.flat(), 8]));
    const packed = lzw(match(data, this.width, colors));
    for (let at = 0; at < packed.length; at += 255) {
      const block = packed.subarray(at, at + 255);
      this.parts.push(Uint8Array.of(block.length), block);
    }
    this.parts.push(Uint8Array.of(0));
  }

  blob() { return new Blob([...this.parts, Uint8Array.of(0x3b)], { type: "image/gif" }); }
}

const text = (value) => Array.from(value, (c) => c.charCodeAt(0));
const short = (value) => [value & 255, value >> 8];

// GIF's compression: codes of growing width for runs of pixels seen before.
function lzw(indices) {
  const CLEAR = 256, END = 257;
  const out = new Uint8Array(indices.length * 2 + 64);
  let size = 0, bits = 0, held = 0, width = 9, next = 258, known = new Map();
  const put = (code) => {
    held |= code << bits;
    bits += width;
    while (bits >= 8) { out[size++] = held & 255; held >>= 8; bits -= 8; }
  };
  put(CLEAR);
  let run = indices[0];
  for (let i = 1; i < indices.length; i++) {
    const key = (run << 8) | indices[i];
    const code = known.get(key);
    if (code !== undefined) { run = code; continue; }
    put(run);
    if (next < 4096) {
      known.set(key, next++);
      if (next - 1 === 1 << width && width < 12) width++;
    } else {
      put(CLEAR);
      known = new Map();
      next = 258;
      width = 9;
    }
    run = indices[i];
  }
  put(run);
  put(END);
  if (bits) out[size++] = held & 255;
  return out.subarray(0, size);
}
