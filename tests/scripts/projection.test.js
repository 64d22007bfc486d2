// The maximum-intensity projection's numbers.
import assert from "node:assert/strict";
import { test } from "node:test";

import { project, resampleAxis } from "../../mst/viewer/projection.js";

test("resampling averages and interpolates", () => {
  const resampled = (count) => Array.from(resampleAxis([0, 4, 8, 4], [1, 4, 1], 1, count));
  assert.deepEqual(resampled(2), [2, 6]);
  resampled(3).forEach((value, i) => assert.ok(Math.abs(value - [1, 6, 5][i]) < 1e-5));
  assert.deepEqual(resampled(8), [0, 1, 3, 5, 7, 7, 5, 4]);
});

test("a projection holds the largest value along each line, from every side", () => {
  const shape = [9, 9, 5], codes = new Uint16Array(9 * 9 * 5).fill(3);
  codes[(4 * 9 + 4) * 5 + 2] = 77; // in the middle: seen from all sides
  for (const angle of [0, 45, 90, 200]) {
    const image = Array.from(project({ codes, shape }, angle));
    assert.equal(Math.max(...image), 77);
    assert.ok(image.includes(3));
  }
});
