// Animations: what is written is a GIF, of the colours that were given.
import assert from "node:assert/strict";
import { test } from "node:test";

import { Gif, match, palette } from "../../mst/viewer/gif.js";

const frame = (colors) => Uint8ClampedArray.from(colors.flatMap((color) => [...color, 255]));

test("a GIF begins and ends as the format says", async () => {
  const gif = new Gif(2, 2);
  gif.add(frame([[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 255]]), 12);
  const bytes = Buffer.from(await gif.blob().arrayBuffer());
  assert.equal(bytes.subarray(0, 6).toString("latin1"), "GIF89a");
  assert.deepEqual([bytes.readUInt16LE(6), bytes.readUInt16LE(8), bytes.at(-1)], [2, 2, 0x3b]);
});

test("few colours are kept as they are", () => {
  const data = frame([[10, 20, 200], [200, 30, 10], [90, 90, 90], [10, 20, 200]]);
  const colors = palette(data);
  assert.ok(colors.length <= 256);
  const found = Array.from(match(data, 2, colors), (at) => colors[at]);
  found.forEach((color, i) => color.forEach((value, c) => assert.ok(Math.abs(value - data[4 * i + c]) <= 6)));
});
