// The linked viewers: their state, their controls, and what every panel shares.
//
// Plotly draws axes, zoom and 3D. The slices themselves are a canvas under Plotly's transparent plot, so that a
// step through the slices redraws images and never asks Plotly or the server for anything.
import {
  AXES, COLORS, bestColumns, clamp, colorTable, cut, eachPixel, geometry, grayTable, hotSpots, largest, quantile, readLink,
  readVolume, spread, toVoxel, toWorld, writeLink,
} from "./slices.js";
import { element, fail, loadPlotly, theme } from "./page.js";
import { MODEL_COLORS, Panel, rgb, rgba } from "./panel.js";
import { Solid } from "./solid.js";
import { Projection } from "./projection.js";
import { saveAnimation, savePicture } from "./save.js";

const PLANES = Object.keys(AXES);
const KINDS = ["scan", "mst", "resnet", "mask", "difference", "agreement"];
const SHORT = { scan: "Scan", mst: "MST", resnet: "ResNet", mask: "Lesion mask", difference: "Difference", agreement: "Agreement" };
const PAPER_QUANTILES = [0.995, 0.999]; // of the colour scale in the paper's figures
const PLAY_MS = 110;
const WHEEL_STEP = 50; // a wheel's notch is 100 or 120; a touchpad sends many small parts of it
const SMALLEST_PANEL = 240; // pixels of width for which panels stay in one row
const SMALLEST_HOT_SPOT = 0.2; // of the map's maximum
/** @type {[string[], string][]} */
const KEYS = [
  [["←", "→", "wheel", "drag"], "one slice"], [["PgUp", "PgDn"], "five slices"], [["Home", "End"], "first, last"], [["Space"], "play"],
  [["A", "C", "S"], "axial, coronal, sagittal"], [["T"], "all three planes"], [["click"], "set the crosshair"], [["X"], "crosshair on or off"],
  [["N", "Shift N"], "next hot spot of the MST, the ResNet"], [["O"], "lesion outline"], [["1", "…", "4"], "window"],
  [["right drag"], "level and width"], [["Ctrl wheel", "pinch", "+", "−"], "zoom"], [["Shift drag", "middle drag"], "move"],
  [["0"], "whole slice"], [["double click", "F"], "one large panel"], [["?"], "these keys"],
];
// Of the address a page was opened with; the first viewer takes it, a scan opened later starts afresh.
let opened = location.hash;

export class Viewer {
  constructor(root, payload) {
    this.root = root;
    this.data = payload;
    this.windows = payload.windows.length ? payload.windows : [["Automatic", ...payload.window]];
    const keys = payload.layers.map((layer) => layer.key);
    this.available = KINDS.filter((kind) => kind === "scan" || keys.includes(kind) || (kind === "mask" && payload.mask) ||
      (/^(difference|agreement)$/.test(kind) && keys.includes("mst") && keys.includes("resnet")));
    this.names = { ...SHORT, ...Object.fromEntries(payload.layers.filter(({ short }) => short).map(({ key, short }) => [key, short])) };
    this.usual = {
      plane: payload.plane, layout: "one", panels: this.available.filter((kind) => !/^(difference|agreement)$/.test(kind)), solo: null,
      by: "maximum", threshold: 0.9, maximum: payload.shownFrom, value: 0, scale: "own", map: "smooth", style: "filled", colors: "Viridis", opacity: 0.6,
      window: payload.window.slice(), convention: "radiological", cross: false, outline: true,
    };
    this.view = { ...this.usual };
    this.index = payload.shape.map((n) => Math.floor(n / 2));
    this.shown = "2d";
    this.panels = [];
    this.syncs = [];
    this.bases = {};
    this.buffers = {};
    this.spots = {};
    this.wheeled = 0;
    this.arranging = Promise.resolve();
    this.stopper = new AbortController();
  }

  get space() { return this.spaces[this.view.plane]; }
  get count() { return this.space.depth.count; }
  get slice() { return this.index[this.space.depth.axis]; }
  nameOf({ key }) { return this.names[key] || key; }
  bodyName(key) { return key === "mask" ? SHORT.mask : `${this.nameOf({ key })} map`; }
  get pair() { return ["mst", "resnet"].map((key) => this.layers.find((layer) => layer.key === key)); }

  async start() {
    const { data } = this;
    const read = (entry) => (entry ? readVolume(entry, data.shape) : null);
    const [scan, mask, layers, natives] = await Promise.all([
      read(data.scan), read(data.mask), Promise.all(data.layers.map(read)),
      Promise.all(data.layers.map(({ native }) => (native ? readVolume(native, native.shape) : null))),
    ]);
    this.scan = scan;
    this.mask = mask;
    if (!data.windows.length) this.windows.push(["Full range", scan.value(0), scan.value(largest(scan.codes))]);
    this.layers = data.layers.map((layer, i) => ({
      ...layer, volume: { ...layers[i], max: layer.max }, patches: natives[i] && { ...natives[i], grid: layer.native, max: layer.native.max } }));
    this.respace();
    const opening = this.layers.find((layer) => layer.key === "mst") || this.layers[0];
    if (opening) this.index = this.brightest(opening);
    this.Plotly = await loadPlotly();
    const link = readLink(opened);
    opened = "";
    Object.assign(this.view, this.fromLink(link));
    this.respace();
    this.place(link);
    this.tables();
    this.build();
    await this.arrange();
    this.listen();
    this.update();
    this.draw();
    await this.openView(link);
    this.root.dataset.ready = "true";
  }

  respace() {
    this.spaces = Object.fromEntries(PLANES.map((plane) =>
      [plane, geometry(plane, this.data.shape, this.data.spacing, this.view.convention === "neurological")]));
    this.bases = {};
    this.outlines = {}; // the mask's, of the slice that each plane shows
  }

