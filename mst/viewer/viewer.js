// The linked viewers and the locator.
//
// Plotly draws axes, zoom and 3D. The slices themselves are a canvas under Plotly's transparent plot, so that a
// step through the slices redraws images and never asks Plotly or the server for anything.
(() => {
  "use strict";
  if (window.MstViewer) return;

  // For each plane: the volume's axis along [slices, rows, columns], and whether it is flipped on the screen.
  // Radiological convention: an axial slice has the patient's right on the left and the front on top.
  const AXES = {
    axial: [[2, false], [1, true], [0, true]],
    coronal: [[1, false], [2, true], [0, true]],
    sagittal: [[0, false], [2, true], [1, true]],
  };
  const ENDS = [["L", "R"], ["P", "A"], ["F", "H"]]; // what lies at the low and the high end of each axis
  const COLORS = {
    Inferno: ["#000004", "#1b0c41", "#4a0c6b", "#781c6d", "#a52c60", "#cf4446", "#ed6925", "#fb9b06", "#f7d13d", "#fcffa4"],
    Viridis: ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"],
    Cividis: ["#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"],
    Magma: ["#000004", "#180f3d", "#440f76", "#721f81", "#9e2f7f", "#cd4071", "#f1605d", "#fd9668", "#feca8d", "#fcfdbf"],
  };
  const MODEL_COLORS = { mst: "#2aa6a8", resnet: "#e08e2b", scan: "#8a94a6" };
  const SHORT = { mst: "MST", resnet: "ResNet" };
  const NO_ALPHAS = new Float32Array(256);
  const PLAY_MS = 110;
  const WHEEL_STEP = 50; // a wheel's notch is 100 or 120; a touchpad sends many small parts of it

  // ---- small helpers -----------------------------------------------------------------------------------------

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  function element(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  function colorTable(stops) {
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

  async function inflate(base64) {
    if (!window.DecompressionStream) {
      throw new Error("this browser is too old to unpack the scan; use a current Firefox, Chrome, Edge or Safari.");
    }
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // A map sent at a lower resolution, put on the scan's voxels by repeating values.
  function enlarge(codes, from, to) {
    if (codes.length !== from[0] * from[1] * from[2]) throw new Error("a map's size does not fit its shape");
    const out = new Uint8Array(to[0] * to[1] * to[2]);
    const [xs, ys, zs] = to.map((n, axis) =>
      Array.from({ length: n }, (_, i) => Math.min(Math.floor(i / Math.round(n / from[axis])), from[axis] - 1)));
    let at = 0;
    for (const x of xs) for (const y of ys) {
      const row = (x * from[1] + y) * from[2];
      for (const z of zs) out[at++] = codes[row + z];
    }
    return out;
  }

  // The code below which that share of the region's voxels lies; zeros outside the region do not count.
  function quantile(counts, share) {
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
  function otsu(values) {
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
      const spread = dark * (all - dark) * (darkSum / dark - (sum - darkSum) / (all - dark)) ** 2;
      if (spread > best) { best = spread; level = i; }
    }
    return low + ((level + 1) / 64) * (high - low);
  }

  async function readVolume(entry, shape) {
    const buffer = await inflate(entry.data);
    let codes = entry.bits === 16 ? new Uint16Array(buffer) : new Uint8Array(buffer);
    if (entry.shape && entry.shape.some((n, axis) => n !== shape[axis])) codes = enlarge(codes, entry.shape, shape);
    if (codes.length !== shape[0] * shape[1] * shape[2]) throw new Error("the volume's size does not fit its shape");
    const top = 2 ** entry.bits - 1;
    return {
      codes,
      top,
      value: (code) => entry.low + (code / top) * (entry.high - entry.low),
      code: (value) => ((value - entry.low) / (entry.high - entry.low)) * top,
    };
  }

  // How a plane runs through a volume [X, Y, Z] in C order.
  function geometry(plane, shape, spacing) {
    const strides = [shape[1] * shape[2], shape[2], 1];
    const [depth, rows, columns] = AXES[plane].map(([axis, flip]) => ({
      axis,
      flip,
      count: shape[axis],
      stride: strides[axis],
      mm: spacing[axis],
      ends: flip ? [ENDS[axis][1], ENDS[axis][0]] : ENDS[axis],
    }));
    return { depth, rows, columns };
  }

  // Calls visit(index in the volume, pixel) for every pixel of a slice.
  function eachPixel({ depth, rows, columns }, slice, visit) {
    const base = (depth.flip ? depth.count - 1 - slice : slice) * depth.stride;
    let pixel = 0;
    for (let r = 0; r < rows.count; r++) {
      const row = base + (rows.flip ? rows.count - 1 - r : r) * rows.stride;
      for (let c = 0; c < columns.count; c++) {
        visit(row + (columns.flip ? columns.count - 1 - c : c) * columns.stride, pixel++);
      }
    }
  }

  function grayTable(volume, [low, high]) {
    const table = new Uint8Array(volume.top + 1);
    const from = volume.code(low);
    const scale = 255 / Math.max(volume.code(high) - from, 1e-9);
    for (let code = 0; code <= volume.top; code++) table[code] = clamp(Math.round((code - from) * scale), 0, 255);
    return table;
  }

  const toWorld = (affine, index) =>
    [0, 1, 2].map((r) => affine[r][0] * index[0] + affine[r][1] * index[1] + affine[r][2] * index[2] + affine[r][3]);

  function toVoxel(affine, point) {
    const [a, b, c] = affine.map((row) => row.slice(0, 3));
    const d = point.map((p, r) => p - affine[r][3]);
    const det = (m) =>
      m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) -
      m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
      m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
    const whole = det([a, b, c]);
    return [0, 1, 2].map((col) => det([a, b, c].map((row, r) => row.map((v, i) => (i === col ? d[r] : v)))) / whole);
  }

  let plotlyPromise = null;
  function loadPlotly() {
    if (window.Plotly) return Promise.resolve(window.Plotly);
    plotlyPromise ??= new Promise((resolve, reject) => {
      const script = element("script", { src: window.MST_PLOTLY_URL });
      script.onload = () => resolve(window.Plotly);
      script.onerror = () => {
        plotlyPromise = null;
        reject(new Error("Plotly's script could not be loaded from this server; reload the page."));
      };
      document.head.append(script);
    });
    return plotlyPromise;
  }

  function fail(root, error) {
    console.error(error);
    root.replaceChildren(
      element("p", { class: "mstv-error", role: "alert" }, `The viewer could not be drawn: ${error.message || error}`),
    );
    root.dataset.ready = "error";
  }

  // Canvas and Plotly take no CSS variables: what they need of the theme is read when they draw.
  function theme(root) {
    const style = getComputedStyle(root);
    const get = (name) => style.getPropertyValue(name).trim();
    return { text: get("--mstv-text"), muted: get("--mstv-muted"), line: get("--mstv-line"), card: get("--mstv-card") };
  }

  // ---- the linked viewers ------------------------------------------------------------------------------------

  class Viewer {
    constructor(root, payload) {
      this.root = root;
      this.data = payload;
      this.space = geometry(payload.plane, payload.shape, payload.spacing);
      this.count = this.space.depth.count;
      const opening = payload.layers.find((layer) => layer.key === "mst") || payload.layers[0];
      this.slice = opening ? opening.top : Math.floor(this.count / 2);
      this.opacity = 0.6;
      this.share = 0.1; // of the region's voxels, those with the most saliency are shown
      this.window = payload.window.slice();
      this.colors = colorTable(COLORS.Inferno);
      this.outline = true;
      this.panels = [];
      this.wheeled = 0;
      this.stopper = new AbortController();
    }

    async start() {
      const { data } = this;
      const [scan, mask, ...layers] = await Promise.all([
        readVolume(data.scan, data.shape),
        data.mask ? readVolume(data.mask, data.shape) : null,
        ...data.layers.map((layer) => readVolume(layer, data.shape)),
      ]);
      this.scan = scan;
      this.mask = mask;
      this.layers = data.layers.map((layer, i) => ({ ...layer, volume: layers[i], counts: this.count256(layers[i]) }));
      this.setAlphas();
      this.Plotly = await loadPlotly();
      this.gray = grayTable(scan, this.window);
      this.build();
      await Promise.all(this.panels.map((panel) => panel.start()));
      this.listen();
      this.show(this.slice);
      this.draw();
      this.root.dataset.count = this.count;
      this.root.dataset.ready = "true";
    }

    // How often each code occurs within the models' region.
    count256({ codes }) {
      const { shape, region } = this.data;
      const [x, y, z] = shape.map((n, axis) =>
        region ? region[axis].map((at) => clamp(Math.round(at), 0, n)) : [0, n]);
      const counts = new Float64Array(256);
      for (let i = x[0]; i < x[1]; i++) for (let j = y[0]; j < y[1]; j++) {
        const row = (i * shape[1] + j) * shape[2];
        for (let k = z[0]; k < z[1]; k++) counts[codes[row + k]]++;
      }
      return counts;
    }

    // For each layer and code, how much of the colour lies over the scan. It grows from the threshold up, so
    // that the map's edge is no hard line that the model did not draw.
    setAlphas() {
      for (const layer of this.layers) {
        layer.cut = this.share >= 1 ? 1 : Math.max(1, quantile(layer.counts, 1 - this.share));
        layer.alphas = new Float32Array(256);
        for (let i = layer.cut; i < 256; i++) {
          const above = (i - layer.cut) / Math.max(255 - layer.cut, 1);
          layer.alphas[i] = this.opacity * Math.min(1, 0.35 + 1.6 * above);
        }
      }
    }

    build() {
      const { data } = this;
      const percent = (part) => `${Math.round(part * 100)}%`;
      const option = (name, value) => element("option", { value }, name);
      const windows = [["Default", ...data.window], ...data.windows];
      this.windowSelect = element("select", { "aria-label": "Display window" }, ...windows.map(([n], i) => option(n, i)));
      if (data.windows.length) this.windowSelect.remove(0);
      this.windowSelect.addEventListener("change", () => {
        this.window = windows[Number(this.windowSelect.value)].slice(1);
        this.gray = grayTable(this.scan, this.window);
        this.draw();
      });
      const colorSelect = element("select", { "aria-label": "Colour map" }, ...Object.keys(COLORS).map((n) => option(n, n)));
      colorSelect.addEventListener("change", () => {
        this.colors = colorTable(COLORS[colorSelect.value]);
        this.panels.forEach((panel) => panel.drawBar());
        this.later();
      });
      const range = (label, key, name, words, most = 100) => {
        const out = element("output", {}, words(this[key]));
        const input = element("input", {
          type: "range", min: key === "share" ? 1 : 0, max: most, value: Math.round(this[key] * 100), "aria-label": label,
          "aria-valuetext": words(this[key]), "data-control": name,
        });
        input.addEventListener("input", () => {
          this[key] = input.valueAsNumber / 100;
          out.textContent = words(this[key]);
          input.setAttribute("aria-valuetext", words(this[key]));
          this.setAlphas();
          this.panels.forEach((panel) => panel.drawBar());
          if (this.view3d) this.moveSurfaces();
          this.later();
        });
        return element("label", { class: `mstv-range${key === "share" ? "" : " mstv-only-2d"}` }, element("span", {}, label), input, out);
      };
      const outline = this.mask
        ? element("label", { class: "mstv-check mstv-only-2d" },
            element("input", { type: "checkbox", checked: "", onchange: (e) => { this.outline = e.target.checked; this.draw(); } }),
            "Lesion outline")
        : null;
      this.tabs = ["2D", "3D"].map((name, i) =>
        element("button", { type: "button", role: "tab", "aria-selected": String(i === 0), tabindex: i ? -1 : 0,
          onclick: () => this.setView(name), onkeydown: (event) => this.switchTab(event) }, name));
      this.helpButton = element("button", {
        type: "button", class: "mstv-icon", "aria-label": "Keys", "aria-expanded": "false", title: "Keys",
        onclick: () => this.toggleHelp(),
      }, "?");
      const toolbar = element("div", { class: "mstv-toolbar" },
        element("div", { class: "mstv-tabs", role: "tablist", "aria-label": "View" }, ...this.tabs),
        element("label", { class: "mstv-select mstv-only-2d" }, element("span", {}, "Window"), this.windowSelect),
        this.layers.length ? element("label", { class: "mstv-select mstv-only-2d" }, element("span", {}, "Colours"), colorSelect) : null,
        this.layers.length ? range("Opacity", "opacity", "opacity", percent) : null,
        this.layers.length ? range("Show top", "share", "threshold", percent) : null,
        outline, this.helpButton);
      this.help = element("div", { class: "mstv-help", hidden: "" });
      this.help.innerHTML =
        "<kbd>←</kbd> <kbd>→</kbd> or wheel: one slice · <kbd>PgUp</kbd> <kbd>PgDn</kbd>: five · <kbd>Home</kbd> <kbd>End</kbd>: " +
        "first, last · <kbd>Space</kbd>: play · drag: move · wheel with <kbd>Ctrl</kbd>: zoom the page · double click: whole slice";
      this.panelRow = element("div", { class: "mstv-panels" });
      const shown = this.layers.length ? this.layers : [null];
      this.panels = shown.map((layer) => new Panel(this, layer));
      this.panelRow.append(...this.panels.map((panel) => panel.node));
      this.panelRow.style.setProperty("--mstv-count", shown.length);

      this.slider = element("input", {
        type: "range", min: 0, max: this.count - 1, step: 1, value: this.slice, class: "mstv-slider", "aria-label": "Slice",
        "data-control": "slice",
      });
      this.slider.addEventListener("input", () => this.show(this.slider.valueAsNumber));
      this.playButton = element("button", {
        type: "button", class: "mstv-icon", "aria-label": "Play", onclick: () => this.play(!this.timer),
      }, "▶");
      this.readout = element("p", { class: "mstv-readout", "aria-live": "off" });
      this.chart = element("canvas", { class: "mstv-chart", role: "img", "aria-label": "How much each model weighs each slice; click to go to a slice" });
      this.chart.addEventListener("click", (event) => {
        const box = this.chart.getBoundingClientRect();
        this.show(Math.floor(((event.clientX - box.left) / box.width) * this.count));
      });
      this.flat = element("div", { class: "mstv-flat", role: "tabpanel", "aria-label": "Slices" }, this.panelRow);
      const steer = element("div", { class: "mstv-steer" }, this.playButton,
        element("div", { class: "mstv-track" }, this.slider, this.layers.length ? this.chart : null));
      this.solid = element("div", { class: "mstv-solid", hidden: "", role: "tabpanel", "aria-label": "3D" });
      const notes = this.data.notes.length
        ? element("ul", { class: "mstv-notes" }, ...this.data.notes.map((note) => element("li", {}, note))) : null;
      this.root.replaceChildren(toolbar, this.help, this.flat, this.solid, steer, this.readout, ...(notes ? [notes] : []));
    }

    listen() {
      const signal = this.stopper.signal;
      this.panelRow.addEventListener("wheel", (event) => {
        if (event.ctrlKey || event.deltaY === 0) return;
        event.preventDefault();
        event.stopPropagation();
        this.wheeled = (Math.sign(this.wheeled) === Math.sign(event.deltaY) ? this.wheeled : 0) + event.deltaY;
        if (event.deltaMode === 0 && Math.abs(this.wheeled) < WHEEL_STEP) return;
        this.wheeled = 0;
        this.show(this.slice + Math.sign(event.deltaY));
      }, { passive: false, capture: true });
      document.addEventListener("keydown", (event) => this.key(event), { signal });
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
      if (own && !(own === this.slider && /^(Page|Home|End| )/.test(event.key))) return;
      const to = {
        ArrowRight: this.slice + 1, ArrowDown: this.slice + 1, ArrowLeft: this.slice - 1, ArrowUp: this.slice - 1,
        PageDown: this.slice + 5, PageUp: this.slice - 5, Home: 0, End: this.count - 1,
      }[event.key];
      if (to !== undefined) {
        event.preventDefault();
        this.show(to);
      } else if (event.key === "?") this.toggleHelp();
      else if (event.key === " " && !target.closest?.("button")) {
        event.preventDefault();
        this.play(!this.timer);
      }
    }

    // Within the tabs, left and right change the tab and not the slice.
    switchTab(event) {
      if (!/^Arrow(Left|Right)$/.test(event.key)) return;
      event.preventDefault();
      event.stopPropagation();
      const other = this.tabs.find((tab) => tab !== event.currentTarget);
      other.focus();
      this.setView(other.textContent);
    }

    toggleHelp() {
      this.help.hidden = !this.help.hidden;
      this.helpButton.setAttribute("aria-expanded", String(!this.help.hidden));
    }

    play(on) {
      clearInterval(this.timer);
      this.timer = on ? setInterval(() => this.show((this.slice + 1) % this.count), PLAY_MS) : null;
      this.playButton.textContent = on ? "❚❚" : "▶";
      this.playButton.setAttribute("aria-label", on ? "Pause" : "Play");
    }

    show(slice) {
      this.slice = clamp(Math.round(slice), 0, this.count - 1);
      this.root.dataset.slice = this.slice;
      this.slider.value = this.slice;
      this.slider.setAttribute("aria-valuetext", `slice ${this.number(this.slice)}`);
      this.later();
    }

    // However many events a frame brings, all panels are drawn once, together.
    later() {
      this.frame ??= requestAnimationFrame(() => {
        this.frame = null;
        this.draw();
      });
    }

    draw() {
      if (this.view3d) this.movePlane();
      else this.panels.forEach((panel) => panel.draw());
      this.drawChart();
      this.say(this.pointer);
      this.root.dataset.drawn = this.slice;
    }

    // The slice's number in the whole scan, from 1.
    number(slice) {
      const axis = this.space.depth.axis;
      return this.data.first[axis] + slice * this.data.factors[axis] + 1;
    }

    indexAt(row, column) {
      const { depth, rows, columns } = this.space;
      const index = [0, 0, 0];
      index[depth.axis] = this.slice;
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

    say(at = null) {
      const axis = this.space.depth.axis;
      const parts = [`Slice ${this.number(this.slice)} of ${this.data.full[axis]}`];
      const { rows, columns } = this.space;
      const index = at ? this.indexAt(at.row, at.column) : this.indexAt((rows.count - 1) / 2, (columns.count - 1) / 2);
      const world = toWorld(this.data.affine, index);
      if (!at) parts.push(`${"xyz"[axis]} ${world[axis].toFixed(1)} mm`);
      else {
        parts.push(`x ${world[0].toFixed(1)}, y ${world[1].toFixed(1)}, z ${world[2].toFixed(1)} mm`);
        parts.push(...this.values(at).map(([name, value]) => `${name} ${value}`));
      }
      this.readout.textContent = parts.join("  ·  ");
    }

    // What lies under the pointer: [name, value] of the scan and of each map.
    values({ row, column }) {
      const [i, j, k] = this.indexAt(row, column);
      const place = (i * this.data.shape[1] + j) * this.data.shape[2] + k;
      const value = this.scan.value(this.scan.codes[place]);
      const gray = Math.abs(value) < 10 && value % 1 ? value.toFixed(2) : String(Math.round(value));
      const maps = this.layers.map((layer) => [SHORT[layer.key] || layer.key,
        `${layer.volume.value(layer.volume.codes[place]).toPrecision(2)} (${Math.round((layer.volume.codes[place] / 255) * 100)}% of max.)`]);
      return [["Intensity", `${gray} ${this.data.unit}`.trim()], ...maps];
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
      const { text, line } = theme(this.root);
      context.clearRect(0, 0, width, height);
      const step = width / this.count;
      const lane = height / this.layers.length;
      this.layers.forEach((layer, i) => {
        const most = Math.max(...layer.profile, 1e-12);
        const bottom = (i + 1) * lane - 1;
        context.fillStyle = line;
        context.fillRect(0, bottom, width, 1);
        layer.profile.forEach((weight, s) => {
          const bar = (weight / most) * (lane - 4 * ratio);
          context.fillStyle = MODEL_COLORS[layer.key] || text;
          context.globalAlpha = s === layer.top ? 1 : 0.55;
          context.fillRect(s * step + 0.12 * step, bottom - bar, 0.76 * step, bar);
        });
        context.globalAlpha = 1;
        context.fillStyle = text;
        context.font = `${10 * ratio}px system-ui, sans-serif`;
        context.fillText(SHORT[layer.key] || layer.key, 3 * ratio, bottom - lane + 11 * ratio);
      });
      context.strokeStyle = text;
      context.lineWidth = ratio;
      context.strokeRect((this.slice + 0.5) * step - 0.5 * Math.max(step, 3), 0.5, Math.max(step, 3), height - 1);
    }

    // Zoom and pan are shared: what one panel shows, all show.
    link(source, range) {
      if (this.linking) return;
      this.linking = true;
      Promise.all(this.panels.filter((panel) => panel !== source).map((panel) => panel.setRange(range)))
        .finally(() => { this.linking = false; });
    }

    resize() {
      cancelAnimationFrame(this.resizing);
      this.resizing = requestAnimationFrame(() => {
        if (this.view3d) this.solidPlot && this.Plotly.Plots.resize(this.solidPlot);
        else this.panels.forEach((panel) => panel.resize());
        this.drawChart();
      });
    }

    recolor() {
      this.drawChart();
      if (!this.solidPlot) return;
      const { muted } = theme(this.root);
      this.Plotly.relayout(this.solidPlot, Object.fromEntries(
        ["font", "scene.xaxis", "scene.yaxis", "scene.zaxis"].map((part) => [`${part}.color`, muted])));
    }

    // ---- 3D

    async setView(name) {
      this.view3d = name === "3D";
      this.play(false);
      this.tabs.forEach((tab) => {
        tab.setAttribute("aria-selected", String(tab.textContent === name));
        tab.tabIndex = tab.textContent === name ? 0 : -1;
      });
      this.flat.hidden = this.view3d;
      this.solid.hidden = !this.view3d;
      this.root.dataset.view = name.toLowerCase();
      this.say();
      if (!this.view3d) {
        this.panels.forEach((panel) => panel.resize());
        this.draw();
        return;
      }
      // Once only, even when the tab is left and opened again while the surfaces are still being made.
      this.building ??= this.buildSolid().catch((error) => {
        console.error(error);
        this.solid.replaceChildren(element("p", { class: "mstv-note", role: "alert" },
          "The 3D view could not be drawn. The 2D view shows the same maps."));
        this.root.dataset.solid = "unavailable";
      });
      await this.building;
      if (!this.solidPlot || !this.view3d) return;
      this.Plotly.Plots.resize(this.solidPlot);
      this.moveSurfaces();
      this.movePlane();
    }

    // The threshold's surfaces, once it has come to rest: each costs a tenth of a second and more.
    moveSurfaces() {
      if (!this.solidPlot) return;
      clearTimeout(this.moving);
      this.moving = setTimeout(() => {
        this.layers.forEach((layer, i) => {
          const level = this.solidLevel(layer);
          if (level === layer.level) return;
          layer.level = level;
          this.Plotly.restyle(this.solidPlot, { isomin: level, isomax: level }, [1 + i]);
        });
      }, 150);
    }

    async buildSolid() {
      const probe = document.createElement("canvas");
      if (!probe.getContext("webgl2") && !probe.getContext("webgl")) {
        this.solid.append(element("p", { class: "mstv-note", role: "status" },
          "The 3D view needs WebGL, which this browser has not switched on. The 2D view shows the same maps."));
        this.root.dataset.solid = "unavailable";
        return;
      }
      const plot = element("div", { class: "mstv-solid-plot", role: "img", "aria-label": "Scan and saliency in 3D" });
      const toggle = (name, color, trace) =>
        element("button", { type: "button", class: "mstv-key", style: `--key:${color}`, "aria-pressed": "true",
          onclick: ({ currentTarget: button }) => {
            const on = button.getAttribute("aria-pressed") !== "true";
            button.setAttribute("aria-pressed", String(on));
            this.Plotly.restyle(this.solidPlot, { visible: on }, [trace]);
          } }, name);
      const keys = element("div", { class: "mstv-solid-keys", role: "group", "aria-label": "Shown in 3D" },
        toggle("Scan surface", "#9aa3b2", 0),
        ...this.layers.map((l, i) => toggle(`${SHORT[l.key] || l.key} map`, MODEL_COLORS[l.key], 1 + i)),
        element("span", { class: "mstv-key mstv-key-line" }, "Current slice"));
      this.solid.append(keys, plot);
      const coarse = this.coarsen(34);
      const trace = (values, level, color, opacity, name) => ({
        type: "isosurface", x: coarse.x, y: coarse.y, z: coarse.z, value: values, isomin: level, isomax: level,
        surface: { count: 1 }, caps: { x: { show: false }, y: { show: false }, z: { show: false } },
        colorscale: [[0, color], [1, color]], showscale: false, opacity, name, hoverinfo: "name", showlegend: false,
        lighting: { ambient: 0.55, diffuse: 0.7, specular: 0.15 },
      });
      const [low, high] = this.data.window;
      const level = this.data.unit === "HU" && low < -300 ? -300 : otsu(coarse.scan.map((v) => clamp(v, low, high)));
      const shades = [trace(coarse.scan, level, "#9aa3b2", 0.24, "scan")];
      this.layers.forEach((layer, i) => {
        layer.level = this.solidLevel(layer);
        shades.push(trace(coarse.layers[i], layer.level, MODEL_COLORS[layer.key] || "#fff", 0.5, SHORT[layer.key] || layer.key));
      });
      const { muted } = theme(this.root);
      this.planeTrace = shades.length;
      shades.push({ type: "scatter3d", mode: "lines", ...this.planeLines(), line: { color: "#4c8dff", width: 4 }, hoverinfo: "skip", showlegend: false });
      const axis = (title) => ({ title: { text: title }, color: muted, showbackground: false, gridcolor: "rgba(128,128,128,.25)", zeroline: false });
      await this.Plotly.newPlot(plot, shades, {
        margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", font: { color: muted, size: 11 },
        scene: { aspectmode: "data", xaxis: axis("left – right (mm)"), yaxis: axis("back – front (mm)"), zaxis: axis("foot – head (mm)"),
          camera: { eye: { x: -1.45, y: 1.45, z: 0.85 }, center: { x: 0, y: 0, z: -0.12 } } },
      }, { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["tableRotation", "resetCameraLastSave3d"] });
      this.solidPlot = plot;
      this.root.dataset.solid = "ready";
    }

    // The surface encloses what the 2D view shows, as far as blocks of voxels can.
    solidLevel(layer) {
      return clamp(layer.cut / 255, 0.02, 0.95);
    }

    coarsen(most) {
      const { shape, affine } = this.data;
      const steps = shape.map((n) => Math.max(1, Math.ceil(n / most)));
      const out = { x: [], y: [], z: [], scan: [], layers: this.layers.map(() => []) };
      for (let i = 0; i < shape[0]; i += steps[0]) {
        for (let j = 0; j < shape[1]; j += steps[1]) {
          for (let k = 0; k < shape[2]; k += steps[2]) {
            const to = [i, j, k].map((from, axis) => Math.min(from + steps[axis], shape[axis]));
            const [x, y, z] = toWorld(affine, [i, j, k].map((from, axis) => (from + to[axis] - 1) / 2));
            out.x.push(x); out.y.push(y); out.z.push(z);
            // The mean of a block of voxels: single ones would let small spots vanish between them.
            const sums = new Float64Array(1 + this.layers.length);
            let n = 0;
            for (let a = i; a < to[0]; a++) for (let b = j; b < to[1]; b++) for (let c = k; c < to[2]; c++) {
              const at = (a * shape[1] + b) * shape[2] + c;
              sums[0] += this.scan.codes[at];
              this.layers.forEach((layer, l) => { sums[1 + l] += layer.volume.codes[at]; });
              n++;
            }
            out.scan.push(this.scan.value(sums[0] / n));
            this.layers.forEach((layer, l) => out.layers[l].push(sums[1 + l] / n / 255));
          }
        }
      }
      return out;
    }

    planeLines() {
      const { rows, columns } = this.space;
      const corners = [[0, 0], [0, columns.count - 1], [rows.count - 1, columns.count - 1], [rows.count - 1, 0], [0, 0]];
      const points = corners.map(([r, c]) => toWorld(this.data.affine, this.indexAt(r, c)));
      return { x: points.map((p) => p[0]), y: points.map((p) => p[1]), z: points.map((p) => p[2]) };
    }

    movePlane() {
      if (!this.solidPlot) return;
      const { x, y, z } = this.planeLines();
      this.Plotly.restyle(this.solidPlot, { x: [x], y: [y], z: [z] }, [this.planeTrace]);
    }

    stop() {
      this.play(false);
      this.stopper.abort();
      this.watcher?.disconnect();
      this.themed?.disconnect();
      clearTimeout(this.moving);
      cancelAnimationFrame(this.frame);
      this.panels.forEach((panel) => this.Plotly?.purge(panel.plot));
      if (this.solidPlot) this.Plotly.purge(this.solidPlot);
    }
  }

  // One panel: a Plotly figure with axes in millimetres, and the canvas with the slice beneath it.
  class Panel {
    constructor(viewer, layer) {
      this.viewer = viewer;
      this.layer = layer;
      const { rows, columns } = viewer.space;
      this.canvas = element("canvas", { class: "mstv-slice" });
      this.plot = element("div", { class: "mstv-plot" });
      const letter = (text, side) => element("span", { class: `mstv-letter mstv-${side}`, "aria-hidden": "true" }, text);
      this.cross = element("div", { class: "mstv-cross", hidden: "", "aria-hidden": "true" });
      this.tip = element("div", { class: "mstv-tip", hidden: "", "aria-hidden": "true" });
      this.frame = element("div", { class: "mstv-frame" }, this.canvas, this.plot, this.cross, this.tip,
        letter(rows.ends[0], "top"), letter(rows.ends[1], "bottom"), letter(columns.ends[0], "left"), letter(columns.ends[1], "right"));
      this.badge = layer
        ? element("button", { type: "button", class: "mstv-badge", title: "Go to the slice that this model weighs most",
            onclick: () => viewer.show(layer.top) }, `Most weighted slice: ${viewer.number(layer.top)}`)
        : null;
      this.bar = element("canvas", { class: "mstv-bar", width: 256, height: 1, "aria-hidden": "true" });
      this.cutMark = element("span", { class: "mstv-cut" });
      const scale = layer
        ? element("div", { class: "mstv-scale" }, element("span", {}, "0"),
            element("div", { class: "mstv-bar-box" }, this.bar, this.cutMark),
            element("span", {}, `${layer.max.toPrecision(2)} max.`))
        : null;
      this.node = element("figure", { class: "mstv-panel", "data-panel": layer ? layer.key : "scan" },
        element("figcaption", {},
          element("span", { class: "mstv-dot", style: `--key:${MODEL_COLORS[layer ? layer.key : "scan"]}` }),
          element("strong", {}, layer ? layer.label : "Scan"), this.badge),
        this.frame, scale);
      this.image = document.createElement("canvas");
      this.image.width = columns.count;
      this.image.height = rows.count;
      this.pixels = new ImageData(columns.count, rows.count);
      this.width = columns.count * columns.mm;
      this.height = rows.count * rows.mm;
    }

    async start() {
      this.drawBar();
      const { viewer, width, height } = this;
      this.frame.style.aspectRatio = `${width} / ${height}`;
      const axis = (length) => ({
        range: [0, length], showgrid: false, zeroline: false, showticklabels: false, ticks: "", fixedrange: false,
        minallowed: -length * 0.5, maxallowed: length * 1.5,
      });
      await viewer.Plotly.newPlot(this.plot, [{ x: [0], y: [0], mode: "markers", marker: { opacity: 0 }, hoverinfo: "skip" }], {
        margin: { l: 0, r: 0, t: 0, b: 0 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
        // On a touch screen a finger over the image scrolls the page, as over any other image.
        dragmode: matchMedia("(pointer: coarse)").matches ? false : "pan", hovermode: false,
        xaxis: { ...axis(width), constrain: "domain" },
        yaxis: { ...axis(height), range: [height, 0], scaleanchor: "x", constrain: "domain" },
      }, {
        displaylogo: false, scrollZoom: false, doubleClick: "reset", displayModeBar: "hover",
        modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
      });
      this.plot.on("plotly_relayout", () => {
        const layout = this.plot._fullLayout;
        viewer.link(this, [layout.xaxis.range.slice(), layout.yaxis.range.slice()]);
        this.draw();
      });
      this.plot.on("plotly_relayouting", () => this.draw());
      this.frame.addEventListener("pointermove", (event) => viewer.point(event.buttons ? null : this.under(event), this));
      this.frame.addEventListener("pointerleave", () => viewer.point(null));
    }

    // The cross at the place under the pointer, and in the pointer's own panel the values beside it.
    mark(at, own) {
      this.cross.hidden = !at || own;
      this.tip.hidden = !at || !own;
      if (!at) return;
      const { xaxis, yaxis } = this.plot._fullLayout;
      const { rows, columns } = this.viewer.space;
      const x = xaxis._offset + xaxis.d2p((at.column + 0.5) * columns.mm);
      const y = yaxis._offset + yaxis.d2p((at.row + 0.5) * rows.mm);
      this.cross.style.transform = `translate(${x}px, ${y}px)`;
      if (!own) return;
      this.tip.replaceChildren(...this.viewer.values(at).map(([name, value]) =>
        element("span", {}, element("b", {}, name), ` ${value}`)));
      // Towards the middle of the frame, so that it is never cut off.
      const right = x > this.frame.clientWidth / 2, low = y > this.frame.clientHeight / 2;
      this.tip.style.transform =
        `translate(${x + (right ? -14 : 14)}px, ${y + (low ? -14 : 14)}px) translate(${right ? -100 : 0}%, ${low ? -100 : 0}%)`;
    }

    // The pixel of the slice under the pointer; null beside it.
    under(event) {
      const { xaxis, yaxis } = this.plot._fullLayout;
      const box = this.frame.getBoundingClientRect();
      const { rows, columns } = this.viewer.space;
      const column = Math.floor(xaxis.p2d(event.clientX - box.left - xaxis._offset) / columns.mm);
      const row = Math.floor(yaxis.p2d(event.clientY - box.top - yaxis._offset) / rows.mm);
      return row >= 0 && row < rows.count && column >= 0 && column < columns.count ? { row, column } : null;
    }

    setRange([x, y]) {
      return this.viewer.Plotly.relayout(this.plot, { "xaxis.range": x, "yaxis.range": y }).then(() => this.draw());
    }

    resize() {
      if (!this.frame.clientWidth || !this.plot._fullLayout) return;
      Promise.resolve(this.viewer.Plotly.Plots.resize(this.plot)).then(() => this.draw());
    }

    drawBar() {
      if (!this.layer) return;
      const context = this.bar.getContext("2d");
      const image = context.createImageData(256, 1);
      for (let i = 0; i < 256; i++) {
        // What the threshold hides is left out of the bar as well.
        image.data.set([...this.viewer.colors.subarray(3 * i, 3 * i + 3), i < this.layer.cut ? 0 : 255], 4 * i);
      }
      context.putImageData(image, 0, 0);
      const part = this.layer.cut / 255;
      this.cutMark.textContent = part > 0.12 ? (part * this.layer.max).toPrecision(2) : "";
      this.cutMark.style.left = `${100 * part}%`;
    }

    draw() {
      const layout = this.plot._fullLayout;
      if (!layout) return;
      this.paint();
      const ratio = window.devicePixelRatio || 1;
      const width = Math.round(this.frame.clientWidth * ratio);
      const height = Math.round(this.frame.clientHeight * ratio);
      if (!width || !height) return;
      if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
      const context = this.canvas.getContext("2d");
      context.fillStyle = "#000";
      context.fillRect(0, 0, width, height);
      const { xaxis, yaxis } = layout;
      const left = (xaxis._offset + xaxis.d2p(0)) * ratio;
      const top = (yaxis._offset + yaxis.d2p(0)) * ratio;
      const right = (xaxis._offset + xaxis.d2p(this.width)) * ratio;
      const bottom = (yaxis._offset + yaxis.d2p(this.height)) * ratio;
      context.imageSmoothingEnabled = true;
      context.imageSmoothingQuality = "high";
      context.drawImage(this.image, left, top, right - left, bottom - top);
      this.drawRegion(context, left, top, right, bottom, ratio);
      this.drawRuler(context, (right - left) / this.width, width, height, ratio);
      if (this.viewer.mask && this.viewer.outline) this.drawOutline(context, left, top, right, bottom, ratio);
      if (this.badge) this.badge.toggleAttribute("data-here", this.viewer.slice === this.layer.top);
    }

    // A dashed frame round what the models were given; on slices beside it there is none.
    drawRegion(context, left, top, right, bottom, ratio) {
      const { region } = this.viewer.data;
      const { depth, rows, columns } = this.viewer.space;
      if (!region || !this.layer) return;
      const at = this.viewer.slice + 0.5;
      if (at < region[depth.axis][0] || at > region[depth.axis][1]) return;
      const ends = (line, from, to) => {
        const [low, high] = region[line.axis].map((v) => (line.flip ? line.count - v : v) / line.count);
        return [from + Math.min(low, high) * (to - from), from + Math.max(low, high) * (to - from)];
      };
      const [x0, x1] = ends(columns, left, right), [y0, y1] = ends(rows, top, bottom);
      context.save();
      context.setLineDash([5 * ratio, 4 * ratio]);
      context.lineWidth = ratio;
      context.strokeStyle = "rgba(255, 255, 255, .5)";
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
      context.restore();
    }

    // A round number of millimetres, about a fifth of the image.
    drawRuler(context, pixelsPerMm, width, height, ratio) {
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
      context.strokeText(`${mm} mm`, x + length + 7 * ratio, y + ratio);
      context.fillStyle = "#fff";
      context.fillText(`${mm} mm`, x + length + 7 * ratio, y + ratio);
    }

    // The slice, and the saliency over it, at one pixel a voxel.
    paint() {
      const { viewer } = this;
      const { codes } = viewer.scan;
      const { gray, colors, opacity } = viewer;
      const over = this.layer && opacity > 0 ? this.layer.volume.codes : null;
      const alphas = over ? this.layer.alphas : NO_ALPHAS;
      const out = this.pixels.data;
      eachPixel(viewer.space, viewer.slice, (index, pixel) => {
        const level = gray[codes[index]];
        const at = 4 * pixel;
        const weight = over ? over[index] : 0;
        const alpha = alphas[weight];
        if (alpha > 0) {
          out[at] = level + (colors[3 * weight] - level) * alpha;
          out[at + 1] = level + (colors[3 * weight + 1] - level) * alpha;
          out[at + 2] = level + (colors[3 * weight + 2] - level) * alpha;
        } else {
          out[at] = out[at + 1] = out[at + 2] = level;
        }
        out[at + 3] = 255;
      });
      this.image.getContext("2d").putImageData(this.pixels, 0, 0);
    }

    drawOutline(context, left, top, right, bottom, ratio) {
      const { space, mask, slice } = this.viewer;
      const { rows, columns } = space;
      const inside = new Uint8Array(rows.count * columns.count);
      eachPixel(space, slice, (index, pixel) => { inside[pixel] = mask.codes[index] > 127 ? 1 : 0; });
      const dx = (right - left) / columns.count;
      const dy = (bottom - top) / rows.count;
      context.beginPath();
      for (let r = 0; r < rows.count; r++) {
        for (let c = 0; c < columns.count; c++) {
          if (!inside[r * columns.count + c]) continue;
          const x = left + c * dx;
          const y = top + r * dy;
          const edge = (dr, dc) => {
            const rr = r + dr, cc = c + dc;
            return rr < 0 || cc < 0 || rr >= rows.count || cc >= columns.count || !inside[rr * columns.count + cc];
          };
          if (edge(-1, 0)) { context.moveTo(x, y); context.lineTo(x + dx, y); }
          if (edge(1, 0)) { context.moveTo(x, y + dy); context.lineTo(x + dx, y + dy); }
          if (edge(0, -1)) { context.moveTo(x, y); context.lineTo(x, y + dy); }
          if (edge(0, 1)) { context.moveTo(x + dx, y); context.lineTo(x + dx, y + dy); }
        }
      }
      context.strokeStyle = "#4ade80";
      context.lineWidth = 1.6 * ratio;
      context.stroke();
    }
  }

  // ---- the locator -------------------------------------------------------------------------------------------

  class Locator {
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
      canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); pick(event); });
      canvas.addEventListener("pointermove", (event) => { if (event.buttons) pick(event); });
      canvas.addEventListener("pointerup", () => this.tell());
      canvas.addEventListener("pointercancel", () => this.tell());
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

  // ---- finding roots as they appear --------------------------------------------------------------------------

  const living = new Map();
  function scanDocument() {
    for (const [root, viewer] of living) {
      if (!root.isConnected) {
        viewer.stop();
        living.delete(root);
      }
    }
    for (const root of document.querySelectorAll(".mst-viewer, .mst-locator")) {
      const source = root.querySelector("template.mst-payload");
      if (!source) continue;
      // A page may put new data into a root that it keeps: the viewer in it starts anew.
      living.get(root)?.stop();
      living.delete(root);
      source.remove();
      root.dataset.ready = "false";
      let viewer;
      try {
        const payload = JSON.parse(source.content.textContent);
        viewer = root.classList.contains("mst-viewer") ? new Viewer(root, payload) : new Locator(root, payload);
      } catch (error) {
        fail(root, error);
        continue;
      }
      living.set(root, viewer);
      viewer.start().catch((error) => {
        if (living.get(root) === viewer) fail(root, error);
      });
    }
  }

  window.MstViewer = { geometry, eachPixel, toVoxel, toWorld, colorTable, enlarge, quantile, otsu };
  const begin = () => {
    scanDocument();
    new MutationObserver(scanDocument).observe(document.body, { childList: true, subtree: true });
  };
  if (document.body) begin();
  else document.addEventListener("DOMContentLoaded", begin);
})();
