// The 3D view: the scan, both maps and the mask as translucent surfaces, with the current slice's plane. It needs WebGL.
import { clamp, otsu, toWorld } from "./slices.js";
import { element, theme } from "./page.js";

const MOST_CELLS = 34; // along an axis: a surface of 34 x 34 x 34 cells turns smoothly without a graphics card
const SCAN_COLOR = "#9aa3b2", SLICE_COLOR = "#4c8dff";
const OPENING = [-1.3, 1.3, 0.72, 0, 0, -0.1]; // where the camera is, what it looks at
const HOVER = "%{fullData.name}<br>x %{x:.1f}, y %{y:.1f}, z %{z:.1f} mm<extra></extra>";

export class Solid {
  constructor(viewer) {
    this.viewer = viewer;
    this.node = element("div", { class: "mstv-solid", hidden: "", role: "tabpanel", "aria-label": "3D" });
    this.building = null;
    this.stopped = false;
    this.box = null; // of the grid, what is shown of it
    this.bodies = [];
    this.ready = null; // true or false once it is known whether surfaces can be drawn
  }

  // Made once only, even when the tab is left and opened again while the surfaces are still being made.
  async open() {
    this.building ??= this.build().catch((error) => {
      console.error(error);
      this.explain("The 3D view could not be drawn.");
    });
    await this.building;
    if (!this.ready || this.node.hidden) return;
    this.resize();
    this.recut();
    this.move();
  }

  explain(what) {
    this.ready = false;
    this.viewer.root.dataset.solid = "unavailable";
    this.node.replaceChildren(element("p", { class: "mstv-note", role: "status" },
      `${what} The projection (MIP) below takes its place; the 2D view shows the same maps.`));
  }