  // The voxel with the most saliency in the slice that a model weighs most.
  brightest(layer) {
    const space = this.spaces[this.data.plane];
    let best = -1, index = this.index;
    eachPixel(space, layer.top, (at, pixel) => {
      if (layer.volume.codes[at] <= best) return;
      best = layer.volume.codes[at];
      index = this.indexAt({ row: Math.floor(pixel / space.columns.count), column: pixel % space.columns.count, space }, layer.top);
    });
    return index;
  }

  // ---- the view's state: everything that a link carries

  apply(changes) {
    const before = this.view;
    this.view = { ...before, ...changes };
    const differs = (...keys) => keys.some((key) => this.view[key] !== before[key]);
    if (differs("convention")) this.respace();
    if (differs("threshold", "maximum", "value", "by", "scale", "map", "colors", "opacity", "window")) this.tables();
    this.update();
    if (differs("plane", "convention", "layout", "panels", "solo")) this.arrange(differs("convention", "plane"));
    this.bodies.forEach((body) => body.recut());
  }

  // Tells root, controls and address what is shown, and draws it with the next frame.
  update() {
    const { root, slice, count } = this;
    Object.assign(root.dataset, { slice, plane: this.view.plane, count });
    this.slider.max = count - 1;
    this.slider.value = slice;
    this.slider.setAttribute("aria-valuetext", `slice ${this.numberIn(this.view.plane, slice)}`);
    if (this.synced !== this.view) {
      this.syncs.forEach((sync) => sync(this.view));
      this.synced = this.view;
    }
    this.later();
    this.remembering();
  }

  // Writes the view into the address, once it has come to rest.
  remembering() {
    if (this.root.dataset.ready !== "true") return;
    clearTimeout(this.linking);
    this.linking = setTimeout(() => this.remember(), 400);
  }

  remember() {
    try {
      history.replaceState(history.state, "", this.link());
    } catch {
      // A page without an address of its own (some embedded views) has none to change.
    }
  }

  link() {
    const { view, usual } = this;
    const changed = (key) => (view[key] === usual[key] ? undefined : view[key]);
    const flag = (key) => (view[key] === usual[key] ? undefined : Number(view[key]));
    const custom = view.window.some((v, i) => v !== usual.window[i]);
    return writeLink({
      view: this.shown === "2d" ? undefined : this.shown, angle: this.shown === "mip" ? Math.round(this.projection.angle) : undefined,
      camera: this.shown === "3d" ? this.solid.camera : undefined,
      plane: view.plane, slice: this.numberIn(view.plane, this.slice), [view.by]: view[view.by],
      layout: view.layout === "three" ? "three" : undefined,
      panels: view.panels.join() === usual.panels.join() ? undefined : view.panels.join(),
      solo: changed("solo"), scale: changed("scale"), map: changed("map"), style: changed("style"), colors: changed("colors"),
      opacity: changed("opacity"), convention: changed("convention"), outline: flag("outline"), cross: flag("cross"),
      level: custom ? (view.window[0] + view.window[1]) / 2 : undefined, width: custom ? view.window[1] - view.window[0] : undefined,
      at: view.cross || view.layout === "three" ? toWorld(this.data.affine, this.index).map((v) => v.toFixed(1)).join() : undefined,
    });
  }

  // The changes to the view that a link asks for; panels that this scan does not have are left out.
  fromLink(link) {
    const { view: _, angle, camera, slice, at, level, width, panels, solo, cross, outline, ...changes } = link;
    for (const by of ["threshold", "maximum", "value"]) if (link[by] !== undefined) changes.by = by;
    if (level !== undefined && width !== undefined) changes.window = [level - width / 2, level + width / 2];
    const wanted = panels?.split(",").filter((kind) => this.available.includes(kind));
    if (wanted?.length) changes.panels = KINDS.filter((kind) => wanted.includes(kind));
    if (this.available.includes(solo)) changes.solo = solo;
    if (cross) changes.cross = cross === "1";
    if (outline) changes.outline = outline === "1";
    if (changes.map === "patches" && !this.layers.some((layer) => layer.patches)) delete changes.map;
    return changes;
  }

  /** @param {Record<string, any>} link */
  place({ slice, at }) {
    if (at) this.index = toVoxel(this.data.affine, at).map((v, axis) => clamp(Math.round(v), 0, this.data.shape[axis] - 1));
    if (slice === undefined) return;
    const { axis, count } = this.space.depth;
    this.index[axis] = clamp(Math.round((slice - 1 - this.data.first[axis]) / this.data.factors[axis]), 0, count - 1);
  }

  /** @param {Record<string, any>} link */
  async openView({ view = "2d", angle, camera }) {
    if (angle !== undefined) this.projection.look(angle);
    this.solid.look(camera);
    if (view !== this.shown) await this.setView(view.toUpperCase());
  }

  // ---- tables: everything that painting looks up

  tables() {
    const { view } = this;
    this.gray = grayTable(this.scan, view.window);
    this.grays = Uint32Array.from(this.gray, (g) => (0xff000000 | (g << 16) | (g << 8) | g) >>> 0);
    this.bases = {};
    this.colors = colorTable(COLORS[view.colors]);
    for (const layer of this.layers) {
      layer.now = layer.volume;
      if (view.map === "patches" && layer.patches) {
        layer.spread ??= { ...layer.patches, codes: spread(layer.patches.codes, layer.patches.grid, this.data.shape) };
        layer.now = layer.spread;
      }
      layer.now.counts ??= this.count256(layer.now);
      layer.cut = this.cutOf(layer);
    }
    const most = Math.max(...this.layers.map((layer) => layer.now.max), 1e-12);
    for (const layer of this.layers) {
      layer.range = this.rangeOf(layer, most);
      this.color(layer);
    }
    // MST minus ResNet, from -255 to 255: teal where the MST sees more, orange where the ResNet does.
    this.differences = new Uint32Array(511);
    for (let d = -255; d <= 255; d++) {
      const part = Math.abs(d) / 255;
      const alpha = part < 0.08 ? 0 : view.opacity * Math.min(1, 0.2 + 1.1 * part);
      this.differences[255 + d] = rgba(rgb(MODEL_COLORS[d > 0 ? "mst" : "resnet"]), alpha);
    }
    this.shared = null;
    this.panels.forEach((panel) => panel.drawBar());
  }

