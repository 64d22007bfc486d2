// The light alternative to 3D: a maximum-intensity projection that turns round the head-foot axis, on a canvas, without WebGL.
import { clamp, contour } from "./slices.js";
import { element } from "./page.js";
import { rgb, rgba } from "./panel.js";

const MOST_CELLS = 128; // along the longest side: a projection then takes a few milliseconds
const DRAG_DEGREES = 0.5; // for each pixel
const DEGREES_A_SECOND = 40;
/** @type {[string, number][]} */
const SIDES = [["Front", 0], ["Patient's right", 90], ["Back", 180], ["Patient's left", 270]];

// One axis of a volume brought to `count` samples: each is the mean of what it covers, or lies between two neighbours.
export function resampleAxis(values, shape, axis, count) {
  const n = shape[axis];
  if (count === n) return values;
  const inner = shape.slice(axis + 1).reduce((a, b) => a * b, 1);
  const outer = shape.slice(0, axis).reduce((a, b) => a * b, 1);
  const out = new Float32Array(outer * count * inner);
  for (let i = 0; i < count; i++) {
    const from = (i * n) / count, to = ((i + 1) * n) / count;
    const taps = [];
    if (count < n) {
      for (let s = Math.floor(from); s < Math.min(Math.ceil(to - 1e-9), n); s++) taps.push([s, (Math.min(s + 1, to) - Math.max(s, from)) / (to - from)]);
    } else {
      const at = clamp((from + to) / 2 - 0.5, 0, n - 1), low = Math.min(Math.floor(at), n - 1);
      taps.push([low, 1 - (at - low)], [Math.min(low + 1, n - 1), at - low]);
    }
    for (let o = 0; o < outer; o++) for (const [s, weight] of taps) {
      const source = (o * n + s) * inner, target = (o * count + i) * inner;
      for (let k = 0; k < inner; k++) out[target + k] += weight * values[source + k];
    }
  }
  return out;
}

// A volume on cells that are equally long in all directions, as codes of 0..65535; `step` is their length in millimetres.
function cubes({ codes, top }, shape, spacing, step) {
  const sizes = shape.map((n, axis) => Math.max(1, Math.round((n * spacing[axis]) / step)));
  let values = codes;
  let now = shape.slice();
  // The axes that shrink most come first, so that little is left to do for the others.
  for (const axis of [0, 1, 2].sort((a, b) => sizes[a] / shape[a] - sizes[b] / shape[b])) {
    values = resampleAxis(values, now, axis, sizes[axis]);
    now = now.map((n, a) => (a === axis ? sizes[a] : n));
  }
  return { codes: Uint16Array.from(values, (v) => (v / top) * 65535 + 0.5), shape: sizes };
}

// The direction that runs to the right on the screen, and the one towards the viewer, along the axes to the
// patient's right and front. At 0 degrees the patient is seen from the front, at 90 from the patient's right.
function directions(degrees) {
  const turn = (degrees * Math.PI) / 180;
  return { right: [-Math.cos(turn), Math.sin(turn)], near: [Math.sin(turn), Math.cos(turn)] };
}

// The greatest value along each line of sight: Uint16 [width, nz], column by column, from foot to head.
/** @param {{ codes: ArrayLike<number>, shape: number[] }} volume @param {number} degrees */
export function project({ codes, shape: [nx, ny, nz] }, degrees) {
  const width = projectedWidth(nx, ny);
  const out = new Uint16Array(width * nz);
  const { right, near } = directions(degrees);
  const half = (width - 1) / 2;
  for (let u = 0; u < width; u++) {
    const column = u * nz;
    for (let t = 0; t < width; t++) {
      const x = Math.round((u - half) * right[0] + (t - half) * near[0] + (nx - 1) / 2);
      const y = Math.round((u - half) * right[1] + (t - half) * near[1] + (ny - 1) / 2);
      if (x < 0 || y < 0 || x >= nx || y >= ny) continue;
      const row = (x * ny + y) * nz;
      for (let z = 0; z < nz; z++) if (codes[row + z] > out[column + z]) out[column + z] = codes[row + z];
    }
  }
  return out;
}

const projectedWidth = (nx, ny) => Math.ceil(Math.hypot(nx, ny));

// What lies at the end of a direction (to the patient's right, front): "R", "RA", "A", ...
/** @param {number[]} direction */
function letters([x, y]) {
  /** @type {[number, string][]} */
  const ends = [[Math.abs(x), x > 0 ? "R" : "L"], [Math.abs(y), y > 0 ? "A" : "P"]];
  return ends.filter(([size]) => size > 0.38).sort((a, b) => b[0] - a[0]).map(([, letter]) => letter).join("");
}

export class Projection {
  constructor(viewer) {
    this.viewer = viewer;
    this.angle = 0;
    this.hidden = new Set();
    this.building = null;
    this.node = element("div", { class: "mstv-projection", hidden: "", role: "tabpanel", "aria-label": "Maximum-intensity projection" });
  }

  // Made once only, however often the tab is opened meanwhile.
  async open() {
    await (this.building ??= this.build());
    this.resize();
  }

