// The locator: the whole scan in three planes, for choosing the spot that the models look at.
import { clamp, eachPixel, geometry, grayTable, readVolume, toVoxel, toWorld } from "./slices.js";
import { element } from "./page.js";

export class Locator {
  constructor(root, payload) {
    this.root = root;
    this.data = payload;
  }

  async start() {
    const { data, root } = this;
    this.scan = await readVolume(data.scan, data.shape);
    this.gray = grayTable(this.scan, data.window);
    const middle = data.shape.map((n) => (n - 1) / 2);
    this.index = data.center ? toVoxel(data.affine, data.center) : middle;
    this.planes = ["axial", "coronal", "sagittal"].map((plane) => this.buildPlane(plane));
    this.readout = element("p", { class: "mstv-readout", "aria-live": "polite" });
    root.replaceChildren(
      element("div", { class: "mstl-planes" }, ...this.planes.map((p) => p.node)),
      element("div", { class: "mstl-foot" }, element("p", {}, "Click or drag to choose the spot; scroll to change the slice. The frame is the region that the models see."), this.readout));
    this.watcher = new ResizeObserver(() => this.draw());
    this.watcher.observe(root);
    this.draw();
    if (data.center) root.dataset.center = data.center.map((v) => Math.round(v * 10) / 10).join(",");
    root.dataset.ready = "true";
  }

  buildPlane(plane) {
    const space = geometry(plane, this.data.shape, this.data.spacing);
    const { rows, columns } = space;
    const canvas = element("canvas", { class: "mstl-canvas", tabindex: "0", role: "img",
      "aria-label": `${plane} slice; arrow keys change the slice` });
    const width = columns.count * columns.mm, height = rows.count * rows.mm;
    const letter = (text, side) => element("span", { class: `mstv-letter mstv-${side}`, "aria-hidden": "true" }, text);
    const frame = element("div", { class: "mstl-frame" }, canvas,
      letter(rows.ends[0], "top"), letter(rows.ends[1], "bottom"), letter(columns.ends[0], "left"), letter(columns.ends[1], "right"));
    const node = element("figure", { class: "mstl-plane", "data-plane": plane },
      element("figcaption", {}, plane[0].toUpperCase() + plane.slice(1)), frame);
    canvas.style.aspectRatio = `${width} / ${height}`;
    node.style.setProperty("--ratio", width / height);
    const image = document.createElement("canvas");
    image.width = columns.count;
    image.height = rows.count;
    const entry = { plane, space, canvas, node, image, width, height, pixels: new ImageData(columns.count, rows.count) };
    const pick = (event) => {
      const box = canvas.getBoundingClientRect();
      const column = ((event.clientX - box.left) / box.width) * columns.count - 0.5;
      const row = ((event.clientY - box.top) / box.height) * rows.count - 0.5;
      this.index[columns.axis] = clamp(columns.flip ? columns.count - 1 - column : column, 0, columns.count - 1);
      this.index[rows.axis] = clamp(rows.flip ? rows.count - 1 - row : row, 0, rows.count - 1);
      this.draw();
    };
    // A finger that moves up or down scrolls the page: the browser cancels its press, which then has chosen nothing.
    let before = null;
    canvas.addEventListener("pointerdown", (event) => {
      before = this.index.slice();
      canvas.setPointerCapture(event.pointerId);
      pick(event);
    });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
    canvas.addEventListener("pointerup", () => this.tell());
    canvas.addEventListener("pointercancel", () => {
      if (before) this.index = before;
      this.draw();
    });
    const scroll = (by) => {
      const { axis, count } = space.depth;
      this.index[axis] = clamp(Math.round(this.index[axis]) + by, 0, count - 1);
      this.draw();
      clearTimeout(this.telling);
      this.telling = setTimeout(() => this.tell(), 250);
    };
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.deltaY === 0) return;
      event.preventDefault();
      scroll(Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 5, PageUp: -5 }[event.key];
      if (by) { event.preventDefault(); scroll(by); }
    });
    return entry;
  }

  tell() {
    const [x, y, z] = toWorld(this.data.affine, this.index).map((v) => Math.round(v * 10) / 10);
    this.root.dataset.center = `${x},${y},${z}`;
    this.root.dispatchEvent(new CustomEvent("mst-center", { bubbles: true, detail: { x, y, z } }));
  }

  draw() {
    const { gray, scan, data } = this;
    for (const { space, canvas, image, pixels } of this.planes) {
      const { depth, rows, columns } = space;
      const out = pixels.data;
      const slice = clamp(Math.round(this.index[depth.axis]), 0, depth.count - 1);
      eachPixel(space, slice, (index, pixel) => {
        out[4 * pixel] = out[4 * pixel + 1] = out[4 * pixel + 2] = gray[scan.codes[index]];
        out[4 * pixel + 3] = 255;
      });
      image.getContext("2d").putImageData(pixels, 0, 0);
      const ratio = window.devicePixelRatio || 1;
      const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
      if (!width || !height) continue;
      Object.assign(canvas, { width, height });
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(image, 0, 0, width, height);
      const along = (line, at) => ((line.flip ? line.count - 1 - at : at) + 0.5) / line.count;
      const x = along(columns, this.index[columns.axis]) * width;
      const y = along(rows, this.index[rows.axis]) * height;
      context.lineWidth = ratio;
      context.strokeStyle = "rgba(64, 196, 198, .85)";
      const gap = 7 * ratio;
      context.beginPath();
      for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
        context.moveTo(x0, y0);
        context.lineTo(x1, y1);
      }
      context.stroke();
      if (data.box) {
        const w = (data.box[columns.axis] / (columns.count * columns.mm)) * width;
        const h = (data.box[rows.axis] / (rows.count * rows.mm)) * height;
        context.strokeStyle = "#f2b84b";
        context.lineWidth = 1.5 * ratio;
        context.strokeRect(x - w / 2, y - h / 2, w, h);
      }
    }
    const world = toWorld(data.affine, this.index);
    this.readout.textContent = `x ${world[0].toFixed(1)}, y ${world[1].toFixed(1)}, z ${world[2].toFixed(1)} mm`;
  }

  stop() {
    clearTimeout(this.telling);
    this.watcher?.disconnect();
  }
}