  async build() {
    const { viewer } = this;
    const { data, root, Plotly } = viewer;
    const probe = document.createElement("canvas");
    if (!probe.getContext("webgl2") && !probe.getContext("webgl")) {
      this.explain("The 3D view needs WebGL, which this browser has not switched on.");
      return;
    }
    const volume = await viewer.volume();
    if (this.stopped) return;
    const { bodies } = volume;
    Object.assign(this, { box: volume, bodies });
    const coarse = this.coarsen(volume, [volume.scan, ...bodies.map((body) => body.volume)]);
    const surface = (values, level, color, opacity, name) => ({
      type: "isosurface", x: coarse.x, y: coarse.y, z: coarse.z, value: values, isomin: level, isomax: level,
      surface: { count: 1 }, caps: { x: { show: false }, y: { show: false }, z: { show: false } },
      colorscale: [[0, color], [1, color]], showscale: false, opacity, name, showlegend: false,
      hovertemplate: HOVER, // else Plotly tells the surface's value, which of a map is a code that means nothing
      lighting: { ambient: 0.55, diffuse: 0.7, specular: 0.15 },
    });
    const [low, high] = data.window;
    const grays = coarse.values[0].map((code) => viewer.source.value(code));
    const level = data.unit === "HU" && low < -300 ? -300 : otsu(grays.map((v) => clamp(v, low, high)));
    /** @type {any[]} */
    const traces = [surface(grays, level, SCAN_COLOR, 0.22, "Scan surface")];
    bodies.forEach((body, i) => {
      const values = coarse.values[1 + i];
      body.most = values.reduce((most, v) => Math.max(most, v), 0);
      body.level = body.layer ? this.level(body) : this.maskLevel(body);
      traces.push(surface(values, body.level, viewer.colorOf(body.key), body.key === "mask" ? 0.42 : 0.5, viewer.bodyName(body.key)));
    });
    this.sliceTraces = [traces.length, traces.length + 1];
    const corners = this.corners();
    traces.push(
      { type: "mesh3d", ...column(corners.slice(0, 4)), i: [0, 0], j: [1, 2], k: [2, 3], color: SLICE_COLOR, opacity: 0.16, hoverinfo: "skip",
        lighting: { ambient: 1, diffuse: 0, specular: 0 } },
      { type: "scatter3d", mode: "lines", ...column(corners), line: { color: SLICE_COLOR, width: 4 }, hoverinfo: "skip", showlegend: false });
    const { muted, text, line, card } = theme(root);
    const axis = (title) => ({ title: { text: title }, color: muted, showbackground: false, gridcolor: "rgba(128,128,128,.25)", zeroline: false });
    const plot = element("div", { class: "mstv-solid-plot", role: "group", "aria-label": "Scan and saliency in 3D" });
    const toggle = (name, color, trace) => element("button", { type: "button", class: "mstv-key", style: `--key:${color}`, "aria-pressed": "true",
      onclick: ({ currentTarget: button }) => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(on));
        Plotly.restyle(this.plot, { visible: on }, [trace]);
      } }, name);
    const keys = element("div", { class: "mstv-solid-keys", role: "group", "aria-label": "Shown in 3D" },
      toggle("Scan surface", SCAN_COLOR, 0), ...bodies.map((body, i) => toggle(viewer.bodyName(body.key), viewer.colorOf(body.key), 1 + i)),
      element("span", { class: "mstv-key mstv-key-line" }, "Current slice"));
    this.node.append(keys, plot);
    // A phone's tall frame shows less to the sides: the scan is seen from farther away.
    this.far = clamp(plot.clientHeight / (plot.clientWidth || 1), 1, 1.8);
    await Plotly.newPlot(plot, traces, {
      margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", font: { color: muted, size: 11 },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: text } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: muted, activecolor: text },
      scene: { aspectmode: "data", xaxis: axis("left – right (mm)"), yaxis: axis("back – front (mm)"), zaxis: axis("foot – head (mm)"),
        camera: this.placed() },
    }, { displaylogo: false, responsive: true,
      // Named one by one: Plotly's own choice has one that uploads the chart to Plotly's cloud.
      modeBarButtons: [["tableRotation", "pan3d", "zoom3d", "resetCameraDefault3d"]], plotlyServerURL: "",
      // Plotly draws four times the screen's pixels by default, which turns jerkily without a graphics card.
      plotGlPixelRatio: Math.max(1, window.devicePixelRatio || 1) });
    if (this.stopped) { Plotly.purge(plot); return; }
    this.plot = plot;
    plot.on("plotly_relayout", () => viewer.remembering());
    this.ready = true;
    root.dataset.solid = "ready";
  }

  // ---- the camera, as a link carries it: from any frame's shape the same view

  // Where it is and what it looks at; undefined where it is still as at first.
  get camera() {
    if (!this.plot) return this.seen?.join();
    const { eye, center } = this.plot.layout.scene.camera;
    const tidy = ({ x, y, z }, by = 1) => [x, y, z].map((v) => Number((v / by).toFixed(2)));
    const found = [...tidy(eye, this.far), ...tidy(center)].join();
    return found === OPENING.join() ? undefined : found;
  }

  look(camera) {
    this.seen = camera;
    if (this.plot) this.viewer.Plotly.relayout(this.plot, { "scene.camera": this.placed() });
  }

  placed() {
    const [x, y, z, ...center] = this.seen ?? OPENING;
    return { eye: { x: x * this.far, y: y * this.far, z: z * this.far }, center: { x: center[0], y: center[1], z: center[2] } };
  }

  // The surface encloses what the 2D view shows, as far as blocks of voxels can: their mean lowers a map's maximum,
  // and of what is left of it the threshold is a part, or a small spot would vanish.
  level({ layer, most }) {
    return (most || 255) * clamp(layer.cut / 255, 0.02, 0.95);
  }

  // A lesion smaller than a block fills none: half of what its fullest block holds still shows it.
  maskLevel({ most }) {
    return 0.5 * most || 127;
  }

  // Volumes as the mean of blocks of voxels: single voxels would let small spots vanish between them.
  coarsen({ shape, affine }, volumes) {
    const steps = shape.map((n) => Math.max(1, Math.ceil(n / MOST_CELLS)));
    const [nx, ny, nz] = shape.map((n, axis) => Math.ceil(n / steps[axis]));
    const place = () => new Float32Array(nx * ny * nz);
    const out = { x: place(), y: place(), z: place(), values: volumes.map(place) };
    let cell = 0;
    for (let i = 0; i < shape[0]; i += steps[0]) for (let j = 0; j < shape[1]; j += steps[1]) for (let k = 0; k < shape[2]; k += steps[2], cell++) {
      const to = [i, j, k].map((from, axis) => Math.min(from + steps[axis], shape[axis]));
      [out.x[cell], out.y[cell], out.z[cell]] = toWorld(affine, [i, j, k].map((from, axis) => (from + to[axis] - 1) / 2));
      const count = (to[0] - i) * (to[1] - j) * (to[2] - k);
      volumes.forEach(({ codes }, v) => {
        let sum = 0;
        for (let a = i; a < to[0]; a++) for (let b = j; b < to[1]; b++) {
          const row = (a * shape[1] + b) * shape[2];
          for (let c = k; c < to[2]; c++) sum += codes[row + c];
        }
        out.values[v][cell] = sum / count;
      });
    }
    return out;
  }

  // The threshold's surfaces, once it has come to rest: each costs a tenth of a second and more.
  recut() {
    if (!this.plot) return;
    clearTimeout(this.cutting);
    this.cutting = setTimeout(() => {
      this.bodies.forEach((body, i) => {
        const level = body.layer ? this.level(body) : body.level;
        if (level === body.level) return;
        body.level = level;
        this.viewer.Plotly.restyle(this.plot, { isomin: level, isomax: level }, [1 + i]);
      });
    }, 150);
  }

  // The current slice's outline, closed, as far as the shown box reaches.
  corners() {
    const { viewer } = this;
    const { rows, columns, depth } = viewer.space;
    const { start, shape, factors } = this.box;
    const ends = (line) => [start[line.axis] * factors[line.axis], (start[line.axis] + shape[line.axis]) * factors[line.axis] - 1];
    const [r0, r1] = ends(rows), [c0, c1] = ends(columns);
    return [[r0, c0], [r0, c1], [r1, c1], [r1, c0], [r0, c0]].map(([row, column]) => {
      const index = [0, 0, 0];
      index[depth.axis] = viewer.slice;
      index[rows.axis] = row;
      index[columns.axis] = column;
      return toWorld(viewer.data.affine, index);
    });
  }

  // Follows the slice. Plotly would make all surfaces anew, a third of a second; its two traces of the slice alone
  // are drawn with the next frame.
  move() {
    if (!this.plot) return;
    const corners = this.corners();
    const lines = [corners.slice(0, 4), corners].map(column);
    const scene = this.plot._fullLayout.scene?._scene;
    this.sliceTraces.forEach((at, i) => {
      const trace = this.plot._fullData[at];
      Object.assign(this.plot.data[at], lines[i]);
      Object.assign(trace, lines[i]);
      scene?.traces[trace.uid]?.update(trace);
    });
    scene?.glplot.redraw();
  }

  resize() {
    if (this.plot) this.viewer.Plotly.Plots.resize(this.plot);
  }

  recolor() {
    if (!this.plot) return;
    const { muted, text, line, card } = theme(this.viewer.root);
    this.viewer.Plotly.relayout(this.plot, {
      ...Object.fromEntries(["font", "scene.xaxis", "scene.yaxis", "scene.zaxis"].map((part) => [`${part}.color`, muted])),
      "hoverlabel.bgcolor": card, "hoverlabel.bordercolor": line, "hoverlabel.font.color": text,
      "modebar.color": muted, "modebar.activecolor": text,
    });
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.cutting);
    if (this.plot) this.viewer.Plotly.purge(this.plot);
    this.plot = null;
  }
}

const column = (points) => ({ x: points.map((p) => p[0]), y: points.map((p) => p[1]), z: points.map((p) => p[2]) });