  async build() {
    const { viewer } = this;
    const volume = await viewer.volume();
    this.box = volume;
    const step = Math.max(...volume.shape.map((n, axis) => n * volume.spacing[axis])) / MOST_CELLS;
    const cube = (of) => cubes(of, volume.shape, volume.spacing, step);
    this.scan = cube(volume.scan);
    this.range = this.grayRange();
    this.bodies = volume.bodies.map((body) => ({ ...body, cube: cube(body.volume) }));
    // Cells average voxels: of what is left of a map's maximum in them the threshold is a part, or a small spot would vanish.
    for (const body of this.bodies) body.most = body.cube.codes.reduce((most, v) => Math.max(most, v), 1);
    const [nx, ny, nz] = this.scan.shape;
    this.image = document.createElement("canvas");
    Object.assign(this.image, { width: projectedWidth(nx, ny), height: nz });
    this.pixels = new ImageData(this.image.width, nz);
    this.words = new Uint32Array(this.pixels.data.buffer);
    this.canvas = element("canvas", { class: "mstv-projection-canvas", role: "img" });
    this.letters = ["top", "bottom", "left", "right"].map((side) => element("span", { class: `mstv-letter mstv-${side}`, "aria-hidden": "true" }));
    this.letters[0].textContent = "H";
    this.letters[1].textContent = "F";
    this.frame = element("div", { class: "mstv-projection-frame" }, this.canvas, ...this.letters);
    this.frame.style.aspectRatio = `${this.image.width} / ${nz}`;
    this.frame.style.setProperty("--ratio", this.image.width / nz);
    const toggle = (key, name, color) => element("button", { type: "button", class: "mstv-key", style: `--key:${color}`, "aria-pressed": "true",
      onclick: ({ currentTarget: button }) => {
        const on = this.hidden.delete(key) || !this.hidden.add(key);
        button.setAttribute("aria-pressed", String(on));
        this.draw();
      } }, name);
    this.slider = element("input", { type: "range", min: 0, max: 359, step: 1, "aria-label": "Direction of view", "data-control": "angle",
      oninput: () => { this.turn(false); this.look(this.slider.valueAsNumber); } });
    this.turner = element("button", { type: "button", class: "mstv-icon", "aria-label": "Turn", title: "Turn", "aria-pressed": "false",
      onclick: () => this.turn(!this.turning) }, "⟳");
    this.node.append(
      element("div", { class: "mstv-solid-keys", role: "group", "aria-label": "Shown in the projection" },
        toggle("scan", "Scan", "#9aa3b2"), ...this.bodies.map(({ key }) => toggle(key, viewer.bodyName(key), this.viewer.colorOf(key))),
        element("span", { class: "mstv-key mstv-key-line" }, "Current slice")),
      this.frame,
      element("div", { class: "mstv-projection-steer" }, this.turner, this.slider,
        element("div", { class: "mstv-sides", role: "group", "aria-label": "Seen from" }, ...SIDES.map(([name, angle]) =>
          element("button", { type: "button", onclick: () => { this.turn(false); this.look(angle); } }, name)))));
    this.listen();
  }

  // Black and white of the scan: what nearly all of its projection lies between, seen from the front and the side.
  grayRange() {
    const values = [0, 90].flatMap((angle) => Array.from(project(this.scan, angle))).filter((v) => v > 0).sort((a, b) => a - b);
    const at = (share) => values[Math.floor(share * (values.length - 1))] ?? 0;
    return [at(0.02), Math.max(at(0.998), at(0.02) + 1)];
  }

  listen() {
    let drag = null;
    this.frame.addEventListener("pointerdown", (event) => {
      drag = { x: event.clientX, angle: this.angle };
      this.frame.setPointerCapture(event.pointerId);
      this.turn(false);
    });
    // The near side follows the pointer.
    this.frame.addEventListener("pointermove", (event) => { if (drag) this.look(drag.angle + DRAG_DEGREES * (event.clientX - drag.x)); });
    for (const name of ["pointerup", "pointercancel"]) this.frame.addEventListener(name, () => { drag = null; });
  }

  look(angle) {
    this.angle = ((angle % 360) + 360) % 360;
    cancelAnimationFrame(this.drawing);
    this.drawing = requestAnimationFrame(() => this.draw());
    this.viewer.remembering();
  }

  turn(on) {
    if (!this.turner || Boolean(this.turning) === on) return;
    cancelAnimationFrame(this.turning);
    this.turning = null;
    this.turner.setAttribute("aria-pressed", String(on));
    if (!on) this.viewer.remembering();
    if (!on) return;
    let last = performance.now();
    const step = (now) => {
      this.angle = (this.angle + (DEGREES_A_SECOND * (now - last)) / 1000 + 360) % 360;
      last = now;
      this.draw();
      this.turning = requestAnimationFrame(step);
    };
    this.turning = requestAnimationFrame(step);
  }

  recut() { this.draw(); }

  // The slice's mark is drawn with the rest; that costs no more than a step through the slices may.
  move() { this.draw(); }

