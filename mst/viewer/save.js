// Takes the view along: a picture (PNG) and an animation through the slices (GIF), made in the browser.
(() => {
  "use strict";
  const MST = window.MstViewer;
  if (MST.savePicture) return;

  const GAP = 12, CAPTION = 26, SCALE = 24, FOOT = 44;
  const GIF_WIDTH = 760, GIF_DELAY = 12; // hundredths of a second a frame
  const INK = "#12161d", PAPER = "#eceef2", SOFT = "#b4bcc9";

  // The panels as shown, with titles, colour scales, place and disclaimer. `unit`: pixels for a pixel on the page.
  function compose(viewer, unit) {
    const shown = viewer.panels.filter((panel) => !panel.node.hidden && panel.at);
    const row = viewer.panelRow.getBoundingClientRect();
    const boxes = shown.map((panel) => {
      const box = panel.frame.getBoundingClientRect();
      return { panel, x: box.left - row.left, y: box.top - row.top, width: box.width, height: box.height };
    });
    const lines = [...new Set(boxes.map((box) => Math.round(box.y)))].sort((a, b) => a - b);
    let top = GAP;
    for (const line of lines) {
      const members = boxes.filter((box) => Math.round(box.y) === line);
      for (const box of members) box.y = top + CAPTION;
      top += CAPTION + Math.max(...members.map((box) => box.height)) + SCALE + GAP;
    }
    const canvas = document.createElement("canvas");
    canvas.width = Math.round((row.width + 2 * GAP) * unit);
    canvas.height = Math.round((top + FOOT) * unit);
    const context = canvas.getContext("2d");
    context.fillStyle = INK;
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.scale(unit, unit);
    const write = (text, x, y, { color = PAPER, weight = 400, align = "left", size = 13, width } = {}) => {
      context.font = `${weight} ${size}px system-ui, sans-serif`;
      context.fillStyle = color;
      context.textAlign = align;
      context.fillText(text, x, y, width);
    };
    for (const { panel, x, y, width, height } of boxes) {
      const left = x + GAP;
      write(panel.name.textContent, left, y - 9, { weight: 600, width });
      context.drawImage(panel.canvas, left, y, width, height);
      const [up, down, west, east] = panel.letters.map((letter) => letter.textContent);
      for (const [text, lx, ly] of [[up, left + width / 2, y + 15], [down, left + width / 2, y + height - 7],
        [west, left + 11, y + height / 2 + 4], [east, left + width - 11, y + height / 2 + 4]]) {
        write(text, lx, ly, { weight: 600, align: "center", size: 12 });
      }
      if (panel.bar) {
        write(panel.low.textContent, left, y + height + 16, { size: 12, color: SOFT });
        const from = context.measureText(panel.low.textContent).width + 8;
        const to = context.measureText(panel.high.textContent).width + 8;
        context.drawImage(panel.bar, left + from, y + height + 7, Math.max(width - from - to, 1), 9);
        write(panel.high.textContent, left + width, y + height + 16, { size: 12, color: SOFT, align: "right" });
      } else if (panel.overlap) {
        let at = left;
        for (const [color, text] of [[MST.MODEL_COLORS.mst, "MST only"], [MST.MODEL_COLORS.resnet, "ResNet only"], [MST.MODEL_COLORS.both, "both"],
          ["", panel.overlap.textContent]]) {
          if (color) write("●", at, y + height + 16, { color, size: 12 });
          write(text, at + (color ? 14 : 0), y + height + 16, { size: 12, color: SOFT });
          at += context.measureText(text).width + 26;
        }
      }
    }
    const width = row.width;
    write(`${viewer.data.title}${viewer.data.title ? "  ·  " : ""}${viewer.readout.textContent}`, GAP, top + 8, { width });
    write(viewer.data.disclaimer, GAP, top + 28, { color: SOFT, size: 12, width });
    return canvas;
  }

  function download(blob, name) {
    const link = MST.element("a", { href: URL.createObjectURL(blob), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  const fileName = (viewer, ending) => `${(viewer.data.title || "scan").replace(/[^\w.-]+/g, "-")}-${viewer.view.plane}-${ending}`;

  async function savePicture(viewer) {
    viewer.draw();
    const canvas = compose(viewer, Math.max(2, window.devicePixelRatio || 1));
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    if (!blob) throw new Error("the browser could not make the picture");
    download(blob, fileName(viewer, `slice-${viewer.numberIn(viewer.view.plane, viewer.slice)}.png`));
    return "Picture saved.";
  }

  // Every slice of the plane once; of more than 120, only as many, evenly spaced.
  async function saveAnimation(viewer, tell) {
    viewer.play(false);
    const { slice: back, count } = viewer;
    const step = Math.max(1, Math.ceil(count / 120));
    const slices = Array.from({ length: Math.ceil(count / step) }, (_, i) => i * step);
    const unit = Math.min(1, GIF_WIDTH / viewer.panelRow.clientWidth);
    const frame = (slice) => {
      viewer.show(slice);
      viewer.draw();
      const canvas = compose(viewer, unit);
      return canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    };
    try {
      const sample = slices.filter((_, i) => i % Math.ceil(slices.length / 8) === 0).map((slice) => frame(slice));
      const { width, height } = sample[0];
      const gif = new Gif(width, height, palette(sample.map(({ data }) => data)));
      for (const [i, slice] of slices.entries()) {
        gif.add(frame(slice).data, GIF_DELAY);
        tell(`Frame ${i + 1} of ${slices.length} …`);
        await new Promise((resolve) => setTimeout(resolve));
      }
      download(new Blob([gif.bytes()], { type: "image/gif" }), fileName(viewer, "slices.gif"));
    } finally {
      viewer.show(back);
    }
    return "Animation saved.";
  }

  // ---- GIF

  const coarse = (r, g, b) => ((r >> 3) << 10) | ((g >> 3) << 5) | (b >> 3);
  const isGray = (r, g, b) => Math.max(r, g, b) - Math.min(r, g, b) < 8;

  // 128 greys, for the scan, and the 128 colours that part the frames' other pixels best (median cut).
  function palette(frames) {
    const counts = new Uint32Array(32768);
    for (const data of frames) {
      for (let i = 0; i < data.length; i += 4) {
        if (!isGray(data[i], data[i + 1], data[i + 2])) counts[coarse(data[i], data[i + 1], data[i + 2])]++;
      }
    }
    const part = (code, channel) => (code >> (10 - 5 * channel)) & 31;
    const used = [];
    counts.forEach((n, code) => { if (n) used.push(code); });
    let boxes = used.length ? [used] : [];
    while (boxes.length && boxes.length < 128) {
      let widest = null, span = 0, along = 0;
      for (const box of boxes) for (const channel of [0, 1, 2]) {
        let low = 31, high = 0;
        for (const code of box) { low = Math.min(low, part(code, channel)); high = Math.max(high, part(code, channel)); }
        if (high - low > span) { span = high - low; widest = box; along = channel; }
      }
      if (!widest) break;
      widest.sort((a, b) => part(a, along) - part(b, along));
      const half = widest.length >> 1;
      boxes = boxes.filter((box) => box !== widest).concat([widest.slice(0, half), widest.slice(half)]);
    }
    const colors = Array.from({ length: 128 }, (_, i) => Array(3).fill(2 * i + (i > 63 ? 1 : 0)));
    for (const box of boxes) {
      const total = box.reduce((sum, code) => sum + counts[code], 0);
      colors.push([0, 1, 2].map((c) => Math.round(box.reduce((sum, code) => sum + counts[code] * (8 * part(code, c) + 4), 0) / total)));
    }
    while (colors.length < 256) colors.push([0, 0, 0]);
    return colors;
  }

  class Gif {
    constructor(width, height, colors) {
      this.width = width;
      this.height = height;
      this.colors = colors;
      this.nearest = new Int16Array(32768).fill(-1);
      this.out = [];
      this.text("GIF89a");
      this.short(width);
      this.short(height);
      this.out.push(0xf7, 0, 0, ...colors.flat());
      this.out.push(0x21, 0xff, 11);
      this.text("NETSCAPE2.0");
      this.out.push(3, 1, 0, 0, 0); // for ever
    }

    text(text) { for (const c of text) this.out.push(c.charCodeAt(0)); }
    short(value) { this.out.push(value & 255, value >> 8); }

    index(r, g, b) {
      if (isGray(r, g, b)) return (r + g + b) / 6 | 0;
      const code = coarse(r, g, b);
      if (this.nearest[code] < 0) {
        let best = 0, least = Infinity;
        this.colors.forEach(([cr, cg, cb], i) => {
          const far = (cr - r) ** 2 + (cg - g) ** 2 + (cb - b) ** 2;
          if (far < least) { least = far; best = i; }
        });
        this.nearest[code] = best;
      }
      return this.nearest[code];
    }

    add(data, delay) {
      const indices = new Uint8Array(this.width * this.height);
      for (let i = 0; i < indices.length; i++) indices[i] = this.index(data[4 * i], data[4 * i + 1], data[4 * i + 2]);
      this.out.push(0x21, 0xf9, 4, 4);
      this.short(delay);
      this.out.push(0, 0, 0x2c, 0, 0, 0, 0);
      this.short(this.width);
      this.short(this.height);
      this.out.push(0, 8);
      const packed = lzw(indices);
      for (let at = 0; at < packed.length; at += 255) {
        const block = packed.subarray(at, at + 255);
        this.out.push(block.length);
        for (const byte of block) this.out.push(byte);
      }
      this.out.push(0);
    }

    bytes() { return Uint8Array.from([...this.out, 0x3b]); }
  }

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

  Object.assign(MST, { savePicture, saveAnimation, compose, palette, Gif });
})();
