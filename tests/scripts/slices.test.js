// What the viewers compute: planes, packing, thresholds, lines, hot spots, links.
import assert from "node:assert/strict";
import { test } from "node:test";
import { deflateSync } from "node:zlib";

import {
  AXES, COLORS, bestColumns, borders, boxed, colorTable, contour, cut, eachPixel, geometry, grayTable, hotSpots, largest, meet, onBox, otsu, placeIn, quantile, readLink, readVolume, spread, toVoxel, toWorld, writeLink,
} from "../../mst/viewer/slices.js";

const SHAPE = [2, 3, 4];
const CODES = Uint8Array.from({ length: 24 }, (_, at) => at);

const packed = (bytes, more) => ({ bits: 8, low: 0, high: 255, delta: false, data: deflateSync(bytes).toString("base64"), ...more });

test("a slice shows the same voxels however it is walked through", () => {
  for (const plane of Object.keys(AXES)) for (const neurological of [false, true]) {
    const space = geometry(plane, SHAPE, [1, 1, 1], neurological);
    const pixels = space.rows.count * space.columns.count;
    const seen = new Set();
    for (let slice = 0; slice < space.depth.count; slice++) {
      const out = cut(space, slice, CODES, new Uint8Array(pixels));
      eachPixel(space, slice, (index, pixel) => assert.equal(out[pixel], CODES[index]));
      out.forEach((code) => seen.add(code));
    }
    assert.equal(seen.size, 24);
  }
});

test("an axial slice has the patient's right on the left, and neurologically on the right", () => {
  const at = (neurological) => geometry("axial", SHAPE, [1, 1, 1], neurological).columns;
  assert.deepEqual([at(false).flip, at(false).ends], [true, ["R", "L"]]);
  assert.deepEqual([at(true).flip, at(true).ends], [false, ["L", "R"]]);
});

test("voxels and millimetres are each other's way back", () => {
  const affine = [[0.7, 0.1, 0, -30], [-0.1, 0.7, 0.05, 12], [0, 0.02, 2.5, 400], [0, 0, 0, 1]];
  const back = toVoxel(affine, toWorld(affine, [3, -2.5, 7]));
  [3, -2.5, 7].forEach((value, axis) => assert.ok(Math.abs(back[axis] - value) < 1e-9));
});

test("a volume is unpacked as it was packed", async () => {
  const plain = await readVolume(packed(CODES), SHAPE);
  assert.deepEqual([...plain.codes], [...CODES]);
  assert.equal(plain.value(plain.code(77)), 77);
  // Steps from row to row, the sign as the last bit.
  const steps = CODES.map((code, at) => ((code - (Math.floor(at / 4) % 3 ? CODES[at - 4] : 0)) << 1));
  assert.deepEqual([...(await readVolume(packed(steps, { delta: true }), SHAPE)).codes], [...CODES]);
  // All low bytes, then all high ones.
  const values = Array.from(CODES, (code) => 300 * code);
  const halves = Uint8Array.from([...values.map((v) => v & 255), ...values.map((v) => v >> 8)]);
  assert.deepEqual([...(await readVolume(packed(halves, { bits: 16 }), SHAPE)).codes], values);
  await assert.rejects(readVolume(packed(CODES.subarray(1)), SHAPE), /does not fit its shape/);
});

test("a coarse map is repeated on the scan's voxels, and lies where its patches do", async () => {
  const coarse = await readVolume(packed(Uint8Array.of(1, 2, 3, 4), { shape: [1, 2, 2], factors: [1, 2, 2] }), [1, 4, 4]);
  assert.deepEqual([...coarse.codes], [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4]);
  // What did not fill a block is part of the last one.
  const odd = await readVolume(packed(Uint8Array.of(1, 2, 3), { shape: [1, 1, 3], factors: [1, 1, 8] }), [1, 1, 31]);
  assert.deepEqual([odd.codes[7], odd.codes[8], odd.codes[15], odd.codes[16], odd.codes[30]], [1, 2, 2, 3, 3]);
  const grid = { shape: [1, 1, 2], start: [0, 0, 1], size: [1, 1, 1.5] };
  assert.deepEqual([...spread(Uint8Array.of(5, 6), grid, [1, 1, 6])], [0, 5, 6, 6, 0, 0]);
});

test("greys run from black to white over the window", () => {
  const table = grayTable({ top: 255, code: (value) => value }, [50, 150]);
  assert.deepEqual([table[0], table[50], table[100], table[150], table[255]], [0, 0, 127, 255, 255]);
});

