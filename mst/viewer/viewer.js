// The linked viewers: their state, and what every panel shares.
//
// Plotly draws axes, zoom and 3D. The slices themselves are a canvas under Plotly's transparent plot, so that a
// step through the slices redraws images and never waits for Plotly or the server.
import {
  COLORS, PLANES, bestColumns, boxed, clamp, colorTable, eachPixel, geometry, grayTable, hotSpots, largest, onBox, placeIn, quantile, readLink,
  readVolume, spread, toVoxel, toWorld, writeLink,
} from "./slices.js";
import { Chart } from "./chart.js";
import { Controls, PAPER_QUANTILES } from "./controls.js";
import { element, fail, loadPlotly } from "./page.js";
import { Panel, apart, rgb, rgba } from "./panel.js";
import { ScanSource } from "./source.js";
import { Solid } from "./solid.js";
import { Projection } from "./projection.js";

const KINDS = ["scan", "mst", "resnet", "mask", "difference", "agreement"];
const SHORT = { scan: "Scan", mst: "MST", resnet: "ResNet", mask: "Lesion mask", difference: "Difference", agreement: "Agreement" };
const COMPARED = /^(difference|agreement)$/;
const PLAY_MS = 110;
const WHEEL_STEP = 50; // a wheel's notch is 100 or 120; a touchpad sends many small parts of it
const SMALLEST_PANEL = 200; // pixels of width for which panels stay in one row
const SMALLEST_HOT_SPOT = 0.2; // of the map's maximum
const CONTEXT = 0.2; // shown round the region, as a part of its size on each side
const ELSEWHERE_MM = 1; // from the explained spot on, the crosshair is at another one
// Of the address a page was opened with; the first viewer takes it, a scan opened later starts afresh.
let opened = location.hash;

export class Viewer {
  // payload: of mst/viewer/payload.py, with a report's findings in it; in a page they follow (`take`).
  constructor(root, payload) {
    this.root = root;
    this.data = payload;
    this.windows = payload.windows.length ? payload.windows : [["Automatic", ...payload.window]];
    this.layers = [];
    this.linked = {}; // what the address asks for, until there are maps
    this.mask = null;
    this.spot = null; // where the models are to look: { center, size } in millimetres
    this.explained = null; // where they did: { center }
    this.available = ["scan"];
    this.names = { ...SHORT };
    this.usual = {
      plane: payload.plane, layout: this.live ? "three" : "one", panels: ["scan"], solo: null,
      by: "maximum", threshold: 0.9, maximum: payload.shownFrom, value: 0, scale: "own", map: "smooth", style: "filled", colors: "Viridis", opacity: 0.6,
      window: payload.window.slice(), convention: "radiological", cross: this.live, outline: true,
    };
    this.view = { ...this.usual };
    this.index = payload.shape.map((n) => Math.floor(n / 2));
    this.shown = "2d";
    this.pointed = false; // a person has, since what is shown was explained
    this.compares = false; // maps, beside each other
    this.framed = true; // the region fills the frames, where there is one; else the whole slice
    this.panels = [];
    this.panelRow = element("div", { class: "mstv-panels" });
    this.tabs = [];
    this.closeMenu = null;
    this.syncs = [];
    this.bases = {};
    this.buffers = {};
    this.wheeled = 0;
    this.arranging = Promise.resolve();
    this.stopper = new AbortController();
    this.turns = Promise.resolve(); // what is brought later, one after the other
    this.source = new ScanSource(payload, (axis, first, count) => this.arrived(axis, first, count));
  }

  get space() { return this.spaces[this.view.plane]; }
  get count() { return this.space.depth.count; }
  get slice() { return this.index[this.space.depth.axis]; }
  // In a page, where another spot can be explained; a report is what it is.
  get live() { return Boolean(this.data.key); }
  nameOf({ key }) { return this.names[key] || key; }
  colorOf(key) { return this.data.colors[key] ?? this.data.colors.both; }
  bodyName(key) { return key === "mask" ? SHORT.mask : `${this.nameOf({ key })} map`; }
  get pair() { return ["mst", "resnet"].map((key) => this.layers.find((layer) => layer.key === key)); }