  // How often each code occurs within the models' region.
  count256({ codes }) {
    const { shape, region } = this.data;
    const [x, y, z] = shape.map((n, axis) => (region ? region[axis].map((at) => clamp(Math.round(at), 0, n)) : [0, n]));
    const counts = new Float64Array(256);
    for (let i = x[0]; i < x[1]; i++) for (let j = y[0]; j < y[1]; j++) {
      const row = (i * shape[1] + j) * shape[2];
      for (let k = z[0]; k < z[1]; k++) counts[codes[row + k]]++;
    }
    return counts;
  }

  // The lowest code that is shown; 256 shows nothing.
  cutOf({ now }) {
    const { by, threshold, maximum, value } = this.view;
    if (by === "maximum") return Math.max(1, Math.round(255 * maximum));
    if (by === "value") return clamp(Math.ceil(now.code(value) - 1e-6), 1, 256);
    return threshold <= 0 ? 1 : Math.max(1, quantile(now.counts, threshold));
  }

  // The values at both ends of a layer's colours.
  rangeOf({ now }, most) {
    if (this.view.scale === "shared") return [0, most];
    if (this.view.scale === "own") return [0, now.max || 1];
    const [low, high] = PAPER_QUANTILES.map((share) => now.value(quantile(now.counts, share)));
    return [low, Math.max(high, low + (now.max || 1) / 255)];
  }

  // For each code of a layer, the colour over the scan. It grows from the threshold up, so that the map's
  // edge is no hard line that the model did not draw.
  color(layer) {
    const [low, high] = layer.range;
    const part = (code) => clamp((layer.now.value(code) - low) / (high - low), 0, 1);
    const from = part(layer.cut);
    layer.table = new Uint32Array(256);
    for (let code = layer.cut; code < 256; code++) {
      const at = part(code), color = 3 * Math.round(255 * at);
      const above = (at - from) / Math.max(1 - from, 1e-6);
      layer.table[code] = rgba(this.colors.subarray(color, color + 3), this.view.opacity * Math.min(1, 0.35 + 1.6 * above));
    }
  }

  // How far the parts of both maps above their thresholds overlap, in the whole volume.
  overlapText() {
    if (!this.shared) {
      const [a, b] = this.pair;
      let mst = 0, resnet = 0, both = 0;
      for (let i = 0; i < a.now.codes.length; i++) {
        const inA = a.now.codes[i] >= a.cut, inB = b.now.codes[i] >= b.cut;
        if (inA) mst++;
        if (inB) resnet++;
        if (inA && inB) both++;
      }
      this.shared = { dice: mst + resnet ? (2 * both) / (mst + resnet) : 0 };
    }
    return `Dice ${this.shared.dice.toFixed(2)}`;
  }

  // A slice in grey, painted once for all panels of its plane: { canvas, words }.
  base(space) {
    const slice = this.index[space.depth.axis];
    const kept = (this.bases[space.plane] ??= { canvas: document.createElement("canvas"), slice: -1 });
    if (kept.slice === slice) return kept;
    const { rows, columns } = space;
    if (!kept.pixels) {
      Object.assign(kept.canvas, { width: columns.count, height: rows.count });
      kept.pixels = new ImageData(columns.count, rows.count);
      kept.words = new Uint32Array(kept.pixels.data.buffer);
      kept.context = kept.canvas.getContext("2d", { willReadFrequently: true });
    }
    cut(space, slice, this.scan.codes, kept.words);
    const { words } = kept, { grays } = this;
    for (let i = 0; i < words.length; i++) words[i] = grays[words[i]];
    kept.context.putImageData(kept.pixels, 0, 0);
    kept.slice = slice;
    return kept;
  }

  buffer(name, size) {
    if (!(this.buffers[name]?.length >= size)) this.buffers[name] = new Uint8Array(size);
    return this.buffers[name];
  }

  // ---- building the page

  build() {
    const { data } = this;
    this.tabs = ["2D", "3D", "MIP"].map((name, i) =>
      element("button", { type: "button", role: "tab", title: ["Slices", "Surfaces, with WebGL", "Maximum-intensity projection"][i], "aria-selected": String(i === 0), tabindex: i ? -1 : 0,
        onclick: () => this.setView(name), onkeydown: (event) => this.switchTab(event) }, name));
    const toolbar = element("div", { class: "mstv-toolbar" },
      element("div", { class: "mstv-tabs", role: "tablist", "aria-label": "View" }, ...this.tabs),
      this.buildPlanes(), this.buildWindow(),
      this.layers.length ? this.buildOpacity() : null, this.layers.length ? this.buildThreshold() : null,
      element("div", { class: "mstv-second" }, this.buildChips(), this.mask ? this.check("Outline", "outline", "Lesion outline") : null,
        element("div", { class: "mstv-menus" }, this.buildDisplay(), this.buildSave(), this.buildHelp())));
    this.panelRow = element("div", { class: "mstv-panels" });
    this.slider = element("input", {
      type: "range", min: 0, max: this.count - 1, step: 1, value: this.slice, class: "mstv-slider", "aria-label": "Slice",
      "data-control": "slice", oninput: () => this.show(this.slider.valueAsNumber),
    });
    this.playButton = element("button", {
      type: "button", class: "mstv-icon", "aria-label": "Play", onclick: () => this.play(!this.timer),
    }, "▶");
    this.readout = element("p", { class: "mstv-readout", "aria-live": "off" });
    this.chart = element("canvas", { class: "mstv-chart", role: "img", "aria-label": "How much each model weighs each slice; click to go to a slice",
      onclick: (event) => {
        const box = this.chart.getBoundingClientRect();
        this.show(Math.floor(((event.clientX - box.left) / box.width) * this.count));
      } });
    this.marker = element("div", { class: "mstv-marker" });
    this.flat = element("div", { class: "mstv-flat", role: "tabpanel", "aria-label": "Slices" }, this.panelRow);
    const steer = element("div", { class: "mstv-steer" }, this.playButton,
      element("div", { class: "mstv-track" }, this.slider,
        this.layers.length ? element("div", { class: "mstv-chart-box" }, this.chart, this.marker) : null));
    this.solid = new Solid(this);
    this.projection = new Projection(this);
    const notes = data.notes.length
      ? element("ul", { class: "mstv-notes" }, ...data.notes.map((note) => element("li", {}, note))) : null;
    this.root.replaceChildren(toolbar, this.flat, this.solid.node, this.projection.node, steer,
      element("div", { class: "mstv-foot" }, this.readout, this.buildHotSpots()), ...(notes ? [notes] : []));
  }

