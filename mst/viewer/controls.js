// The viewer's controls: toolbar, menus, slider. Each shows what `viewer.view` says and changes it by `viewer.apply`.
import { COLORS, clamp } from "./slices.js";
import { element } from "./page.js";
import { saveAnimation, savePicture } from "./save.js";

export const PAPER_QUANTILES = [0.995, 0.999]; // of the colour scale in the paper's figures
/** @type {[string[], string][]} */
const KEYS = [
  [["←", "→", "wheel", "drag"], "one slice"], [["PgUp", "PgDn"], "five slices"], [["Home", "End"], "first, last"], [["Space"], "play"],
  [["A", "C", "S"], "axial, coronal, sagittal"], [["T"], "all three planes"], [["click"], "set the crosshair"],
  [["Shift ←", "↑", "→", "↓"], "move the crosshair"], [["X"], "crosshair on or off"],
  [["N", "Shift N"], "next hot spot of the MST, the ResNet"], [["O"], "lesion outline"], [["1", "…", "4"], "window"],
  [["right drag"], "level and width"], [["Ctrl wheel", "pinch", "+", "−"], "zoom"], [["Shift drag", "middle drag"], "move"],
  [["0"], "whole slice, or the region"], [["double click", "F"], "one large panel"], [["?"], "these keys"],
];
const EXPLAIN_KEY = /** @type {[string[], string]} */ ([["Enter"], "explain at the crosshair"]);

export class Controls {
  constructor(viewer) {
    this.viewer = viewer;
    this.stopper = new AbortController();
  }

  stop() {
    this.stopper.abort();
  }

  toolbar() {
    const { viewer } = this;
    viewer.tabs = ["2D", "3D", "MIP"].map((name, i) =>
      element("button", { type: "button", role: "tab", title: ["Slices", "Surfaces, with WebGL", "Maximum-intensity projection"][i], "aria-selected": String(i === 0), tabindex: i ? -1 : 0,
        onclick: () => viewer.setView(name), onkeydown: (event) => this.switchTab(event) }, name));
    const maps = viewer.layers.length > 0;
    return element("div", { class: "mstv-toolbar" },
      element("div", { class: "mstv-tabs", role: "tablist", "aria-label": "View" }, ...viewer.tabs),
      this.buildPlanes(), this.buildWindow(), element("div", { class: "mstv-menus" }, this.buildDisplay(), this.buildSave(), this.buildHelp()),
      viewer.available.length > 1 ? element("div", { class: "mstv-second" }, this.buildChips(),
        viewer.mask ? this.check("Outline", "outline", "Lesion outline") : null,
        maps ? element("div", { class: "mstv-sliders" }, this.buildOpacity(), this.buildThreshold()) : null) : null);
  }

  // Play, the slider, and each model's weights under it.
  steering() {
    const { viewer } = this;
    this.slider = element("input", {
      type: "range", min: 0, max: viewer.count - 1, step: 1, value: viewer.slice, class: "mstv-slider", "aria-label": "Slice",
      "data-control": "slice", oninput: () => viewer.show(this.slider.valueAsNumber),
    });
    this.playButton = element("button", {
      type: "button", class: "mstv-icon", "aria-label": "Play", onclick: () => viewer.play(!viewer.timer),
    }, "▶");
    return element("div", { class: "mstv-steer" }, this.playButton, element("div", { class: "mstv-track" }, this.slider, viewer.chart.node));
  }

  follow(slice, count) {
    this.slider.max = count - 1;
    this.slider.value = slice;
    this.slider.setAttribute("aria-valuetext", `slice ${this.viewer.numberIn(this.viewer.view.plane, slice)}`);
  }

  playing(on) {
    this.playButton.textContent = on ? "❚❚" : "▶";
    this.playButton.setAttribute("aria-label", on ? "Pause" : "Play");
  }

