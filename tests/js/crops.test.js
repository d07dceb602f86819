import assert from "node:assert/strict";
import { test } from "node:test";

import { question } from "./fakes.js";
import {
  answerText,
  columnsFor,
  contentOf,
  KEYS,
  neighbour,
  placeOf,
  shares,
  toggled,
} from "../../src/rarebox/web/static/crops.js";

test("twelve keys name twelve boxes, on other keyboards by their position", () => {
  assert.equal(new Set(KEYS).size, 12);
  assert.equal(placeOf({ key: "1", code: "Digit1" }), 0);
  assert.equal(placeOf({ key: "à", code: "Digit0" }), 9);
  assert.equal(placeOf({ key: "ß", code: "Minus" }), 10);
  assert.equal(placeOf({ key: "=", code: "Equal" }), 11);
  assert.equal(placeOf({ key: "5", code: "Numpad5" }), 4);
  assert.equal(placeOf({ key: "x", code: "KeyX" }), -1);
});

test("a second press takes a mark back, and another one replaces it", () => {
  assert.equal(toggled("right", "wrong"), "wrong");
  assert.equal(toggled("wrong", "wrong"), "right");
  assert.equal(toggled("wrong", "separate"), "separate");
  assert.equal(toggled("separate", "separate"), "right");
});

test("the frame decides the columns: three on a phone, more on a wide screen", () => {
  assert.equal(columnsFor(12, { width: 390, height: 560 }), 3);
  assert.equal(columnsFor(12, { width: 1050, height: 570 }), 4);
  assert.equal(columnsFor(12, { width: 1600, height: 400 }), 6);
  assert.equal(columnsFor(4, { width: 390, height: 560 }), 3);
});

test("arrows lead to the neighbours and stop at the edges", () => {
  const to = (place, arrow) => neighbour(place, arrow, 4, 10);
  assert.equal(to(0, "ArrowRight"), 1);
  assert.equal(to(0, "ArrowLeft"), 0);
  assert.equal(to(1, "ArrowDown"), 5);
  assert.equal(to(7, "ArrowDown"), 7); // the last row is short
  assert.equal(to(9, "ArrowRight"), 9);
  assert.equal(to(9, "ArrowUp"), 5);
});

test("the time of the screen is shared without loss", () => {
  assert.deepEqual(shares(1000, 3), [333, 333, 334]);
  assert.deepEqual(shares(5, 12).toSorted(), [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
  assert.deepEqual(shares(1000, 0), []);
});

test("an unmarked box is confirmed as it was shown, and a marked one is rejected", () => {
  const box = /** @type {import("../../src/rarebox/web/static/types.js").Box} */ ([1, 2, 30, 40]);
  assert.deepEqual(contentOf(box, "right", 2), { verdict: "object", boxes: [[1, 2, 30, 40]], labels: [2] });
  assert.deepEqual(contentOf(box, "wrong", 2), { verdict: "not_an_object", boxes: [], labels: [] });
});

test("the button says what it answers", () => {
  assert.equal(answerText(["right", "right"]), "Confirm 2");
  assert.equal(answerText(["wrong"]), "Reject 1");
  assert.equal(answerText(["right", "wrong", "separate", "wrong"]), "Confirm 1, reject 2, ask about 1");
  assert.equal(answerText([]), "");
});