  // A group of buttons of which one is pressed.
  switches(label, choices, pressed, choose) {
    const buttons = choices.map(([value, name, title]) =>
      element("button", { type: "button", title, onclick: () => choose(value) }, name));
    this.syncs.push((view) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(choices[i][0] === pressed(view)))));
    return element("div", { class: "mstv-tabs mstv-only-2d", role: "group", "aria-label": label }, ...buttons);
  }

  // more: of the view that changes with the choice.
  select(label, key, choices, more = {}) {
    const input = element("select", { "aria-label": label, onchange: () => this.apply({ [key]: input.value, ...more[input.value] }) },
      ...choices.map(([value, name]) => element("option", { value }, name)));
    this.syncs.push((view) => { input.value = view[key]; });
    return element("label", { class: "mstv-row" }, element("span", {}, label), input);
  }

  check(label, key, full = label) {
    const input = element("input", { type: "checkbox", "aria-label": full, title: full, onchange: () => this.apply({ [key]: input.checked }) });
    this.syncs.push((view) => { input.checked = view[key]; });
    return element("label", { class: "mstv-check mstv-only-2d" }, input, label);
  }

  typed(label, get, set, step = "any") {
    const input = element("input", { type: "number", step, "aria-label": label, onchange: () => {
      if (Number.isFinite(input.valueAsNumber)) set(input.valueAsNumber);
      this.syncs.forEach((sync) => sync(this.view));
    } });
    this.syncs.push(() => { const value = get(); if (input.valueAsNumber !== value) input.value = value; });
    return element("label", { class: "mstv-row" }, element("span", {}, label), input);
  }

  buildPlanes() {
    return this.switches("Plane", [["axial", "Axial", "Axial slices (A)"], ["coronal", "Coronal", "Coronal slices (C)"],
      ["sagittal", "Sagittal", "Sagittal slices (S)"], ["three", "All", "All three planes (T)"]],
    (view) => (view.layout === "three" ? "three" : view.plane),
    (value) => (value === "three" ? this.apply({ layout: "three", cross: true }) : this.apply({ layout: "one", plane: value })));
  }

  buildWindow() {
    const input = element("select", { "aria-label": "Display window", onchange: () => this.apply({ window: this.windows[Number(input.value)].slice(1) }) },
      ...this.windows.map(([name], i) => element("option", { value: i }, name)), element("option", { value: -1, hidden: "" }, "Own"));
    this.syncs.push(({ window: [low, high] }) => {
      input.value = this.windows.findIndex(([, l, h]) => Math.abs(l - low) < 1e-6 && Math.abs(h - high) < 1e-6);
    });
    return element("label", { class: "mstv-select mstv-only-2d" }, element("span", {}, "Window"), input);
  }

  buildOpacity() {
    const out = element("output", {});
    const input = element("input", { type: "range", min: 0, max: 100, "aria-label": "Opacity", "data-control": "opacity",
      oninput: () => this.apply({ opacity: input.valueAsNumber / 100 }) });
    this.syncs.push(({ opacity }) => {
      input.value = Math.round(opacity * 100);
      out.textContent = `${input.value}%`;
      input.setAttribute("aria-valuetext", out.textContent);
    });
    return element("label", { class: "mstv-range mstv-only-2d" }, element("span", {}, "Opacity"), input, out);
  }

  // One slider, whatever the threshold goes by.
  buildThreshold() {
    const name = element("span", {}), out = element("output", {});
    const most = Math.max(...this.layers.map((layer) => layer.max), 1e-12);
    const scales = {
      threshold: ["Show top", 0.1, 100, 0.1, (v) => 100 * (1 - v), (s) => 1 - s / 100, (v) => `${Number((100 * (1 - v)).toPrecision(3))}%`],
      maximum: ["Above", 0, 100, 1, (v) => 100 * v, (s) => s / 100, (v) => `${Math.round(100 * v)}% of max.`],
      value: ["Above", 0, most, most / 500, (v) => v, (s) => s, (v) => v.toPrecision(2)],
    };
    const input = element("input", { type: "range", "data-control": "threshold", oninput: () => {
      const { by } = this.view;
      this.apply({ [by]: Number(scales[by][5](input.valueAsNumber).toPrecision(6)) });
    } });
    this.syncs.push((view) => {
      const [label, low, high, step, to, , words] = scales[view.by];
      Object.assign(input, { min: low, max: high, step });
      input.value = to(view[view.by]);
      name.textContent = label;
      out.textContent = words(view[view.by]);
      input.setAttribute("aria-label", view.by === "threshold" ? label : "Show above");
      input.setAttribute("aria-valuetext", out.textContent);
    });
    return element("label", { class: "mstv-range" }, name, input, out);
  }

  // A button and what it opens; Escape and a press elsewhere close it.
  menu(name, title, content, icon = false) {
    const button = element("button", { type: "button", "aria-expanded": "false", ...(icon ? { class: "mstv-icon", "aria-label": title, title } : {}),
      onclick: () => open(box.hidden) }, name);
    const box = element("div", { class: "mstv-popover", hidden: "", role: "group", "aria-label": title }, ...content);
    const open = (on) => {
      if (on) this.closeMenu?.();
      box.hidden = !on;
      button.setAttribute("aria-expanded", String(on));
      this.closeMenu = on ? () => open(false) : null;
    };
    const whole = element("div", { class: "mstv-menu" }, button, box);
    document.addEventListener("pointerdown", (event) => {
      if (!box.hidden && !whole.contains(event.target)) open(false);
    }, { signal: this.stopper.signal });
    whole.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || box.hidden) return;
      event.stopPropagation();
      open(false);
      button.focus();
    });
    whole.toggle = () => open(box.hidden);
    return whole;
  }

  buildDisplay() {
    const level = () => (this.view.window[0] + this.view.window[1]) / 2, width = () => this.view.window[1] - this.view.window[0];
    const tidy = (v) => Number(v.toPrecision(6));
    const set = (l, w) => this.apply({ window: [l - Math.max(w, 1e-3) / 2, l + Math.max(w, 1e-3) / 2] });
    const unit = this.data.unit ? ` (${this.data.unit})` : "";
    const maps = this.layers.length ? [
      element("h3", {}, "Saliency"),
      this.select("Colours", "colors", Object.keys(COLORS).map((name) => [name, name])),
      this.select("Colour scale", "scale", [["own", "Each map's own"], ["shared", "One for both"], ["paper", "Paper: 0.995 to 0.999"]],
        // The paper's figures hide what lies below the scale's lower end.
        { paper: { by: "threshold", threshold: PAPER_QUANTILES[0] } }),
      this.select("Threshold by", "by", [["maximum", "Part of maximum"], ["threshold", "Quantile"], ["value", "Value"]]),
      this.typed("Threshold", () => tidy(this.view[this.view.by]), (v) =>
        this.apply({ [this.view.by]: this.view.by === "value" ? Math.max(v, 0) : clamp(v, 0, 1) })),
      this.layers.some((layer) => layer.patches)
        ? this.select("Map", "map", [["smooth", "Smooth"], ["patches", "Model's own patches"]]) : null,
      this.select("Drawn as", "style", [["filled", "Colours"], ["contours", "Contours"], ["both", "Colours and contours"]]),
    ] : [];
    const reset = element("button", { type: "button", onclick: () => { this.apply({ ...this.usual, plane: this.view.plane }); this.whole(); } }, "Reset the view");
    const menu = this.menu("Display ▾", "Display", [
      ...maps,
      element("h3", {}, "Scan"),
      this.typed(`Level${unit}`, () => tidy(level()), (v) => set(v, width())),
      this.typed(`Width${unit}`, () => tidy(width()), (v) => set(level(), v)),
      this.select("Orientation", "convention", [["radiological", "Radiological"], ["neurological", "Neurological"]]),
      this.check("Crosshair", "cross"), reset,
    ]);
    menu.classList.add("mstv-only-2d");
    return menu;
  }

  buildSave() {
    const said = element("p", { role: "status" });
    const act = (name, task) => element("button", { type: "button", onclick: async ({ currentTarget: button }) => {
      button.disabled = true;
      try {
        said.textContent = (await task((text) => { said.textContent = text; })) || "";
      } catch (error) {
        console.error(error);
        said.textContent = `That did not work: ${error.message || error}`;
      }
      button.disabled = false;
    } }, name);
    const animation = act("Animation (GIF)", (tell) => saveAnimation(this, tell));
    animation.classList.add("mstv-only-2d");
    return this.menu("Save ▾", "Save or share the view", [
      act("Picture (PNG)", () => savePicture(this)),
      animation, act("Copy link", () => this.copyLink()), said,
    ]);
  }

  async copyLink() {
    this.remember();
    const address = location.href.split("#")[0] + this.link();
    try {
      await navigator.clipboard.writeText(address);
      return "Link copied. It holds the view, not the scan.";
    } catch {
      return `Copy this link: ${address}`;
    }
  }

  buildHelp() {
    this.help = this.menu("?", "Keys", [element("table", { class: "mstv-keys" }, element("tbody", {}, ...KEYS.map(([keys, text]) =>
      element("tr", {}, element("td", {}, ...keys.map((key) => element("kbd", {}, key))), element("td", {}, text)))))], true);
    this.help.classList.add("mstv-help");
    return this.help;
  }

  buildChips() {
    const chips = this.available.map((kind) => {
      const chip = element("button", { type: "button", class: "mstv-key", style: `--key:${MODEL_COLORS[kind] ?? MODEL_COLORS.both}`,
        onclick: () => this.togglePanel(kind) }, this.names[kind]);
      this.syncs.push(({ panels, solo }) => chip.setAttribute("aria-pressed", String(solo ? solo === kind : panels.includes(kind))));
      return chip;
    });
    return element("div", { class: "mstv-chips mstv-only-2d", role: "group", "aria-label": "Panels" }, element("span", {}, "Panels"), ...chips);
  }

  buildHotSpots() {
    if (!this.layers.length) return null;
    this.spotSaid = element("span", { role: "status" });
    return element("div", { class: "mstv-spots", role: "group", "aria-label": "Next hot spot" }, this.spotSaid, element("span", {}, "Next hot spot"),
      ...this.layers.map((layer) => element("button", { type: "button", class: "mstv-key", style: `--key:${MODEL_COLORS[layer.key]}`,
        "data-hot-spot": layer.key, onclick: () => this.nextSpot(layer) }, this.nameOf(layer))));
  }

  // ---- panels

  // Shows the wanted panels, and makes those that are missing; one call after the other.
  arrange(turned = false) {
    this.arranging = this.arranging.then(() => this.arrangeNow(turned)).catch((error) => {
      if (!this.stopper.signal.aborted) fail(this.root, error);
    });
    return this.arranging;
  }

  async arrangeNow(turned) {
    const { view } = this;
    const kinds = view.solo ? [view.solo] : view.panels;
    const wanted = kinds.flatMap((kind) => (view.layout === "three" ? PLANES : [null]).map((plane) => [kind, plane]));
    const missing = wanted.filter(([kind, plane]) => !this.panels.some((panel) => panel.kind === kind && panel.fixed === plane))
      .map(([kind, plane]) => new Panel(this, kind, plane));
    if (missing.length) {
      this.panels.push(...missing);
      const rank = ({ kind, fixed }) => 10 * KINDS.indexOf(kind) + PLANES.indexOf(fixed);
      this.panels.sort((a, b) => rank(a) - rank(b));
      this.panelRow.append(...this.panels.map((panel) => panel.node));
    }
    for (const panel of this.panels) {
      panel.node.hidden = !wanted.some(([kind, plane]) => panel.kind === kind && panel.fixed === plane);
      panel.only.setAttribute("aria-pressed", String(Boolean(view.solo)));
    }
    this.columns(wanted.length);
    await Promise.all(missing.map((panel) => panel.start()));
    if (turned) await Promise.all(this.panels.filter((panel) => !missing.includes(panel)).map((panel) => panel.turn()));
    missing.forEach((panel) => panel.drawBar());
    await Promise.all(this.panels.filter((panel) => !panel.node.hidden).map((panel) => panel.resize()));
    this.drawChart();
  }

  columns(count) {
    const width = this.panelRow.clientWidth || this.root.clientWidth;
    const { rows, columns } = this.space;
    const ratio = (columns.count * columns.mm) / (rows.count * rows.mm);
    let best = bestColumns(count, width, Math.min(0.85 * window.innerHeight, 900), ratio);
    if (width < 640) best = Math.min(count, 2);
    else if (count <= 4 && width / count >= SMALLEST_PANEL) best = count;
    else if (this.view.layout === "three") best = 3;
    this.panelRow.style.setProperty("--mstv-count", best);
    this.root.toggleAttribute("data-narrow", width / best < 290);
  }

  togglePanel(kind) {
    const { panels, solo } = this.view;
    if (solo) return this.apply({ solo: solo === kind ? null : kind });
    const wanted = panels.includes(kind) ? panels.filter((other) => other !== kind) : [...panels, kind];
    if (wanted.length) this.apply({ panels: KINDS.filter((other) => wanted.includes(other)) });
  }

  toggleSolo(kind) {
    this.apply({ solo: this.view.solo ? null : kind });
  }

  // A panel of a fixed plane that is worked in makes its plane the current one.
  activate(panel) {
    if (panel.fixed && panel.fixed !== this.view.plane) this.apply({ plane: panel.fixed });
  }

  // ---- steering

  listen() {
    const signal = this.stopper.signal;
    this.panelRow.addEventListener("wheel", (event) => {
      if (event.ctrlKey || event.deltaY === 0) return;
      event.preventDefault();
      this.wheeled = (Math.sign(this.wheeled) === Math.sign(event.deltaY) ? this.wheeled : 0) + event.deltaY;
      if (event.deltaMode === 0 && Math.abs(this.wheeled) < WHEEL_STEP) return;
      this.wheeled = 0;
      this.show(this.slice + Math.sign(event.deltaY));
    }, { passive: false });
    document.addEventListener("keydown", (event) => this.key(event), { signal });
    window.addEventListener("hashchange", () => {
      const link = readLink(location.hash);
      this.apply({ ...this.usual, ...this.fromLink(link) });
      this.place(link);
      this.openView(link);
      this.update();
    }, { signal });
    this.watcher = new ResizeObserver(() => this.resize());
    this.watcher.observe(this.root);
    // Gradio switches between light and dark by a class.
    this.themed = new MutationObserver(() => this.recolor());
    for (const node of [document.documentElement, document.body]) {
      this.themed.observe(node, { attributes: true, attributeFilter: ["class"] });
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolor(), { signal });
  }

  key(event) {
    const target = event.target;
    const inside = this.root.contains(target) || this.root.matches(":hover");
    if (!inside || event.ctrlKey || event.metaKey || event.altKey) return;
    const own = target.closest?.("input, select, textarea, [contenteditable]");
    if (own && own.type !== "checkbox" && !(own === this.slider && !/^Arrow/.test(event.key))) return;
    if (event.key === "?") this.help.toggle();
    else if (event.key === "Escape" && this.closeMenu) this.closeMenu();
    else if (event.key === " ") {
      if (own?.type === "checkbox" || target.closest?.("button")) return;
      this.play(!this.timer);
    } else if (!this.steer(event)) return;
    event.preventDefault();
  }

  // Whether a key meant something.
  steer(event) {
    const to = {
      ArrowRight: this.slice + 1, ArrowDown: this.slice + 1, ArrowLeft: this.slice - 1, ArrowUp: this.slice - 1,
      PageDown: this.slice + 5, PageUp: this.slice - 5, Home: 0, End: this.count - 1,
    }[event.key];
    if (to !== undefined) { this.show(to); return true; }
    const key = event.key.toLowerCase();
    const plane = { a: "axial", c: "coronal", s: "sagittal" }[key];
    const { view, panels } = this;
    const panel = panels.find((p) => !p.node.hidden && p.node.matches(":hover")) || panels.find((p) => !p.node.hidden);
    if (this.shown !== "2d") return false;
    if (plane) this.apply({ plane, layout: "one" });
    else if (key === "t") this.apply(view.layout === "three" ? { layout: "one" } : { layout: "three", cross: true });
    else if (key === "x") this.apply({ cross: !view.cross });
    else if (key === "o" && this.mask) this.apply({ outline: !view.outline });
    else if (key === "f") this.toggleSolo(panel.kind);
    else if (key === "n" && this.layers.length) this.nextSpot(this.layers[event.shiftKey ? this.layers.length - 1 : 0]);
    else if (key === "+" || key === "=") panel.zoom(1 / 1.2);
    else if (key === "-") panel.zoom(1.2);
    else if (key === "0") this.whole();
    else if (/^[1-9]$/.test(key) && this.windows[key - 1]) this.apply({ window: this.windows[key - 1].slice(1) });
    else return false;
    return true;
  }

  // Within the tabs, left and right change the tab and not the slice.
  switchTab(event) {
    if (!/^Arrow(Left|Right)$/.test(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const { tabs } = this;
    const by = event.key === "ArrowRight" ? 1 : tabs.length - 1;
    const other = tabs[(tabs.indexOf(event.currentTarget) + by) % tabs.length];
    other.focus();
    this.setView(other.textContent);
  }

  play(on) {
    clearInterval(this.timer);
    this.timer = on ? setInterval(() => this.show((this.slice + 1) % this.count), PLAY_MS) : null;
    if (!this.playButton) return;
    this.playButton.textContent = on ? "❚❚" : "▶";
    this.playButton.setAttribute("aria-label", on ? "Pause" : "Play");
  }

  show(slice) {
    this.index[this.space.depth.axis] = clamp(Math.round(slice), 0, this.count - 1);
    this.update();
  }

  showTop(layer) {
    this.apply({ plane: this.data.plane });
    this.show(layer.top);
  }

  // Goes to a voxel; the crosshair marks it.
  goTo(index, cross = false) {
    this.index = index.slice();
    if (cross && !this.view.cross) this.apply({ cross: true });
    this.update();
  }

  nextSpot(layer) {
    const { volume } = layer;
    const spots = (this.spots[layer.key] ??= {
      at: -1, list: hotSpots(volume.codes, this.data.shape, this.data.spacing, { least: Math.round(255 * SMALLEST_HOT_SPOT) }) });
    const name = this.nameOf(layer);
    if (!spots.list.length) { this.spotSaid.textContent = `${name}: no hot spot, the map is zero`; return; }
    spots.at = (spots.at + 1) % spots.list.length;
    const { index, code } = spots.list[spots.at];
    this.goTo(index, true);
    this.spotSaid.textContent = `${name} ${spots.at + 1} of ${spots.list.length}: ${Math.round((100 * code) / 255)}% of its maximum`;
  }

  // Dragged to the right the window gets wider, dragged up it moves to brighter values.
  dragWindow([low, high], dx, dy) {
    const width = Math.max((high - low) * Math.exp(dx / 200), 1e-3);
    const level = (low + high) / 2 - (dy / 300) * (high - low);
    const whole = high - low > 20 ? 1 : 1e-3;
    const tidy = (v) => Math.round(v / whole) * whole;
    this.apply({ window: [tidy(level - width / 2), Math.max(tidy(level + width / 2), tidy(level - width / 2) + whole)] });
  }

  // Shows the same part of the slice in all panels of a panel's plane, at most once a frame.
  look(source, ranges) {
    this.looking = { source, ranges };
    this.lookFrame ??= requestAnimationFrame(() => {
      this.lookFrame = null;
      const { source: from, ranges: [x, y] } = this.looking;
      this.Plotly.relayout(from.plot, { "xaxis.range": x, "yaxis.range": y });
    });
  }

  // Zoom and pan are shared: what one panel shows, all of its plane show.
  follow(source, ranges) {
    if (this.following) return;
    this.following = true;
    Promise.all(this.panels.filter((panel) => panel !== source && !panel.node.hidden && panel.space === source.space)
      .map((panel) => this.Plotly.relayout(panel.plot, { "xaxis.range": ranges[0], "yaxis.range": ranges[1] })))
      .finally(() => { this.following = false; });
  }

  whole() {
    const planes = new Set();
    for (const panel of this.panels) {
      if (panel.node.hidden || planes.has(panel.space)) continue;
      planes.add(panel.space);
      this.Plotly.relayout(panel.plot, { "xaxis.range": [0, panel.width], "yaxis.range": [panel.height, 0] });
    }
  }

  // ---- drawing and telling

  // Draws at once, so that the next frame shows it; however many more events that frame brings, all panels are
  // drawn once more, together.
  later() {
    if (this.frame) { this.again = true; return; }
    this.draw();
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (this.again) this.draw();
      this.again = false;
    });
  }

  draw() {
    if (this.shown === "2d") this.panels.forEach((panel) => panel.draw());
    else this.bodies.forEach((body) => body.move());
    this.drawMarker();
    this.say(this.pointer);
    this.root.dataset.drawn = this.slice;
  }

  // A slice's number in the whole scan, from 1.
  numberIn(plane, slice) {
    const { axis } = this.spaces[plane].depth;
    return this.data.first[axis] + slice * this.data.factors[axis] + 1;
  }

  indexAt({ row, column, space }, slice = this.index[space.depth.axis]) {
    const { depth, rows, columns } = space;
    const index = [0, 0, 0];
    index[depth.axis] = slice;
    index[rows.axis] = rows.flip ? rows.count - 1 - row : row;
    index[columns.axis] = columns.flip ? columns.count - 1 - column : column;
    return index;
  }

  // Every panel marks the place under the pointer; the panel it is in also tells the values there.
  point(at, source) {
    this.pointer = at;
    this.panels.forEach((panel) => panel.mark(at, panel === source));
    this.say(at);
  }

  // The slice, and the place under the pointer or else under the crosshair.
  say(at = null) {
    const { axis } = this.space.depth;
    const parts = [`Slice ${this.numberIn(this.view.plane, this.slice)} of ${this.data.full[axis]}`];
    const index = at ? this.indexAt(at) : this.index;
    const world = toWorld(this.data.affine, index);
    if (at || this.view.cross) {
      parts.push(`x ${world[0].toFixed(1)}, y ${world[1].toFixed(1)}, z ${world[2].toFixed(1)} mm`);
      parts.push(`voxel ${toVoxel(this.data.fileAffine, world).map((v) => Math.round(v)).join(", ")}`);
      parts.push(...this.values(index).map(([name, value]) => `${name} ${value}`));
    } else parts.push(`${"xyz"[axis]} ${world[axis].toFixed(1)} mm`);
    const [low, high] = this.view.window;
    if (!at && this.shown === "2d") parts.push(`level ${Number(((low + high) / 2).toPrecision(4))}, width ${Number((high - low).toPrecision(4))} ${this.data.unit}`.trim());
    this.readout.textContent = parts.join("  ·  ");
  }

  // What lies at a voxel: [name, value] of the scan and of each map.
  values([i, j, k]) {
    const place = (i * this.data.shape[1] + j) * this.data.shape[2] + k;
    const value = this.scan.value(this.scan.codes[place]);
    const gray = Math.abs(value) < 10 && value % 1 ? value.toFixed(2) : String(Math.round(value));
    const maps = this.layers.map((layer) => [this.nameOf(layer),
      `${layer.now.value(layer.now.codes[place]).toPrecision(2)} (${Math.round((layer.now.codes[place] / 255) * 100)}% of max.)`]);
    return [["Intensity", `${gray} ${this.data.unit}`.trim()], ...maps];
  }

  // A model's weight of each slice; across its own slices, the map's maximum in each.
  profile(layer) {
    if (this.view.plane === this.data.plane) return layer.profile;
    layer.maxima ??= {};
    return (layer.maxima[this.view.plane] ??= this.slicesMaxima(layer.volume, this.spaces[this.view.plane]));
  }

  slicesMaxima({ codes, value }, space) {
    const values = new Uint8Array(space.rows.count * space.columns.count);
    return Array.from({ length: space.depth.count }, (_, slice) => value(cut(space, slice, codes, values).reduce((most, v) => Math.max(most, v), 0)));
  }

  drawChart() {
    if (!this.layers.length) return;
    const box = this.chart.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(box.width * ratio);
    const height = Math.round(box.height * ratio);
    if (!width) return;
    if (this.chart.width !== width || this.chart.height !== height) Object.assign(this.chart, { width, height });
    const context = this.chart.getContext("2d");
    const { text, line, card } = theme(this.root);
    context.clearRect(0, 0, width, height);
    const step = width / this.count;
    const lane = height / this.layers.length;
    this.layers.forEach((layer, i) => {
      const profile = this.profile(layer);
      const most = Math.max(...profile, 1e-12);
      const top = this.view.plane === this.data.plane ? layer.top : profile.indexOf(most);
      const bottom = (i + 1) * lane - 1;
      context.fillStyle = line;
      context.fillRect(0, bottom, width, 1);
      profile.forEach((weight, s) => {
        const bar = (weight / most) * (lane - 4 * ratio);
        context.fillStyle = MODEL_COLORS[layer.key] || text;
        context.globalAlpha = s === top ? 1 : 0.55;
        context.fillRect(s * step + 0.12 * step, bottom - bar, 0.76 * step, bar);
      });
      context.globalAlpha = 1;
      context.fillStyle = text;
      context.font = `${11 * ratio}px system-ui, sans-serif`;
      const name = this.nameOf(layer);
      context.strokeStyle = card;
      context.lineWidth = 4 * ratio;
      context.lineJoin = "round";
      // At the end where it hides less of the bars.
      const covered = Math.ceil((context.measureText(name).width + 6 * ratio) / step);
      const right = Math.max(...profile.slice(-covered)) < Math.max(...profile.slice(0, covered));
      context.textAlign = right ? "right" : "left";
      const x = right ? width - 3 * ratio : 3 * ratio;
      context.strokeText(name, x, bottom - lane + 12 * ratio);
      context.fillText(name, x, bottom - lane + 12 * ratio);
    });
    this.drawMarker();
  }

  // The current slice in the chart: a box that is moved, so that the bars need no drawing anew.
  drawMarker() {
    this.marker.style.left = `${(100 * (this.slice + 0.5)) / this.count}%`;
    this.marker.style.width = `max(4px, ${100 / this.count}%)`;
  }

  resize() {
    cancelAnimationFrame(this.resizing);
    this.resizing = requestAnimationFrame(() => {
      this.bodies.forEach((body) => body.resize());
      if (this.shown === "2d") {
        const shown = this.panels.filter((panel) => !panel.node.hidden);
        this.columns(shown.length);
        shown.forEach((panel) => panel.resize());
      }
      this.drawChart();
    });
  }

  recolor() {
    this.drawChart();
    this.solid.recolor();
  }

  // ---- 2D, 3D, projection

  async setView(name) {
    this.shown = name.toLowerCase();
    this.play(false);
    this.tabs.forEach((tab) => {
      tab.setAttribute("aria-selected", String(tab.textContent === name));
      tab.tabIndex = tab.textContent === name ? 0 : -1;
    });
    const { solid, projection } = this;
    this.flat.hidden = this.shown !== "2d";
    solid.node.hidden = this.shown !== "3d";
    projection.node.hidden = this.shown !== "mip";
    projection.turn(false);
    this.root.dataset.view = this.shown;
    this.remembering();
    this.say();
    if (this.shown === "3d") {
      await solid.open();
      // Never a blank panel: what needs no WebGL takes the place of what does.
      projection.node.hidden = !["3d", "mip"].includes(this.shown) || (this.shown === "3d" && solid.ready);
    }
    if (!projection.node.hidden) projection.open();
    if (this.shown !== "2d") return;
    this.panels.filter((panel) => !panel.node.hidden).forEach((panel) => panel.resize());
    this.draw();
  }

  // What is shown instead of the slices; the projection also stands in for a 3D view that cannot be drawn.
  get bodies() {
    return [this.solid, this.projection].filter((body) => !body.node.hidden);
  }

  stop() {
    this.play(false);
    this.stopper.abort();
    this.watcher?.disconnect();
    this.themed?.disconnect();
    this.solid?.stop();
    this.projection?.stop();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.linking);
    cancelAnimationFrame(this.lookFrame);
    this.panels.forEach((panel) => this.Plotly?.purge(panel.plot));
  }
}
