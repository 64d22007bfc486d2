// How much each model weighs each slice, under the slider.
import { cut } from "./slices.js";
import { element, theme } from "./page.js";

export class Chart {
  constructor(viewer) {
    this.viewer = viewer;
    this.node = null;
    if (!viewer.layers.length) return;
    this.canvas = element("canvas", { class: "mstv-chart", role: "img", "aria-label": "How much each model weighs each slice; click to go to a slice",
      onclick: (event) => {
        const box = this.canvas.getBoundingClientRect();
        viewer.show(Math.floor(((event.clientX - box.left) / box.width) * viewer.count));
      } });
    this.marker = element("div", { class: "mstv-marker" });
    this.node = element("div", { class: "mstv-chart-box" }, this.canvas, this.marker);
  }

  // A model's weight of each slice; across its own slices, the map's maximum in each.
  profile(layer) {
    if (this.viewer.view.plane === this.viewer.data.plane) return layer.profile;
    layer.maxima ??= {};
    return (layer.maxima[this.viewer.view.plane] ??= this.slicesMaxima(layer.volume, this.viewer.spaces[this.viewer.view.plane]));
  }

  // Over all slices of a plane, also those that the maps do not reach.
  slicesMaxima({ codes, value }, space) {
    const { box } = this.viewer;
    const own = box.spaces[space.plane];
    const values = new Uint8Array(own.rows.count * own.columns.count);
    const found = new Array(space.depth.count).fill(value(0));
    for (let slice = 0; slice < own.depth.count; slice++) {
      found[box.start[space.depth.axis] + slice] = value(cut(own, slice, codes, values).reduce((most, v) => Math.max(most, v), 0));
    }
    return found;
  }

  draw() {
    const { viewer } = this;
    if (!this.node) return;
    const box = this.canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    const width = Math.round(box.width * ratio);
    const height = Math.round(box.height * ratio);
    if (!width) return;
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    const context = this.canvas.getContext("2d");
    const { text, line, card } = theme(viewer.root);
    context.clearRect(0, 0, width, height);
    const step = width / viewer.count;
    const lane = height / viewer.layers.length;
    viewer.layers.forEach((layer, i) => {
      const profile = this.profile(layer);
      const most = Math.max(...profile, 1e-12);
      const top = viewer.view.plane === viewer.data.plane ? layer.top : profile.indexOf(most);
      const bottom = (i + 1) * lane - 1;
      context.fillStyle = line;
      context.fillRect(0, bottom, width, 1);
      profile.forEach((weight, s) => {
        const bar = (weight / most) * (lane - 4 * ratio);
        context.fillStyle = viewer.colorOf(layer.key);
        context.globalAlpha = s === top ? 1 : 0.55;
        context.fillRect(s * step + 0.12 * step, bottom - bar, 0.76 * step, bar);
      });
      context.globalAlpha = 1;
      context.fillStyle = text;
      context.font = `${11 * ratio}px system-ui, sans-serif`;
      const name = viewer.nameOf(layer);
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
    this.mark();
  }

  // The current slice in the chart: a box that is moved, so that the bars need no drawing anew.
  mark() {
    if (!this.node) return;
    const { viewer } = this;
    this.marker.style.left = `${(100 * (viewer.slice + 0.5)) / viewer.count}%`;
    this.marker.style.width = `max(4px, ${100 / viewer.count}%)`;
  }
}