  async start() {
    const { data } = this;
    const [, plotly] = await Promise.all([this.source.read(), loadPlotly(), data.layers.length || data.mask ? this.read(data) : null]);
    this.Plotly = plotly;
    if (!data.windows.length) this.windows.push(["Full range", this.source.value(0), this.source.value(largest(this.source.overview.codes))]);
    this.respace();
    if (this.layers.length || this.mask) this.offer();
    const link = readLink(opened);
    opened = "";
    this.linked = this.live ? link : {};
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
    this.ready();
  }

  ready() {
    this.root.removeAttribute("data-busy");
    this.root.dataset.ready = "true";
  }

  // ---- what lies over the scan

  // Unpacks maps and mask, which lie on boxes of the grid of their own; without one they cover it.
  /** @param {{ layers?: any[], mask?: any, box?: any, region?: any }} findings */
  async read({ layers = [], mask, box, region = null }) {
    const whole = { start: [0, 0, 0], shape: this.data.shape };
    const maps = box || whole, own = mask?.box || whole;
    const [volumes, natives, outline] = await Promise.all([
      Promise.all(layers.map((layer) => readVolume(layer, maps.shape))),
      Promise.all(layers.map(({ native }) => (native ? readVolume(native, native.shape) : null))),
      mask ? readVolume(mask, own.shape) : null,
    ]);
    this.box = boxed(maps, this.data.spacing);
    this.data.region = region;
    this.layers = layers.map((layer, i) => ({
      ...layer, volume: { ...volumes[i], max: layer.max }, patches: natives[i] && { ...natives[i], grid: layer.native, max: layer.native.max } }));
    this.mask = outline && { ...outline, ...boxed(own, this.data.spacing) };
    this.spots = {};
  }

  // What the panels can show now, and how they show it first.
  offer() {
    const keys = this.layers.map(({ key }) => key);
    this.available = KINDS.filter((kind) => kind === "scan" || keys.includes(kind) || (kind === "mask" && this.mask) ||
      (COMPARED.test(kind) && keys.includes("mst") && keys.includes("resnet")));
    this.names = { ...SHORT, ...Object.fromEntries(this.layers.filter(({ short }) => short).map(({ key, short }) => [key, short])) };
    const compares = keys.length > 0 || !this.live;
    const panels = this.available.filter((kind) => !COMPARED.test(kind));
    const first = compares ? { layout: "one", panels, cross: false } : { layout: "three", panels: ["scan"], cross: true };
    // What a person has arranged among maps stays for the maps of the next spot.
    const keeps = this.compares === compares && this.view.panels.every((kind) => this.available.includes(kind));
    this.compares = compares;
    this.usual = { ...this.usual, ...first };
    if (!keeps) this.view = { ...this.view, ...first, plane: this.data.plane, solo: null };
    if (!this.available.includes(this.view.solo)) this.view.solo = null;
    const opening = this.layers.find((layer) => layer.key === "mst") || this.layers[0];
    this.respace();
    if (opening) this.index = this.brightest(opening);
  }

  // Takes what was found in the scan, in place of what was found before.
  take(findings) { return this.inTurn(() => this.takeNow(findings)); }
  retarget(chosen) { return this.inTurn(() => this.retargetNow(chosen)); }
  settle() { return this.inTurn(() => this.ready()); }

  // One after the other, whatever became of the one before.
  inTurn(task) {
    const turn = this.turns.then(() => (this.stopper.signal.aborted ? null : task()));
    this.turns = turn.catch(() => {});
    return turn;
  }

  async takeNow(findings) {
    await this.read(findings);
    this.data.notes = [...(this.data.ownNotes ??= this.data.notes), ...(findings.notes ?? [])];
    this.pointed = false;
    this.explained = findings.layers?.length ? { center: findings.center } : null;
    this.framed = true;
    this.offer();
    // A link may ask for what the first maps make possible.
    const link = this.linked;
    this.linked = {};
    Object.assign(this.view, this.fromLink(link));
    this.respace();
    this.place(link);
    this.tables();
    await this.rebuild();
    if (link.view) await this.openView(link);
  }

