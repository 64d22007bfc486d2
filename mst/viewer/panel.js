// One panel: a Plotly figure with axes in millimetres, and the canvas with the slice beneath it.
import { borders, clamp, contour, cut, framed, meet, toVoxel } from "./slices.js";
import { element } from "./page.js";

const TITLES = { scan: "Scan", mask: "Lesion mask", difference: "Difference of the maps", agreement: "Agreement of the maps" };
const EXPLAIN = {
  difference: "Each map is divided by its own maximum; then the ResNet's is subtracted from the MST's.",
  agreement: "Where each map is above its own threshold: the MST's only, the ResNet's only, or both.",
};
export const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
/** @type {(color: number[] | Uint8Array, alpha: number) => number} */
export const rgba = ([r, g, b], alpha) => ((Math.round(alpha * 255) << 24) | (b << 16) | (g << 8) | r) >>> 0;
const DRAG_START = 4; // pixels before a press becomes a drag
const ZOOM_STEP = 1.2;

export class Panel {
  // plane: of its own; null: the viewer's, whichever it is.
  constructor(viewer, kind, plane) {
    this.viewer = viewer;
    this.kind = kind;
    this.fixed = plane;
    this.layer = viewer.layers.find((layer) => layer.key === kind) || null;
    this.canvas = element("canvas", { class: "mstv-slice" });
    this.plot = element("div", { class: "mstv-plot" });
    this.cross = element("div", { class: "mstv-cross", hidden: "", "aria-hidden": "true" });
    this.tip = element("div", { class: "mstv-tip", hidden: "", "aria-hidden": "true" });
    this.letters = ["top", "bottom", "left", "right"].map((side) =>
      element("span", { class: `mstv-letter mstv-${side}`, "aria-hidden": "true" }));
    this.frame = element("div", { class: "mstv-frame" }, this.canvas, this.plot, this.cross, this.tip, ...this.letters);
    this.title = this.layer ? this.layer.label : TITLES[kind];
    this.name = element("strong", { title: EXPLAIN[kind] ?? this.title }, this.title);
    this.badge = this.layer && (!plane || plane === viewer.data.plane)
      ? element("button", { type: "button", class: "mstv-badge", title: "Go to the slice that this model weighs most",
          onclick: () => viewer.showTop(this.layer) },
        "Top ", element("span", { class: "mstv-word" }, "slice "), String(viewer.numberIn(viewer.data.plane, this.layer.top)))
      : null;
    this.only = element("button", { type: "button", class: "mstv-icon mstv-only", "aria-label": `Only this panel: ${this.title}`,
      title: "One large panel", "aria-pressed": "false", onclick: () => viewer.toggleSolo(kind) }, "⤢");
    this.node = element("figure", { class: "mstv-panel", "data-panel": kind, ...(plane ? { "data-view-plane": plane } : {}) },
      element("figcaption", {},
        element("span", { class: "mstv-dot", style: `--key:${this.viewer.colorOf(kind)}` }),
        this.name, this.badge, this.only),
      this.frame, this.buildScale());
    this.image = document.createElement("canvas");
    // Drawn by the processor: pixels are made here for every slice, and a trip to the graphics card and back
    // costs more than it saves.
    const options = { willReadFrequently: true };
    this.context = this.canvas.getContext("2d", { ...options, alpha: false });
    this.imageContext = /** @type {CanvasRenderingContext2D} */ (this.image.getContext("2d", options));
  }

  get space() {
    return this.viewer.spaces[this.fixed ?? this.viewer.view.plane];
  }

  get here() {
    return this.viewer.index[this.space.depth.axis];
  }

  onlyOf(layer) { return `${this.viewer.nameOf(layer)} only`; }