  resize() {
    if (!this.canvas?.clientWidth) return;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: Math.round(this.canvas.clientWidth * ratio), height: Math.round(this.canvas.clientHeight * ratio) });
    this.draw();
  }

  draw() {
    if (!this.bodies || this.node.hidden || !this.canvas.width) return;
    if (this.projected !== this.angle) {
      this.gray = project(this.scan, this.angle);
      for (const body of this.bodies) body.seen = project(body.cube, this.angle);
      this.projected = this.angle;
    }
    this.paint();
    const { canvas, image } = this;
    const context = canvas.getContext("2d");
    image.getContext("2d").putImageData(this.pixels, 0, 0);
    context.fillStyle = "#000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    this.drawEdges(context);
    this.drawSlice(context);
    const { right } = directions(this.angle);
    this.letters[2].textContent = letters(right.map((v) => -v));
    this.letters[3].textContent = letters(right);
    const degrees = Math.round(this.angle) % 360;
    this.slider.value = degrees;
    const side = SIDES.find(([, angle]) => angle === degrees)?.[0].toLowerCase();
    const words = side ? `seen from the ${side}` : `turned by ${degrees} degrees from the front towards the patient's right`;
    this.slider.setAttribute("aria-valuetext", words);
    canvas.setAttribute("aria-label", `Maximum-intensity projection of the scan and the maps, ${words}`);
    this.node.dataset.angle = degrees;
  }

  // Grey first, then each map above its threshold, stronger where it is greater.
  paint() {
    const { words, image, hidden } = this;
    const { width, height } = image;
    const [low, high] = this.range;
    const tints = this.bodies.filter(({ key, layer }) => layer && !hidden.has(key)).map(({ key, layer, seen, most }) => {
      const from = Math.min(layer.cut, 255) / 255;
      return { seen, color: rgb(this.viewer.colorOf(key)), none: layer.cut > 255, from: from * most, span: Math.max(1 - from, 1e-3) * most };
    });
    for (let u = 0; u < width; u++) for (let z = 0; z < height; z++) {
      const at = u * height + z;
      let r = hidden.has("scan") ? 0 : clamp(((this.gray[at] - low) / (high - low)) * 255, 0, 255), g = r, b = r;
      for (const { seen, color, none, from, span } of tints) {
        if (none || seen[at] < from || !seen[at]) continue;
        const part = 0.14 + 0.56 * ((seen[at] - from) / span);
        r += (color[0] - r) * part;
        g += (color[1] - g) * part;
        b += (color[2] - b) * part;
      }
      words[(height - 1 - z) * width + u] = rgba([Math.round(r), Math.round(g), Math.round(b)], 1);
    }
  }

  // Round the mask, and round each map where it reaches its threshold.
  drawEdges(context) {
    const { width, height } = this.image;
    const sx = context.canvas.width / width, sy = context.canvas.height / height;
    const rows = new Uint16Array(width * height);
    for (const body of this.bodies) {
      if (this.hidden.has(body.key)) continue;
      // A lesion smaller than a cell fills none: half of what its fullest cell holds still shows it.
      const level = body.most * (body.layer ? body.layer.cut / 255 : 0.5);
      for (let u = 0; u < width; u++) for (let z = 0; z < height; z++) rows[(height - 1 - z) * width + u] = body.seen[u * height + z];
      const lines = contour(rows, height, width, level - 0.5).map((v, i) => v * (i % 2 ? sy : sx));
      this.stroke(context, lines, this.viewer.colorOf(body.key), 1.6);
    }
  }

  // The current slice's outline: an axial slice is a line, others a frame that turns with the scan.
  drawSlice(context) {
    const { viewer } = this;
    const { axis } = viewer.space.depth;
    const [nx, ny, nz] = this.scan.shape;
    const { start, shape, factors } = this.box;
    const part = ((viewer.slice + 0.5) / factors[axis] - start[axis]) / shape[axis];
    if (part < 0 || part > 1) return;
    const { right } = directions(this.angle);
    const ends = [0, 1, 2].map((a) => (a === axis ? [part, part] : [0, 1]));
    const us = ends[0].flatMap((x) => ends[1].map((y) => (x - 0.5) * nx * right[0] + (y - 0.5) * ny * right[1]));
    const sx = context.canvas.width / this.image.width, sy = context.canvas.height / nz;
    const middle = context.canvas.width / 2;
    const x0 = middle + Math.min(...us) * sx, x1 = middle + Math.max(...us) * sx;
    const y0 = (1 - ends[2][1]) * nz * sy, y1 = (1 - ends[2][0]) * nz * sy;
    this.stroke(context, [x0, y0, x1, y0, x1, y0, x1, y1, x1, y1, x0, y1, x0, y1, x0, y0], "#6ea4ff", 1.5);
  }

  stroke(context, lines, color, width) {
    context.beginPath();
    for (let i = 0; i < lines.length; i += 4) {
      context.moveTo(lines[i], lines[i + 1]);
      context.lineTo(lines[i + 2], lines[i + 3]);
    }
    context.strokeStyle = color;
    context.lineWidth = width * (window.devicePixelRatio || 1);
    context.stroke();
  }

  stop() {
    this.turn(false);
    cancelAnimationFrame(this.drawing);
  }
}