  // Tells where the models are to look, and shows the lesion's mask as long as there are no maps, which bring theirs.
  async retargetNow({ spot, mask }) {
    if (spot) this.aim(spot);
    if (!this.layers.length) {
      const had = Boolean(this.mask);
      await this.read({ mask });
      if (had || mask) {
        this.offer();
        this.tables();
        await this.rebuild();
      }
    }
    this.update();
  }

  aim(spot) {
    this.spot = spot;
    this.root.dataset.center = spot.center.map((v) => Math.round(v * 10) / 10).join(",");
    // A spot that was clicked is where the crosshair is already.
    const index = toVoxel(this.data.affine, spot.center).map((v, axis) => clamp(Math.round(v), 0, this.data.shape[axis] - 1));
    if (!this.layers.length) this.index = index;
  }

  async rebuild() {
    this.solid.stop();
    this.projection.stop();
    const { shown } = this, focused = this.root.contains(document.activeElement);
    this.build();
    await this.arrange(true, true);
    if (focused) this.root.focus({ preventScroll: true });
    this.synced = null;
    this.update();
    this.draw();
    await this.setView((shown === "2d" || this.layers.length ? shown : "2d").toUpperCase());
    this.ready();
  }

  // Slices of full resolution have come: those in sight are drawn anew.
  arrived(axis, first, count) {
    for (const base of Object.values(this.bases)) {
      if (this.spaces[base.plane].depth.axis === axis && base.slice >= first && base.slice < first + count) base.slice = -1;
    }
    if (this.controls) this.later();
  }

  respace() {
    const neurological = this.view.convention === "neurological";
    this.spaces = Object.fromEntries(PLANES.map((plane) => [plane, geometry(plane, this.data.shape, this.data.spacing, neurological)]));
    this.box = this.box && boxed(this.box, this.data.spacing, neurological);
    if (this.mask) Object.assign(this.mask, boxed(this.mask, this.data.spacing, neurological));
    this.bases = {};
    this.outlines = {}; // the mask's, of the slice that each plane shows
  }