test("colours begin and end with the map's own", () => {
  for (const stops of Object.values(COLORS)) {
    const table = colorTable(stops);
    const hex = (at) => "#" + [...table.subarray(3 * at, 3 * at + 3)].map((v) => v.toString(16).padStart(2, "0")).join("");
    assert.deepEqual([hex(0), hex(255)], [stops[0], stops.at(-1)]);
  }
});

test("a quantile is the code below which that share of the voxels lies", () => {
  const counts = new Float64Array(256);
  counts[0] = 90;
  counts[10] = 9;
  counts[255] = 1;
  assert.deepEqual([0.5, 0.95, 0.999].map((share) => quantile(counts, share)), [0, 10, 255]);
});

test("Otsu's level parts dark from bright", () => {
  const level = otsu([-850, -840, -860, -845, 20, 40, 30]);
  assert.ok(level > -840 && level <= 20);
});

test("the largest code of none is zero", () => {
  assert.equal(largest(Uint8Array.of(3, 9, 4)), 9);
  assert.equal(largest([]), 0);
});

test("a wide room has its panels beside each other, a tall one above", () => {
  assert.deepEqual([bestColumns(4, 1600, 400, 1), bestColumns(4, 400, 1600, 1), bestColumns(4, 800, 800, 1)], [4, 1, 2]);
});

test("contours run where the value is crossed", () => {
  const lines = contour([0, 0, 0, 0, 10, 0, 0, 0, 0], 3, 3, 5);
  for (let i = 0; i < lines.length; i += 2) {
    assert.ok(Math.abs(Math.abs(lines[i] - 1.5) + Math.abs(lines[i + 1] - 1.5) - 0.5) < 1e-9);
  }
  assert.equal(borders((i) => i === 4, 3, 3).length, 16);
});

test("a plateau is one hot spot, at its middle", () => {
  const codes = new Uint8Array(7 * 7 * 7);
  for (let k = 1; k < 6; k++) codes[3 * 49 + 3 * 7 + k] = 200;
  codes[0] = 90;
  const spots = hotSpots(codes, [7, 7, 7], [1, 1, 1], { apart: 3 });
  assert.deepEqual(spots, [{ index: [3, 3, 3], code: 200 }, { index: [0, 0, 0], code: 90 }]);
});

test("links are read and written without nonsense", () => {
  assert.deepEqual(readLink("#slice=3&opacity=7&plane=oblique&at=1,2,3&__proto__=x"), { slice: 3, at: [1, 2, 3] });
  assert.deepEqual(readLink("#camera=1,2,3,0,0,0").camera, [1, 2, 3, 0, 0, 0]);
  for (const camera of ["1,2,3,1,2,3", "1,2,,0,0,0"]) assert.equal(readLink(`#camera=${camera}`).camera, undefined);
  const state = { plane: "axial", slice: 4, threshold: 0.995, what: 1 };
  assert.equal(writeLink(state), "#plane=axial&slice=4&threshold=0.995");
  assert.deepEqual(readLink(writeLink(state)), { plane: "axial", slice: 4, threshold: 0.995 });
});

test("a box lies on the grid where it is, whichever way a plane runs", () => {
  const shape = [5, 4, 3], spacing = [1, 1, 2];
  const part = { start: [1, 2, 1], shape: [3, 2, 2] };
  const whole = { start: [0, 0, 0], shape };
  const codes = Uint8Array.from({ length: 12 }, (_, i) => i + 1);
  const placed = onBox(codes, part, whole);
  assert.equal(placeIn(part, [0, 2, 1]), -1);
  assert.equal(codes[placeIn(part, [3, 3, 2])], 12);
  assert.equal(placed[placeIn(whole, [3, 3, 2])], 12);
  assert.deepEqual([...onBox(placed, whole, part)], [...codes]);
  for (const neurological of [false, true]) for (const plane of ["axial", "coronal", "sagittal"]) {
    const space = geometry(plane, shape, spacing, neurological), box = boxed(part, spacing, neurological);
    const { rows, columns, depth } = space;
    for (let slice = 0; slice < depth.count; slice++) {
      const expected = cut(space, slice, placed, new Uint8Array(rows.count * columns.count));
      const found = new Uint8Array(rows.count * columns.count), met = meet(space, box, slice);
      if (met) {
        const own = cut(met.own, met.slice, codes, new Uint8Array(met.own.rows.count * met.own.columns.count));
        own.forEach((code, i) => {
          const r = Math.floor(i / met.own.columns.count), c = i % met.own.columns.count;
          found[(met.row + r) * columns.count + met.column + c] = code;
        });
      }
      assert.deepEqual([...found], [...expected], `${plane} ${slice} ${neurological}`);
    }
  }
});