  // A group of buttons of which one is pressed.
  switches(label, choices, pressed, choose) {
    const buttons = choices.map(([value, name, title]) =>
      element("button", { type: "button", title, onclick: () => choose(value) }, name));
    this.viewer.syncs.push((view) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(choices[i][0] === pressed(view)))));
    return element("div", { class: "mstv-tabs mstv-only-2d", role: "group", "aria-label": label }, ...buttons);
  }

  // more: of the view that changes with the choice.
  select(label, key, choices, more = {}) {
    const input = element("select", { "aria-label": label, onchange: () => this.viewer.apply({ [key]: input.value, ...more[input.value] }) },
      ...choices.map(([value, name]) => element("option", { value }, name)));
    this.viewer.syncs.push((view) => { input.value = view[key]; });
    return element("label", { class: "mstv-row" }, element("span", {}, label), input);
  }

  check(label, key, full = label) {
    const input = element("input", { type: "checkbox", "aria-label": full, title: full, onchange: () => this.viewer.apply({ [key]: input.checked }) });
    this.viewer.syncs.push((view) => { input.checked = view[key]; });
    return element("label", { class: "mstv-check mstv-only-2d" }, input, label);
  }

  typed(label, get, set, step = "any") {
    const input = element("input", { type: "number", step, "aria-label": label, onchange: () => {
      if (Number.isFinite(input.valueAsNumber)) set(input.valueAsNumber);
      this.viewer.syncs.forEach((sync) => sync(this.viewer.view));
    } });
    this.viewer.syncs.push(() => { const value = get(); if (input.valueAsNumber !== value) input.value = value; });
    return element("label", { class: "mstv-row" }, element("span", {}, label), input);
  }

  buildPlanes() {
    return this.switches("Plane", [["axial", "Axial", "Axial slices (A)"], ["coronal", "Coronal", "Coronal slices (C)"],
      ["sagittal", "Sagittal", "Sagittal slices (S)"], ["three", "All", "All three planes (T)"]],
    (view) => (view.layout === "three" ? "three" : view.plane),
    (value) => (value === "three" ? this.viewer.apply({ layout: "three", cross: true }) : this.viewer.apply({ layout: "one", plane: value })));
  }

  buildWindow() {
    const input = element("select", { "aria-label": "Display window", onchange: () => this.viewer.apply({ window: this.viewer.windows[Number(input.value)].slice(1) }) },
      ...this.viewer.windows.map(([name], i) => element("option", { value: i }, name)), element("option", { value: -1, hidden: "" }, "Own"));
    this.viewer.syncs.push(({ window: [low, high] }) => {
      input.value = this.viewer.windows.findIndex(([, l, h]) => Math.abs(l - low) < 1e-6 && Math.abs(h - high) < 1e-6);
    });
    return element("label", { class: "mstv-select mstv-only-2d" }, element("span", {}, "Window"), input);
  }

  buildOpacity() {
    const out = element("output", {});
    const input = element("input", { type: "range", min: 0, max: 100, "aria-label": "Opacity", "data-control": "opacity",
      oninput: () => this.viewer.apply({ opacity: input.valueAsNumber / 100 }) });
    this.viewer.syncs.push(({ opacity }) => {
      input.value = Math.round(opacity * 100);
      out.textContent = `${input.value}%`;
      input.setAttribute("aria-valuetext", out.textContent);
    });
    return element("label", { class: "mstv-range mstv-only-2d" }, element("span", {}, "Opacity"), input, out);
  }

  // One slider, whatever the threshold goes by.
  buildThreshold() {
    const name = element("span", {}), out = element("output", {});
    const most = Math.max(...this.viewer.layers.map((layer) => layer.max), 1e-12);
    const scales = {
      threshold: ["Show top", 0.1, 100, 0.1, (v) => 100 * (1 - v), (s) => 1 - s / 100, (v) => `${Number((100 * (1 - v)).toPrecision(3))}%`],
      maximum: ["Above", 0, 100, 1, (v) => 100 * v, (s) => s / 100, (v) => `${Math.round(100 * v)}% of max.`],
      value: ["Above", 0, most, most / 500, (v) => v, (s) => s, (v) => v.toPrecision(2)],
    };
    const input = element("input", { type: "range", "data-control": "threshold", oninput: () => {
      const { by } = this.viewer.view;
      this.viewer.apply({ [by]: Number(scales[by][5](input.valueAsNumber).toPrecision(6)) });
    } });
    this.viewer.syncs.push((view) => {
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
      if (on) this.viewer.closeMenu?.();
      box.hidden = !on;
      button.setAttribute("aria-expanded", String(on));
      this.viewer.closeMenu = on ? () => open(false) : null;
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
    const level = () => (this.viewer.view.window[0] + this.viewer.view.window[1]) / 2, width = () => this.viewer.view.window[1] - this.viewer.view.window[0];
    const tidy = (v) => Number(v.toPrecision(6));
    const set = (l, w) => this.viewer.apply({ window: [l - Math.max(w, 1e-3) / 2, l + Math.max(w, 1e-3) / 2] });
    const unit = this.viewer.data.unit ? ` (${this.viewer.data.unit})` : "";
    const maps = this.viewer.layers.length ? [
      element("h3", {}, "Saliency"),
      this.select("Colours", "colors", Object.keys(COLORS).map((name) => [name, name])),
      this.select("Colour scale", "scale", [["own", "Each map's own"], ["shared", "One for both"], ["paper", "Paper: 0.995 to 0.999"]],
        // The paper's figures hide what lies below the scale's lower end.
        { paper: { by: "threshold", threshold: PAPER_QUANTILES[0] } }),
      this.select("Threshold by", "by", [["maximum", "Part of maximum"], ["threshold", "Quantile"], ["value", "Value"]]),
      this.typed("Threshold", () => tidy(this.viewer.view[this.viewer.view.by]), (v) =>
        this.viewer.apply({ [this.viewer.view.by]: this.viewer.view.by === "value" ? Math.max(v, 0) : clamp(v, 0, 1) })),
      this.viewer.layers.some((layer) => layer.patches)
        ? this.select("Map", "map", [["smooth", "Smooth"], ["patches", "Model's own patches"]]) : null,
      this.select("Drawn as", "style", [["filled", "Colours"], ["contours", "Contours"], ["both", "Colours and contours"]]),
    ] : [];
    const reset = element("button", { type: "button", onclick: () => { this.viewer.apply({ ...this.viewer.usual, plane: this.viewer.view.plane }); this.viewer.framed = true; this.viewer.home(); } }, "Reset the view");
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
    const animation = act("Animation (GIF)", (tell) => saveAnimation(this.viewer, tell));
    animation.classList.add("mstv-only-2d");
    return this.menu("Save ▾", "Save or share the view", [
      act("Picture (PNG)", () => savePicture(this.viewer)),
      animation, act("Copy link", () => this.copyLink()), said,
    ]);
  }

  async copyLink() {
    this.viewer.remember();
    const address = location.href.split("#")[0] + this.viewer.link();
    try {
      await navigator.clipboard.writeText(address);
      return "Link copied. It holds the view, not the scan.";
    } catch {
      return `Copy this link: ${address}`;
    }
  }

  buildHelp() {
    this.help = this.menu("?", "Keys", [element("table", { class: "mstv-keys" }, element("tbody", {}, ...[...(this.viewer.live ? [EXPLAIN_KEY] : []), ...KEYS].map(([keys, text]) =>
      element("tr", {}, element("td", {}, ...keys.map((key) => element("kbd", {}, key))), element("td", {}, text)))))], true);
    this.help.classList.add("mstv-help");
    return this.help;
  }

  buildChips() {
    const chips = this.viewer.available.map((kind) => {
      const chip = element("button", { type: "button", class: "mstv-key", style: `--key:${this.viewer.colorOf(kind)}`,
        onclick: () => this.viewer.togglePanel(kind) }, this.viewer.names[kind]);
      this.viewer.syncs.push(({ panels, solo }) => chip.setAttribute("aria-pressed", String(solo ? solo === kind : panels.includes(kind))));
      return chip;
    });
    return element("div", { class: "mstv-chips mstv-only-2d", role: "group", "aria-label": "Panels" }, ...chips);
  }

  hotSpots() {
    if (!this.viewer.layers.length) return null;
    this.spotSaid = element("span", { role: "status" });
    return element("div", { class: "mstv-spots", role: "group", "aria-label": "Next hot spot" }, this.spotSaid, element("span", {}, "Next hot spot"),
      ...this.viewer.layers.map((layer) => element("button", { type: "button", class: "mstv-key", style: `--key:${this.viewer.colorOf(layer.key)}`,
        "data-hot-spot": layer.key, onclick: () => this.viewer.nextSpot(layer) }, this.viewer.nameOf(layer))));
  }

  // Within the tabs, left and right change the tab and not the slice.
  switchTab(event) {
    if (!/^Arrow(Left|Right)$/.test(event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const { tabs } = this.viewer;
    const by = event.key === "ArrowRight" ? 1 : tabs.length - 1;
    const other = tabs[(tabs.indexOf(event.currentTarget) + by) % tabs.length];
    other.focus();
    this.viewer.setView(other.textContent);
  }
}