  // The voxel with the most saliency in the slice that a model weighs most.
  brightest(layer) {
    const { box } = this;
    const space = box.spaces[this.data.plane];
    const { axis } = space.depth;
    let best = -1, index = this.index;
    eachPixel(space, clamp(layer.top - box.start[axis], 0, space.depth.count - 1), (at, pixel) => {
      if (layer.volume.codes[at] <= best) return;
      best = layer.volume.codes[at];
      const own = this.indexAt({ row: Math.floor(pixel / space.columns.count), column: pixel % space.columns.count, space }, 0);
      index = own.map((v, a) => v + box.start[a]);
    });
    return index.map((v, a) => (a === axis ? layer.top : v));
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
    this.controls.follow(slice, count);
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
      // Whole, since a page may have a base address, to which a link of "#" alone would go.
      history.replaceState(history.state, "", location.pathname + location.search + this.link());
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
      layout: changed("layout"),
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
    this.gray = grayTable(this.source, view.window);
    this.grays = Uint32Array.from(this.gray, (g) => (0xff000000 | (g << 16) | (g << 8) | g) >>> 0);
    this.bases = {};
    this.colors = colorTable(COLORS[view.colors]);
    for (const layer of this.layers) {
      layer.now = layer.volume;
      if (view.map === "patches" && layer.patches) {
        layer.spread ??= { ...layer.patches, codes: spread(layer.patches.codes, layer.patches.grid, this.box.shape) };
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
      this.differences[255 + d] = rgba(rgb(this.colorOf(d > 0 ? "mst" : "resnet")), alpha);
    }
    this.shared = null;
    this.panels.forEach((panel) => panel.drawBar());
  }

  // How often each code occurs within the models' region.
  count256({ codes }) {
    const { start, shape } = this.box, { region } = this.data;
    const [x, y, z] = shape.map((n, axis) => (region ? region[axis].map((at) => clamp(Math.round(at) - start[axis], 0, n)) : [0, n]));
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
    const kept = (this.bases[space.plane] ??= { plane: space.plane, canvas: document.createElement("canvas"), slice: -1 });
    if (kept.slice === slice) return kept;
    const { rows, columns } = space;
    if (!kept.pixels) {
      Object.assign(kept.canvas, { width: columns.count, height: rows.count });
      kept.pixels = new ImageData(columns.count, rows.count);
      kept.words = new Uint32Array(kept.pixels.data.buffer);
      kept.context = kept.canvas.getContext("2d", { willReadFrequently: true });
    }
    kept.exact = this.source.cut(space, slice, kept.words);
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
    this.syncs = [];
    this.controls?.stop();
    this.controls = new Controls(this);
    this.chart = new Chart(this);
    this.readout = element("p", { class: "mstv-readout", "aria-live": "off" });
    this.flat = element("div", { class: "mstv-flat", role: "tabpanel", "aria-label": "Slices" }, this.panelRow);
    this.hereButton?.remove();
    this.hereButton = apart(element("button", { type: "button", class: "mstv-here", title: "Explain the spot at the crosshair (Enter)", hidden: "",
      onclick: () => this.explainHere() }, "Explain here"));
    this.solid = new Solid(this);
    this.projection = new Projection(this);
    const notes = data.notes.length
      ? element("ul", { class: "mstv-notes" }, ...data.notes.map((note) => element("li", {}, note))) : null;
    this.root.replaceChildren(this.controls.toolbar(), this.flat, this.solid.node, this.projection.node, this.controls.steering(),
      element("div", { class: "mstv-foot" }, this.readout, this.controls.hotSpots()), ...(notes ? [notes] : []));
  }

  // ---- panels

  // Shows the wanted panels, and makes those that are missing; one call after the other.
  arrange(turned = false, renewed = false) {
    this.arranging = this.arranging.then(() => this.arrangeNow(turned, renewed)).catch((error) => {
      if (!this.stopper.signal.aborted) fail(this.root, error);
    });
    return this.arranging;
  }

  // renewed: there are other maps than before.
  async arrangeNow(turned, renewed) {
    const { view } = this;
    const kinds = view.solo ? [view.solo] : view.panels;
    const wanted = kinds.flatMap((kind) => (view.layout === "three" ? PLANES : [null]).map((plane) => [kind, plane]));
    // Another spot's maps are other layers: their panels are made anew.
    const former = ({ layer, kind }) => (layer ? !this.layers.includes(layer) : kind !== "scan" && kind !== "mask") || !this.available.includes(kind);
    for (const panel of renewed ? this.panels.filter(former) : []) {
      this.Plotly.purge(panel.plot);
      panel.node.remove();
      this.panels.splice(this.panels.indexOf(panel), 1);
    }
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
    this.panelRow.toggleAttribute("data-planes", view.layout === "three" && kinds.length === 1);
    this.columns(wanted.length);
    await Promise.all(missing.map((panel) => panel.start()));
    if (turned) await Promise.all(this.panels.filter((panel) => !missing.includes(panel)).map((panel) => panel.turn()));
    missing.forEach((panel) => panel.drawBar());
    await Promise.all(this.panels.filter((panel) => !panel.node.hidden).map((panel) => panel.resize()));
    this.chart.draw();
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
    if (event.key === "Enter" && target.closest?.("button, a, summary")) return;
    const own = target.closest?.("input, select, textarea, [contenteditable]");
    if (own && own.type !== "checkbox" && !(own === this.controls.slider && !/^Arrow/.test(event.key))) return;
    if (event.key === "?") this.controls.help.toggle();
    else if (event.key === "Escape" && this.closeMenu) this.closeMenu();
    else if (event.key === " ") {
      if (own?.type === "checkbox" || target.closest?.("button")) return;
      this.play(!this.timer);
    } else if (!this.steer(event)) return;
    event.preventDefault();
  }

  // Whether a key meant something.
  steer(event) {
    if (event.shiftKey && this.shown === "2d" && /^Arrow/.test(event.key)) { this.nudge(event.key); return true; }
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
    else if (key === "0") {
      this.framed = !this.framed;
      this.home();
    } else if (key === "enter" && this.live) this.explainHere();
    else if (/^[1-9]$/.test(key) && this.windows[key - 1]) this.apply({ window: this.windows[key - 1].slice(1) });
    else return false;
    return true;
  }

  play(on) {
    clearInterval(this.timer);
    this.timer = on ? setInterval(() => this.show((this.slice + 1) % this.count), PLAY_MS) : null;
    this.controls?.playing(on);
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

  // A voxel that a person points at. As long as nothing is explained it is where the models are to look.
  pointAt(index) {
    this.pointed = true;
    this.linked = {};
    this.goTo(index, true);
    if (this.live && !this.layers.length) this.tell("mst-center");
  }

  // Moves the crosshair within the slice, as the arrow points on the screen.
  nudge(key) {
    const { rows, columns } = this.space;
    const line = /Left|Right/.test(key) ? columns : rows;
    const by = (/Right|Down/.test(key) ? 1 : -1) * (line.flip ? -1 : 1);
    this.pointAt(this.index.map((v, axis) => (axis === line.axis ? clamp(v + by, 0, line.count - 1) : v)));
  }

  // Whether the crosshair is at another spot than what is shown was made for.
  get elsewhere() {
    if (!this.pointed || !this.view.cross || !this.explained?.center) return false;
    const here = toWorld(this.data.affine, this.index);
    return Math.hypot(...here.map((v, axis) => v - this.explained.center[axis])) > ELSEWHERE_MM;
  }

  // The button that explains the crosshair's spot, beside the crosshair in the first panel of the plane that is worked in.
  placeHere() {
    const button = this.hereButton;
    const panel = this.shown === "2d" && this.live && this.view.cross && (this.elsewhere || !this.layers.length)
      ? this.panels.find((p) => !p.node.hidden && p.at && p.space === this.space) : null;
    const at = panel?.spotOnFrame();
    button.hidden = !at;
    if (!at) return;
    if (button.parentElement !== panel.frame) panel.frame.append(button);
    const { clientWidth, clientHeight } = panel.frame;
    const right = at.x + 20 + button.offsetWidth > clientWidth, low = at.y > clientHeight - 50;
    button.style.transform = `translate(${at.x + (right ? -14 : 14)}px, ${at.y + (low ? -14 : 14)}px) translate(${right ? -100 : 0}%, ${low ? -100 : 0}%)`;
  }

  explainHere() {
    if (!this.view.cross) this.apply({ cross: true });
    this.tell("mst-explain");
  }

  // Tells the page about the crosshair's place, in millimetres.
  tell(name) {
    const center = toWorld(this.data.affine, this.index).map((v) => Math.round(v * 10) / 10);
    const [x, y, z] = center;
    if (this.spot) this.spot = { ...this.spot, center };
    this.root.dataset.center = `${x},${y},${z}`;
    this.root.dispatchEvent(new CustomEvent(name, { bubbles: true, detail: { x, y, z } }));
    this.later();
  }

  nextSpot(layer) {
    const { volume } = layer;
    const spots = (this.spots[layer.key] ??= {
      at: -1, list: hotSpots(volume.codes, this.box.shape, this.data.spacing, { least: Math.round(255 * SMALLEST_HOT_SPOT) })
        .map(({ index, code }) => ({ index: index.map((v, axis) => v + this.box.start[axis]), code })) });
    const name = this.nameOf(layer);
    if (!spots.list.length) { this.controls.spotSaid.textContent = `${name}: no hot spot, the map is zero`; return; }
    spots.at = (spots.at + 1) % spots.list.length;
    const { index, code } = spots.list[spots.at];
    this.goTo(index, true);
    this.controls.spotSaid.textContent = `${name} ${spots.at + 1} of ${spots.list.length}: ${Math.round((100 * code) / 255)}% of its maximum`;
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

  // What a plane's frames show: the region with some context, or the whole slice; [x, y] in millimetres, y downwards.
  framing(space, { clientWidth, clientHeight }) {
    const { rows, columns } = space, { region } = this.data;
    const width = columns.count * columns.mm, height = rows.count * rows.mm;
    // A report's slices end where this would.
    if (!region || !this.framed || !this.live) return [[0, width], [height, 0]];
    const [x, y] = [columns, rows].map((line) => {
      const ends = region[line.axis].map((v) => (line.flip ? line.count - v : v) * line.mm);
      const low = Math.min(...ends), high = Math.max(...ends);
      const margin = CONTEXT * (high - low);
      return [low - margin, high + margin];
    });
    const ratio = clientWidth / clientHeight || width / height;
    const [w, h] = [x[1] - x[0], y[1] - y[0]];
    /** @param {number[]} ends @param {number} by */
    const grow = (ends, by) => [ends[0] - by / 2, ends[1] + by / 2];
    return w / h < ratio ? [grow(x, h * ratio - w), y.reverse()] : [x, grow(y, w / ratio - h).reverse()];
  }

  // Frames the region, or the whole slice.
  home() {
    const planes = new Set();
    for (const panel of this.panels) {
      if (panel.node.hidden || planes.has(panel.space)) continue;
      planes.add(panel.space);
      const [x, y] = this.framing(panel.space, panel.frame);
      this.Plotly.relayout(panel.plot, { "xaxis.range": x, "yaxis.range": y });
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
    this.chart.mark();
    this.placeHere();
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
  values(index) {
    const value = this.source.value(this.source.at(index, this.space.depth.axis));
    const gray = Math.abs(value) < 10 && value % 1 ? value.toFixed(2) : String(Math.round(value));
    const place = this.layers.length ? placeIn(this.box, index) : -1;
    const maps = this.layers.map((layer) => {
      const code = place < 0 ? 0 : layer.now.codes[place];
      return [this.nameOf(layer), `${layer.now.value(code).toPrecision(2)} (${Math.round((code / 255) * 100)}% of max.)`];
    });
    return [["Intensity", `${gray} ${this.data.unit}`.trim()], ...maps];
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
      this.chart.draw();
    });
  }

  recolor() {
    this.chart.draw();
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
    if (!projection.node.hidden) await projection.open();
    if (this.shown !== "2d") return;
    this.panels.filter((panel) => !panel.node.hidden).forEach((panel) => panel.resize());
    this.draw();
  }

  // What 3D and projection show: the region with its context, or the whole scan: a box of the grid, with all volumes on it.
  async volume() {
    const { data, source } = this;
    const { region, shape } = data;
    if (!region && !source.whole) {
      // The overview stands for a whole scan that was not sent; nothing lies over it yet.
      const { overview } = source;
      const affine = data.affine.map((row) => [...row.slice(0, 3).map((v, axis) => v * overview.factors[axis]), row[3]]);
      const shift = toWorld(data.affine, overview.factors.map((f) => (f - 1) / 2));
      [0, 1, 2].forEach((r) => { affine[r][3] = shift[r]; });
      return { start: [0, 0, 0], factors: overview.factors, shape: overview.shape, spacing: data.spacing.map((s, axis) => s * overview.factors[axis]), affine,
        scan: { codes: overview.codes, top: source.top }, bodies: [] };
    }
    const low = [0, 0, 0], high = shape.slice();
    if (region && this.live) {
      region.forEach(([from, to], axis) => {
        const margin = Math.ceil(CONTEXT * (to - from));
        low[axis] = clamp(Math.floor(from) - margin, 0, shape[axis] - 1);
        high[axis] = clamp(Math.ceil(to) + margin, low[axis] + 1, shape[axis]);
      });
    }
    const box = { start: low, shape: high.map((n, axis) => n - low[axis]) };
    const origin = toWorld(data.affine, low);
    const affine = data.affine.map((row, r) => (r < 3 ? [...row.slice(0, 3), origin[r]] : row));
    const on = (codes, from) => onBox(codes, from, box);
    return {
      ...box, factors: [1, 1, 1], spacing: data.spacing, affine, scan: { codes: await source.block(box), top: source.top },
      bodies: [
        ...this.layers.map((layer) => ({ key: layer.key, layer, volume: { codes: on(layer.volume.codes, this.box), top: 255 } })),
        ...(this.mask ? [{ key: "mask", layer: null, volume: { codes: on(this.mask.codes, this.mask), top: 255 } }] : []),
      ],
    };
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
    this.source.stop();
    this.controls?.stop();
    clearTimeout(this.linking);
    cancelAnimationFrame(this.lookFrame);
    this.panels.forEach((panel) => this.Plotly?.purge(panel.plot));
  }
}