  buildScale() {
    if (this.kind === "agreement") {
      const key = (color, text) => element("span", { class: "mstv-key", style: `--key:${color}` }, text);
      this.overlap = element("span", {});
      return element("div", { class: "mstv-scale mstv-legend" }, ...this.viewer.pair.map((layer) => key(this.viewer.colorOf(layer.key), this.onlyOf(layer))), key(this.viewer.colorOf("both"), "both"), this.overlap);
    }
    if (!this.layer && this.kind !== "difference") return element("div", { class: "mstv-scale" });
    this.bar = element("canvas", { class: "mstv-bar", width: 256, height: 1, "aria-hidden": "true" });
    this.cutMark = element("span", { class: "mstv-cut" });
    this.low = element("span", {});
    this.high = element("span", {});
    return element("div", { class: "mstv-scale" }, this.low, element("div", { class: `mstv-bar-box${this.layer ? "" : " mstv-bar-plain"}` }, this.bar, this.cutMark), this.high);
  }

  async start() {
    const { viewer } = this;
    const axis = { range: [0, 1], showgrid: false, zeroline: false, showticklabels: false, ticks: "", constrain: "domain" };
    await viewer.Plotly.newPlot(this.plot, [{ x: [0], y: [0], mode: "markers", marker: { opacity: 0 }, hoverinfo: "skip" }], {
      margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      dragmode: false, hovermode: false,
      xaxis: axis, yaxis: { ...axis, range: [1, 0], scaleanchor: "x" },
    }, {
      displaylogo: false, scrollZoom: false, doubleClick: false, displayModeBar: "hover",
      modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]],
    });
    this.plot.on("plotly_relayout", () => {
      this.place();
      viewer.follow(this, this.ranges());
      this.draw();
    });
    this.frame.addEventListener("pointermove", (event) => viewer.point(event.buttons ? null : this.under(event), this));
    this.frame.addEventListener("pointerleave", () => viewer.point(null));
    this.listen();
    await this.turn();
  }

  // Takes the plane, or its convention, that the viewer now has.
  async turn() {
    const { space } = this;
    const { rows, columns } = space;
    this.width = columns.count * columns.mm;
    this.height = rows.count * rows.mm;
    [...rows.ends, ...columns.ends].forEach((end, i) => { this.letters[i].textContent = end; });
    this.frame.style.aspectRatio = `${this.width} / ${this.height}`;
    this.node.style.setProperty("--mstv-ratio", String(this.width / this.height));
    if (this.fixed) this.name.textContent = `${this.title}, ${this.fixed}`;
    const limits = (length) => [-0.5 * length, 1.5 * length];
    const [xl, xh] = limits(this.width), [yl, yh] = limits(this.height);
    const [x, y] = this.viewer.framing(space, this.frame);
    await this.viewer.Plotly.relayout(this.plot, {
      "xaxis.range": x, "yaxis.range": y, "xaxis.minallowed": xl, "xaxis.maxallowed": xh,
      "yaxis.minallowed": yl, "yaxis.maxallowed": yh,
    });
    this.turned = space;
    this.place();
  }

  ranges() {
    const { xaxis, yaxis } = this.plot._fullLayout;
    return [xaxis.range.slice(), yaxis.range.slice()];
  }

  get zoomed() {
    const [[from, to]] = this.ranges(), [[low, high]] = this.viewer.framing(this.space, this.frame);
    return Math.abs(to - from) < 0.98 * (high - low);
  }

  // Where the slice lies on the canvas; kept, so that a step through the slices measures nothing.
  place() {
    const layout = this.plot._fullLayout;
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(this.frame.clientWidth * ratio), height = Math.round(this.frame.clientHeight * ratio);
    if (!layout || !width || !height) { this.at = null; return; }
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const { xaxis, yaxis } = layout;
    const left = (xaxis._offset + xaxis.d2p(0)) * ratio, right = (xaxis._offset + xaxis.d2p(this.width)) * ratio;
    const top = (yaxis._offset + yaxis.d2p(0)) * ratio, bottom = (yaxis._offset + yaxis.d2p(this.height)) * ratio;
    this.at = { ratio, width, height, left, top, right, bottom };
    this.crop();
    // A finger moving up or down scrolls the page, sideways the slices; in a slice that is larger than its frame it
    // moves the slice.
    this.frame.style.touchAction = this.zoomed ? "none" : "pan-y";
  }

  // The part of the slice that is in sight, which is all that is painted, with a pixel more for smoothing.
  crop() {
    const { left, top, right, bottom, width, height } = this.at;
    const { rows, columns } = this.space;
    const part = (line, low, high, length) => {
      const size = (high - low) / line.count;
      const from = clamp(Math.floor(-low / size) - 1, 0, line.count - 1);
      return [from, clamp(Math.ceil((length - low) / size) + 1, from + 1, line.count)];
    };
    const [c0, c1] = part(columns, left, right, width), [r0, r1] = part(rows, top, bottom, height);
    this.part = { row: r0, column: c0, rows: r1 - r0, columns: c1 - c0 };
    if (this.pixels?.width === c1 - c0 && this.pixels.height === r1 - r0) return;
    Object.assign(this.image, { width: c1 - c0, height: r1 - r0 });
    this.pixels = new ImageData(c1 - c0, r1 - r0);
    this.words = new Uint32Array(this.pixels.data.buffer);
  }

  // ---- pointer

  listen() {
    const { frame, viewer } = this;
    const touches = new Map();
    let drag = null;
    const begin = (kind, { clientX: x, clientY: y }) => {
      drag = { kind, x, y, slice: viewer.slice, window: viewer.view.window.slice(), ranges: this.ranges(), spread: spreadOf(touches) };
    };
    frame.addEventListener("contextmenu", (event) => event.preventDefault());
    frame.addEventListener("pointerdown", (event) => {
      if (event.target.closest(".modebar")) return;
      viewer.activate(this);
      if (event.pointerType === "touch") touches.set(event.pointerId, event);
      const kind = touches.size > 1 ? "pinch" : event.button === 2 ? "window" : event.button === 1 || event.shiftKey ? "pan" : "press";
      if (kind === "pan") event.preventDefault();
      begin(kind, event);
      frame.setPointerCapture(event.pointerId);
    });
    frame.addEventListener("pointermove", (event) => {
      if (!drag) return;
      if (touches.has(event.pointerId)) touches.set(event.pointerId, event);
      const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
      if (drag.kind === "press" && Math.max(Math.abs(dx), Math.abs(dy)) > DRAG_START) {
        drag.across = Math.abs(dx) > Math.abs(dy);
        const finger = event.pointerType === "touch";
        // A finger that moves up or down scrolls the page, which is the browser's part.
        drag.kind = finger && this.zoomed ? "pan" : finger && !drag.across ? "none" : "scroll";
      }
      if (drag.kind === "scroll") {
        const pixels = clamp((drag.across ? frame.clientWidth : frame.clientHeight) / viewer.count, 2, 14);
        viewer.show(drag.slice + Math.trunc((drag.across ? dx : dy) / pixels));
      } else if (drag.kind === "window") viewer.dragWindow(drag.window, dx, dy);
      else if (drag.kind === "pan") this.pan(drag.ranges, dx, dy);
      else if (drag.kind === "pinch" && touches.size > 1) {
        const spread = spreadOf(touches);
        this.zoom(drag.spread.size / Math.max(spread.size, 1), spread, drag.ranges, drag.spread);
      }
    });
    const end = (event) => {
      touches.delete(event.pointerId);
      if (drag?.kind === "press" && event.type === "pointerup") {
        const at = this.under(event);
        if (at) viewer.pointAt(viewer.indexAt(at));
      }
      drag = null;
      // Of two fingers one is left: it moves what was just enlarged, and lifting it is no tap.
      if (touches.size) begin(touches.size > 1 ? "pinch" : this.zoomed ? "pan" : "none", [...touches.values()][0]);
    };
    frame.addEventListener("pointerup", end);
    frame.addEventListener("pointercancel", end);
    frame.addEventListener("dblclick", (event) => {
      if (!event.target.closest(".modebar")) viewer.toggleSolo(this.kind);
    });
    frame.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) { viewer.activate(this); return; }
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? ZOOM_STEP : 1 / ZOOM_STEP, { x: event.clientX, y: event.clientY });
    }, { passive: false });
  }

  pan([x, y], dx, dy) {
    const { xaxis, yaxis } = this.plot._fullLayout;
    // The vertical range starts at the lower edge.
    const mx = (dx / xaxis._length) * (x[1] - x[0]), my = (-dy / yaxis._length) * (y[1] - y[0]);
    this.viewer.look(this, [x.map((v) => v - mx), y.map((v) => v - my)]);
  }

  // factor below 1 comes closer; the place that was under `from` (client pixels) comes to lie under `focus`.
  zoom(factor, focus = null, ranges = this.ranges(), from = focus) {
    const { xaxis, yaxis } = this.plot._fullLayout;
    const box = this.frame.getBoundingClientRect();
    const part = (point) => (point
      ? [(point.x - box.left - xaxis._offset) / xaxis._length, 1 - (point.y - box.top - yaxis._offset) / yaxis._length]
      : [0.5, 0.5]);
    const before = part(from), after = part(focus);
    const [x, y] = ranges.map(([low, high], i) => {
      const start = low + (before[i] - after[i] * factor) * (high - low);
      return [start, start + factor * (high - low)];
    });
    const span = x[1] - x[0];
    if (span > 1.02 * Math.max(this.width, ranges[0][1] - ranges[0][0]) && factor > 1) this.viewer.look(this, [[0, this.width], [this.height, 0]]);
    else if (span > 6 * this.space.columns.mm) this.viewer.look(this, [x, y]);
  }

  // The pixel of the slice under the pointer; null beside it.
  under(event) {
    const { xaxis, yaxis } = this.plot._fullLayout;
    const box = this.frame.getBoundingClientRect();
    const { rows, columns } = this.space;
    const column = Math.floor(xaxis.p2d(event.clientX - box.left - xaxis._offset) / columns.mm);
    const row = Math.floor(yaxis.p2d(event.clientY - box.top - yaxis._offset) / rows.mm);
    return row >= 0 && row < rows.count && column >= 0 && column < columns.count ? { row, column, space: this.space } : null;
  }

  // The cross at the place under the pointer, and in the pointer's own panel the values beside it.
  mark(at, own) {
    const same = at && at.space === this.space;
    this.cross.hidden = !same || own;
    this.tip.hidden = !same || !own;
    if (!same) return;
    const { xaxis, yaxis } = this.plot._fullLayout;
    const { rows, columns } = this.space;
    const x = xaxis._offset + xaxis.d2p((at.column + 0.5) * columns.mm);
    const y = yaxis._offset + yaxis.d2p((at.row + 0.5) * rows.mm);
    this.cross.style.transform = `translate(${x}px, ${y}px)`;
    if (!own) return;
    this.tip.replaceChildren(...this.viewer.values(this.viewer.indexAt(at)).map(([name, value]) =>
      element("span", {}, element("b", {}, name), ` ${value}`)));
    // Towards the middle of the frame, so that it is never cut off.
    const right = x > this.frame.clientWidth / 2, low = y > this.frame.clientHeight / 2;
    this.tip.style.transform =
      `translate(${x + (right ? -14 : 14)}px, ${y + (low ? -14 : 14)}px) translate(${right ? -100 : 0}%, ${low ? -100 : 0}%)`;
  }

  resize() {
    if (!this.frame.clientWidth || !this.plot._fullLayout) return Promise.resolve();
    return Promise.resolve(this.viewer.Plotly.Plots.resize(this.plot)).then(() => { this.place(); this.draw(); });
  }

  // ---- colour scale

  drawBar() {
    const { viewer } = this;
    if (this.overlap) this.overlap.textContent = viewer.overlapText();
    if (!this.bar) return;
    const context = this.bar.getContext("2d");
    const image = context.createImageData(256, 1);
    const words = new Uint32Array(image.data.buffer);
    if (this.layer) {
      const { range, cut: from } = this.layer;
      const part = (this.layer.now.value(from) - range[0]) / (range[1] - range[0]);
      // What the threshold hides is left out of the bar as well.
      for (let i = 0; i < 256; i++) words[i] = rgba(viewer.colors.subarray(3 * i, 3 * i + 3), i / 255 < part ? 0 : 1);
      this.low.textContent = range[0] ? range[0].toPrecision(2) : "0";
      this.high.textContent = `${range[1].toPrecision(2)}${viewer.view.scale === "own" ? " max." : ""}`;
      this.cutMark.textContent = part > 0.12 && part <= 1 ? this.layer.now.value(from).toPrecision(2) : "";
      this.cutMark.style.left = `${100 * Math.min(part, 1)}%`;
      // Left of where the colours begin; over them where the low end's number leaves no room.
      const room = part * this.cutMark.parentElement.clientWidth;
      this.cutMark.classList.toggle("mstv-cut-over", room < this.cutMark.offsetWidth + 4);
    } else {
      for (let i = 0; i < 256; i++) words[i] = viewer.differences[2 * i];
      [this.high.textContent, this.low.textContent] = viewer.pair.map((layer) => `${viewer.nameOf(layer)} more`);
    }
    context.putImageData(image, 0, 0);
  }

  // ---- drawing

  draw() {
    if (!this.at || this.node.hidden || this.turned !== this.space) return;
    const { viewer, at, space } = this;
    const { left, top, right, bottom } = at;
    const { context } = this;
    if (left > 0.5 || top > 0.5 || right < at.width - 0.5 || bottom < at.height - 0.5) {
      context.fillStyle = "#000";
      context.fillRect(0, 0, at.width, at.height);
    }
    const { part } = this;
    const sx = (right - left) / space.columns.count, sy = (bottom - top) / space.rows.count;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = at.ratio > 1.5 * sx ? "high" : "low";
    const put = (image, column, row) => context.drawImage(image, column, row, part.columns, part.rows,
      left + part.column * sx, top + part.row * sy, part.columns * sx, part.rows * sy);
    const style = this.layer ? viewer.view.style : "filled";
    const over = this.kind !== "scan" && viewer.view.opacity > 0;
    const filled = over && style !== "contours", smooth = viewer.view.map === "smooth";
    const base = viewer.base(space);
    if (filled) {
      // Enlarging an image is what a frame costs most: where slice and map are enlarged alike, they are joined before.
      this.paint(smooth ? base.words : null);
      this.imageContext.putImageData(this.pixels, 0, 0);
    }
    if (!filled || !smooth) put(base.canvas, part.column, part.row);
    context.imageSmoothingEnabled = smooth;
    if (filled) put(this.image, 0, 0);
    if (over && style !== "filled") this.drawContours(context);
    if (this.kind !== "scan") this.drawRegion(context);
    else this.drawSpot(context);
    this.drawRuler(context);
    const outlined = this.kind === "mask" || (viewer.view.outline && (this.kind !== "scan" || !viewer.layers.length));
    if (viewer.mask && outlined) this.drawOutline(context);
    if (viewer.view.cross) this.drawCross(context);
    if (this.badge) this.badge.toggleAttribute("data-here", viewer.index[viewer.spaces[viewer.data.plane].depth.axis] === this.layer.top);
  }

  // What lies over the slice, at one pixel a voxel, of the part in sight; over `grays`, or else over nothing.
  paint(grays) {
    const { viewer, words, space, part, kind } = this;
    const { columns: { count: stride } } = space;
    for (let r = 0; r < part.rows; r++) {
      const at = (part.row + r) * stride + part.column;
      if (grays) words.set(grays.subarray(at, at + part.columns), r * part.columns);
      else words.fill(0, r * part.columns, (r + 1) * part.columns);
    }
    const met = meet(space, kind === "mask" ? viewer.mask : viewer.box, this.here);
    if (!met) return;
    const color = this.colorsOf(met), { rows, columns } = met.own;
    const from = Math.max(met.column, part.column), to = Math.min(met.column + columns.count, part.column + part.columns);
    for (let row = Math.max(met.row, part.row); row < Math.min(met.row + rows.count, part.row + part.rows); row++) {
      let at = (row - part.row) * part.columns + from - part.column, source = (row - met.row) * columns.count + from - met.column;
      for (let column = from; column < to; column++, at++, source++) {
        const over = color(source);
        if (over >>> 24) words[at] = grays ? blend(over, words[at]) : over;
      }
    }
  }

  // A slice of codes of the maps' box, or of another one.
  codesOf(met, { codes }, name = "a") {
    return cut(met.own, met.slice, codes, this.viewer.buffer(name, met.own.rows.count * met.own.columns.count));
  }

  // The colour that a panel lays over each pixel of a box's slice.
  colorsOf(met) {
    const { viewer, kind } = this;
    if (this.layer) {
      const codes = this.codesOf(met, this.layer.now), { table } = this.layer;
      return (i) => table[codes[i]];
    }
    if (kind === "mask") {
      const codes = this.codesOf(met, viewer.mask), fill = rgba(rgb(this.viewer.colorOf("mask")), 0.3 * viewer.view.opacity);
      return (i) => (codes[i] > 127 ? fill : 0);
    }
    const [mst, resnet] = viewer.pair;
    const a = this.codesOf(met, mst.now), b = this.codesOf(met, resnet.now, "b");
    if (kind === "difference") return (i) => viewer.differences[255 + a[i] - b[i]];
    const colors = [0, ...["mst", "resnet", "both"].map((name) => rgba(rgb(this.viewer.colorOf(name)), viewer.view.opacity))];
    return (i) => colors[+(a[i] >= mst.cut) | (+(b[i] >= resnet.cut) << 1)];
  }

  stroke(context, lines, color, width, dash = []) {
    const { left, top, right, bottom, ratio } = this.at;
    const { rows, columns } = this.space;
    const sx = (right - left) / columns.count, sy = (bottom - top) / rows.count;
    context.save();
    context.beginPath();
    for (let i = 0; i < lines.length; i += 4) {
      context.moveTo(left + lines[i] * sx, top + lines[i + 1] * sy);
      context.lineTo(left + lines[i + 2] * sx, top + lines[i + 3] * sy);
    }
    context.setLineDash(dash.map((n) => n * ratio));
    context.strokeStyle = color;
    context.lineWidth = width * ratio;
    context.stroke();
    context.restore();
  }

  // Lines at the threshold and at thirds of the way from it to the map's maximum.
  drawContours(context) {
    const { viewer, layer, space } = this;
    const met = meet(space, viewer.box, this.here);
    if (!met) return;
    const { rows: { count: rows }, columns: { count: columns } } = met.own;
    const codes = this.codesOf(met, layer.now);
    for (const part of [0, 1 / 3, 2 / 3]) {
      const level = layer.cut + part * (255 - layer.cut);
      const color = layer.table[Math.min(255, Math.round(level))];
      const lines = viewer.view.map === "smooth"
        ? moved(contour(framed(codes, rows, columns), rows + 2, columns + 2, level - 0.5), met.column - 1, met.row - 1)
        : moved(borders((i) => codes[i] >= level, rows, columns), met.column, met.row);
      this.stroke(context, lines, "rgba(0, 0, 0, .55)", 3);
      this.stroke(context, lines, `rgb(${color & 255}, ${(color >> 8) & 255}, ${(color >> 16) & 255})`, 1.6);
    }
  }

  // A dashed frame round what the models were given; on slices beside it there is none.
  drawRegion(context) {
    const { region } = this.viewer.data;
    if (region && this.kind !== "mask") this.drawFrame(context, region, "rgba(255, 255, 255, .5)", 1, [5, 4]);
  }

  // What the models will be given, as long as nothing is explained.
  drawSpot(context) {
    const { spot, layers, data } = this.viewer;
    if (!spot?.size || layers.length) return;
    const middle = toVoxel(data.affine, spot.center);
    const frame = middle.map((v, axis) => [-1, 1].map((side) => v + 0.5 + (side * spot.size[axis]) / data.spacing[axis] / 2));
    this.drawFrame(context, frame, "#f2b84b", 1.5);
  }

  // A box of the grid, [3][from, to], where this slice crosses it.
  drawFrame(context, box, color, width, dash = []) {
    const { depth, rows, columns } = this.space;
    const here = this.here + 0.5;
    if (here < box[depth.axis][0] || here > box[depth.axis][1]) return;
    const ends = (line) => box[line.axis].map((v) => (line.flip ? line.count - v : v));
    const [x0, x1] = ends(columns), [y0, y1] = ends(rows);
    this.stroke(context, [x0, y0, x1, y0, x1, y0, x1, y1, x1, y1, x0, y1, x0, y1, x0, y0], color, width, dash);
  }

  drawOutline(context) {
    const { viewer, space } = this;
    const kept = (viewer.outlines[space.plane] ??= { slice: -1 });
    if (kept.slice !== this.here) {
      const met = meet(space, viewer.mask, this.here);
      let lines = [];
      if (met) {
        const codes = this.codesOf(met, viewer.mask);
        lines = moved(borders((i) => codes[i] > 127, met.own.rows.count, met.own.columns.count), met.column, met.row);
      }
      Object.assign(kept, { slice: this.here, lines });
    }
    this.stroke(context, kept.lines, this.viewer.colorOf("mask"), 1.6);
  }

  // The chosen place, with a gap that leaves it visible.
  drawCross(context) {
    const { rows, columns } = this.space;
    const { index } = this.viewer;
    const along = (line) => (line.flip ? line.count - 1 - index[line.axis] : index[line.axis]) + 0.5;
    const x = along(columns), y = along(rows);
    const { left, right, ratio } = this.at;
    const gapX = (9 * ratio * columns.count) / (right - left), gapY = (gapX * columns.mm) / rows.mm;
    this.stroke(context, [0, y, x - gapX, y, x + gapX, y, columns.count, y, x, 0, x, y - gapY, x, y + gapY, x, rows.count],
      "rgba(64, 196, 198, .9)", 1);
  }

  // Where the crosshair lies on the frame, in CSS pixels; null where that is out of sight.
  spotOnFrame() {
    const { rows, columns } = this.space;
    const { index } = this.viewer;
    const { left, top, right, bottom, ratio, width, height } = this.at;
    const along = (line, from, to) => from + (((line.flip ? line.count - 1 - index[line.axis] : index[line.axis]) + 0.5) / line.count) * (to - from);
    const x = along(columns, left, right), y = along(rows, top, bottom);
    return x >= 0 && y >= 0 && x <= width && y <= height ? { x: x / ratio, y: y / ratio } : null;
  }

  // A round number of millimetres, about a fifth of the image.
  drawRuler(context) {
    const { left, right, ratio, width, height } = this.at;
    const pixelsPerMm = (right - left) / this.width;
    const wanted = (0.2 * width) / pixelsPerMm;
    const ten = 10 ** Math.floor(Math.log10(wanted));
    const mm = ten * ([5, 2, 1].find((n) => n * ten <= wanted) || 1);
    const x = 12 * ratio, y = height - 13 * ratio, length = mm * pixelsPerMm;
    const line = (color, thick) => {
      context.strokeStyle = color;
      context.lineWidth = thick * ratio;
      context.beginPath();
      context.moveTo(x, y - 4 * ratio);
      context.lineTo(x, y);
      context.lineTo(x + length, y);
      context.lineTo(x + length, y - 4 * ratio);
      context.stroke();
    };
    line("rgba(0, 0, 0, .7)", 3.5);
    line("#fff", 1.5);
    context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
    context.lineWidth = 3 * ratio;
    context.strokeStyle = "rgba(0, 0, 0, .7)";
    context.strokeText(`${mm} mm`, x, y - 8 * ratio);
    context.fillStyle = "#fff";
    context.fillText(`${mm} mm`, x, y - 8 * ratio);
  }
}

// A colour laid over a grey pixel.
function blend(color, under) {
  const gray = under & 255, part = (color >>> 24) / 255;
  const red = gray + ((color & 255) - gray) * part, green = gray + (((color >> 8) & 255) - gray) * part;
  const blue = gray + (((color >> 16) & 255) - gray) * part;
  return (0xff000000 | ((blue + 0.5) << 16) | ((green + 0.5) << 8) | (red + 0.5)) >>> 0;
}

// Lines [x0, y0, x1, y1, ...] to the right and down.
const moved = (lines, right, down) => lines.map((v, i) => v + (i % 2 ? down : right));

// A button over a slice: a press on it is no press on the slice.
export function apart(button) {
  for (const name of ["pointerdown", "pointerup", "dblclick"]) button.addEventListener(name, (event) => event.stopPropagation());
  return button;
}

// The middle of all fingers, and how far the first two are apart.
function spreadOf(touches) {
  const [a, b] = [...touches.values()];
  if (!b) return { x: a?.clientX ?? 0, y: a?.clientY ?? 0, size: 1 };
  return { x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2, size: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY) };
}
