// Takes the view along: a picture (PNG) and an animation through the slices (GIF), made in the browser.
import { element, theme } from "./page.js";
import { Gif } from "./gif.js";

const GAP = 12, CAPTION = 26, SCALE = 24, FOOT = 44;
const GIF_WIDTH = 760, GIF_DELAY = 12; // hundredths of a second a frame
const FONT = "400 13px system-ui, sans-serif";
const INK = "#12161d", PAPER = "#eceef2", SOFT = "#b4bcc9";

/** @typedef {{ color?: string, weight?: number, align?: CanvasTextAlign, size?: number, width?: number }} Style */

// Writes on a canvas, and tells how wide the text has become.
const writer = (context, ink) => (text, x, y, /** @type {Style} */ { color = ink, weight = 400, align = "left", size = 13, width } = {}) => {
  context.font = `${weight} ${size}px system-ui, sans-serif`;
  context.fillStyle = color;
  context.textAlign = align;
  context.fillText(text, x, y, width);
  return context.measureText(text).width;
};

// The scan's name, as much of it as there is room for, and the place.
function caption(viewer, context, width) {
  const { title } = viewer.data, place = viewer.readout.textContent;
  context.font = FONT;
  for (let letters = title.length; letters > 0; letters--) {
    const text = `${title.slice(0, letters)}${letters < title.length ? "…" : ""}  ·  ${place}`;
    if (context.measureText(text).width <= width) return text;
  }
  return place;
}

// The panels as shown, with titles, colour scales, place and disclaimer. `unit`: pixels for a pixel on the page.
export function compose(viewer, unit) {
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
  const write = writer(context, PAPER);
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
      for (const [color, text] of [...viewer.pair.map((layer) => [viewer.colorOf(layer.key), panel.onlyOf(layer)]),
        [viewer.colorOf("both"), "both"], ["", panel.overlap.textContent]]) {
        if (color) write("●", at, y + height + 16, { color, size: 12 });
        write(text, at + (color ? 14 : 0), y + height + 16, { size: 12, color: SOFT });
        at += context.measureText(text).width + 26;
      }
    }
  }
  const width = row.width;
  write(caption(viewer, context, width), GAP, top + 8, { width });
  write(viewer.data.disclaimer, GAP, top + 28, { color: SOFT, size: 12, width });
  return canvas;
}

// The 3D view or the projection as shown, with its keys, place and disclaimer.
async function composeBody(viewer, unit) {
  const { solid, projection } = viewer;
  const flat = !projection.node.hidden;
  const node = flat ? projection.frame : solid.plot;
  const { width, height } = node.getBoundingClientRect();
  const { text, muted, card } = theme(viewer.root); // as the axes of the 3D view have them
  const canvas = document.createElement("canvas");
  canvas.width = Math.round((width + 2 * GAP) * unit);
  canvas.height = Math.round((height + GAP + CAPTION + FOOT) * unit);
  const context = canvas.getContext("2d");
  context.fillStyle = card;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.scale(unit, unit);
  const write = writer(context, text);
  let at = GAP;
  for (const key of (flat ? projection : solid).node.querySelectorAll(".mstv-key:not([aria-pressed=false])")) {
    write("●", at, CAPTION - 4, { color: getComputedStyle(key).getPropertyValue("--key").trim() || "#6ea4ff", size: 12 });
    at += 14;
    at += write(key.textContent, at, CAPTION - 4, { color: muted, size: 12 }) + 14;
  }
  if (flat) {
    context.drawImage(projection.canvas, GAP, CAPTION + 4, width, height);
    const middle = [GAP + width / 2, CAPTION + 4 + height / 2];
    const places = [[middle[0], CAPTION + 20], [middle[0], CAPTION + height - 4], [GAP + 14, middle[1]], [GAP + width - 14, middle[1]]];
    projection.letters.forEach((letter, i) => write(letter.textContent, places[i][0], places[i][1], { color: PAPER, weight: 600, align: "center", size: 12 }));
  } else {
    const image = new Image();
    image.src = await viewer.Plotly.toImage(solid.plot, { format: "png", width, height, scale: unit });
    await image.decode();
    context.drawImage(image, GAP, CAPTION + 4, width, height);
  }
  const top = CAPTION + height + GAP;
  write(caption(viewer, context, width), GAP, top + 12, { width });
  write(viewer.data.disclaimer, GAP, top + 32, { color: muted, size: 12 });
  return canvas;
}

function download(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// A name that every file system takes.
const fileName = (viewer, ending) => {
  const title = viewer.data.title.replace(/[^\w.-]+/g, "-").slice(0, 80).replace(/^[.-]+|[.-]+$/g, "");
  return `${title || "scan"}-${viewer.view.plane}-${ending}`;
};

export async function savePicture(viewer) {
  viewer.draw();
  const unit = Math.max(2, window.devicePixelRatio || 1);
  const flat = viewer.shown === "2d";
  const canvas = flat ? compose(viewer, unit) : await composeBody(viewer, unit);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new Error("the browser could not make the picture");
  const what = flat ? `slice-${viewer.numberIn(viewer.view.plane, viewer.slice)}` : viewer.projection.node.hidden ? "3d" : "mip";
  download(blob, fileName(viewer, `${what}.png`));
  return "Picture saved.";
}

// Every slice of the plane once; of more than 120, only as many, evenly spaced.
export async function saveAnimation(viewer, tell) {
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
    let gif = null;
    for (const [i, slice] of slices.entries()) {
      const { width, height, data } = frame(slice);
      gif ??= new Gif(width, height);
      gif.add(data, GIF_DELAY);
      tell(`Frame ${i + 1} of ${slices.length} …`);
      await new Promise((resolve) => setTimeout(resolve));
    }
    download(gif.blob(), fileName(viewer, "slices.gif"));
  } finally {
    viewer.show(back);
  }
  return "Animation saved.";
}
