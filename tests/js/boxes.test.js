import assert from "node:assert/strict";
import { test } from "node:test";

import {
  contains,
  handlePoint,
  HANDLES,
  iou,
  MIN_SIDE,
  moved,
  resized,
  same,
  tidy,
  withContext,
} from "../../src/rarebox/web/static/boxes.js";

const SIZE = { width: 100, height: 80 };

test("tidy orders the corners, clips to the image and rounds to hundredths", () => {
  assert.deepEqual(tidy([50, 60, 10.123456, 20], SIZE), [10.12, 20, 50, 60]);
  assert.deepEqual(tidy([-5, -5, 500, 500], SIZE), [0, 0, 100, 80]);
});

test("tidy gives every box the least side, also at the edges and outside the image", () => {
  for (const [x, y] of [
    [50, 40],
    [0, 0],
    [100, 80],
    [-30, 200],
  ]) {
    const [x1, y1, x2, y2] = tidy([x, y, x, y], SIZE);
    assert.equal(x2 - x1, MIN_SIDE);
    assert.equal(y2 - y1, MIN_SIDE);
    assert.ok(x1 >= 0 && y1 >= 0 && x2 <= SIZE.width && y2 <= SIZE.height);
  }
});

test("a moved box keeps its size and stops at the edge", () => {
  assert.deepEqual(moved([10, 10, 30, 20], 5, -3, SIZE), [15, 7, 35, 17]);
  assert.deepEqual(moved([10, 10, 30, 20], 1000, 1000, SIZE), [80, 70, 100, 80]);
  assert.deepEqual(moved([10, 10, 30, 20], -1000, -1000, SIZE), [0, 0, 20, 10]);
});

test("a dragged handle moves only its own sides", () => {
  const box = [20, 20, 60, 60];
  for (const handle of HANDLES) {
    const result = resized(box, handle, 40, 45, SIZE);
    const expected = [...box];
    if (handle.includes("w")) expected[0] = 40;
    if (handle.includes("n")) expected[1] = 45;
    if (handle.includes("e")) expected[2] = 40;
    if (handle.includes("s")) expected[3] = 45;
    assert.deepEqual(result, expected, handle);
  }
});

test("a handle dragged past the other side leaves the least side", () => {
  assert.deepEqual(resized([20, 20, 60, 60], "nw", 90, 75, SIZE), [58, 58, 60, 60]);
  assert.deepEqual(resized([20, 20, 60, 60], "se", -10, -10, SIZE), [20, 20, 22, 22]);
});

test("handles sit on corners and in the middle of sides", () => {
  assert.deepEqual(handlePoint([0, 0, 10, 20], "se"), [10, 20]);
  assert.deepEqual(handlePoint([0, 0, 10, 20], "n"), [5, 0]);
  assert.deepEqual(handlePoint([0, 0, 10, 20], "w"), [0, 10]);
});

test("intersection over union", () => {
  assert.equal(iou([0, 0, 10, 10], [0, 0, 10, 10]), 1);
  assert.equal(iou([0, 0, 10, 10], [5, 0, 15, 10]), 50 / 150);
  assert.equal(iou([0, 0, 10, 10], [10, 0, 20, 10]), 0);
});

test("a point counts as inside up to the given slack", () => {
  assert.ok(contains([0, 0, 10, 10], 10, 10));
  assert.ok(!contains([0, 0, 10, 10], 12, 5));
  assert.ok(contains([0, 0, 10, 10], 12, 5, 2));
});

test("boxes are the same up to rounding, and two missing boxes are", () => {
  assert.ok(same([0, 0, 1, 1], [0, 0, 1, 1.005]));
  assert.ok(!same([0, 0, 1, 1], [0, 0, 1, 1.02]));
  assert.ok(same(null, null));
  assert.ok(!same(null, [0, 0, 1, 1]));
});

test("the context of a box grows with it, and a speck stays visible", () => {
  const [x1, y1, x2, y2] = withContext([400, 300, 600, 400], { width: 1000, height: 800 });
  assert.deepEqual([x1, y1, x2, y2], [250, 150, 750, 550]);
  const [left, , right] = withContext([500, 400, 502, 402], { width: 1000, height: 800 });
  assert.equal(right - left, 26); // 2 pixels and 12 at each side
});
