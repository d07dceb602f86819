import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { FakeServer, freshBrowser, question } from "./fakes.js";
import { yesText } from "../../src/rarebox/web/static/buttons.js";
import { progressText, spentOnTheWay, toGo } from "../../src/rarebox/web/static/header.js";
import { inReadingOrder, isComplete, labelsOf, marksOf } from "../../src/rarebox/web/static/marks.js";
import { Queue } from "../../src/rarebox/web/static/queue.js";
import { factsOf, wordsOf } from "../../src/rarebox/web/static/question.js";
import { ended, inWords } from "../../src/rarebox/web/static/similar.js";
import { accept } from "../../src/rarebox/web/static/state.js";
import { alter, makeTask } from "../../src/rarebox/web/static/task.js";

const editor = (more = {}) => ({
  ...{ active: null, guess: 0, justDrawn: false, pen: null, whole: false, view: { mode: "auto" } },
  ...more,
});
const label = { kind: "label", label: 1 };
const outbox = (...waiting) => ({ waiting, baseOf: (base) => base });
const BOX = [300, 300, 360, 360];

beforeEach(() => {
  freshBrowser();
  accept({ ...new FakeServer().state, version: Date.now() });
});

test("the words above the picture follow the question", () => {
  const words = (query, more) => {
    const { before, label, after = "" } = wordsOf(makeTask(query), editor(more), false);
    return [before, label ?? null, after];
  };
  assert.deepEqual(words(question(1)), ["Is this ", 0, "?"]);
  assert.deepEqual(words(question(1), { guess: null }), ["What is in this box?", null, ""]);
  assert.deepEqual(words(question(1, null)), ["Box everything in this image", null, ""]);
  assert.equal(words(question(1), { active: label })[1], 1);
  assert.match(words(question(1), { active: label, justDrawn: true })[0], /New box/);
  assert.match(words(question(1), { active: label, view: { mode: "draw" } })[0], /Draw a box/);
});

test("on a touch screen, no keys are named", () => {
  const states = [{ view: { mode: "draw" } }, { active: label }, { active: { kind: "other", label: 1 } }, {}];
  for (const state of states) {
    const { reason } = wordsOf(makeTask(question(1)), editor(state), true);
    assert.doesNotMatch(reason, /Esc|digit|⏎|Del/);
  }
});

test("the pen is named on whole images only once it has a class", () => {
  const reason = (pen) => wordsOf(makeTask(question(1, null)), editor({ pen }), false).reason;
  assert.doesNotMatch(reason(null), /new boxes/);
  assert.match(reason(2), /“shark”/);
});

test("facts say how sure the detector is of a box, and in which cycle; of an old answer, the photo alone", () => {
  const names = (task, phase) => factsOf(task, phase).map(([name]) => name);
  assert.deepEqual(names(makeTask(question(1)), "asking"), ["sure", "cycle", "photo"]);
  assert.match(factsOf(makeTask(question(1)), "asking")[0][2], /score.* u\(b\): 0\.50/);
  assert.deepEqual(names(makeTask(question(1, null)), "first_images"), ["photo"]);
  assert.deepEqual(names(makeTask(question(1), { kind: "edit" }), "asking"), ["photo"]);
});

test("the first button says what it does", () => {
  const whole = makeTask(question(1, null));
  assert.equal(yesText(makeTask(question(1)), editor()), "Yes, fish");
  assert.equal(yesText(makeTask(question(1), { kind: "edit" }), editor()), "Save");
  assert.equal(yesText(makeTask(question(1)), editor({ guess: null })), "Choose a class");
  assert.equal(yesText(whole, editor({ whole: true })), "Nothing to label");
  alter(whole, ({ drafts }) => drafts.push({ box: BOX, label: 0, from: null }));
  assert.equal(yesText(whole, editor({ whole: true })), "Complete: 1 box");
});

test("unsent answers count for the budget as the server will count them", () => {
  const sent = (verdict, more = {}) => ({ base: "q1", parent: null, ...more, item: { verdict, after: null } });
  const waiting = [
    sent("object"),
    sent("not_an_object"),
    sent("withdrawn"),
    sent("object", { parent: "key" }),
    sent("object", { base: "k1" }),
  ];
  assert.equal(spentOnTheWay(waiting, "labels"), 1);
  assert.equal(spentOnTheWay(waiting, "looks"), 2);
  assert.equal(progressText({ budget: { spent: 9, of: 10, unit: "labels" }, phase: "asking" }, 5), "10 of 10 labels");
  const timed = [1500, 4500].map((milliseconds) => ({ base: "k1", item: { verdict: "withdrawn", milliseconds } }));
  assert.equal(spentOnTheWay(timed, "seconds"), 6);
  const minutes = { budget: { spent: 264, of: 600, unit: "seconds" }, phase: "asking" };
  assert.equal(progressText(minutes, 6), "4.5 of 10 minutes");
  assert.equal(progressText(minutes, 900), "10 of 10 minutes");
  assert.equal(progressText({ budget: { spent: 0, of: 5, unit: "images" }, phase: "first_images" }, 1), "image 2 of 5");
});

test("the page says how long the rest of the cycle takes", () => {
  assert.equal(toGo(null), "");
  assert.equal(toGo(0), "");
  assert.equal(toGo(0.1), "less than a minute to go");
  assert.equal(toGo(1.2), "about 1 minute to go");
  assert.equal(toGo(6.4), "about 6 minutes to go");
  assert.equal(toGo(95), "about 1.6 hours to go");
});

test("an unsent answer replaces the server's boxes of the same question", () => {
  const query = {
    ...question(1),
    labels: [
      { query: 7, answer: 1, by: "ben", box: BOX, label: 0 },
      { query: 8, answer: 2, by: "ben", box: BOX, label: 1 },
      { query: 1, answer: 3, by: "ben", box: BOX, label: 1 }, // the question shown: its box is the asked one
    ],
  };
  const change = { base: "q7", image: 1, item: { key: "x", boxes: [[0, 0, 9, 9]], labels: [2] } };
  const elsewhere = { base: "q9", image: 2, item: { key: "y", boxes: [BOX], labels: [2] } };
  const marks = labelsOf(query, outbox(change, elsewhere));
  assert.deepEqual(
    marks.map(({ id, box, label }) => [id, box, label]),
    [
      ["q8.0", BOX, 1],
      ["q7.0", [0, 0, 9, 9], 2],
    ],
  );
  assert.deepEqual(
    labelsOf(query, outbox({ ...change, item: { boxes: [], labels: [] } })).map((one) => one.id),
    ["q8.0"],
  );
});

test("detections on the asked box, on labels and below the threshold are not shown", () => {
  const others = [question(1).box, BOX, [0, 0, 9, 9], [20, 20, 40, 40]].map((box, i) => ({
    ...{ box, label: 0 },
    score: i === 3 ? 0.1 : 0.9,
  }));
  const query = { ...question(1), others, labels: [{ query: 7, answer: 1, by: "ben", box: BOX, label: 0 }] };
  const marks = marksOf(makeTask(query), labelsOf(query, outbox()), 0.25);
  assert.deepEqual(
    marks.map((mark) => mark.id),
    ["o2", "q7.0", "asked"],
  );
  assert.deepEqual(
    inReadingOrder(marks).map((mark) => mark.id),
    ["asked", "o2", "q7.0"],
  );
});

test("the last unsent mark decides whether an image is complete", () => {
  const sent = (verdict) => ({ image: 1, base: "complete-1", item: { verdict } });
  assert.ok(!isComplete(question(1), outbox()));
  assert.ok(isComplete(question(1), outbox(sent("object"))));
  assert.ok(!isComplete({ ...question(1), complete: true }, outbox(sent("object"), sent("withdrawn"))));
});

test("the queue skips questions with unsent answers and keeps those that undo reopened", () => {
  const verdicts = { 1: "object", 2: "withdrawn" };
  const queue = new Queue({ latest: (query) => verdicts[query] && { item: { verdict: verdicts[query] } }, ask() {} });
  queue.putFirst(question(2));
  queue.receive([question(1), question(3)]);
  assert.deepEqual(
    queue.held.map((one) => one.id),
    [2, 3],
  );
});

test("questions of a grid stay behind those that come next, and the spare ones are given back", () => {
  const queue = new Queue({ latest: () => null, ask() {} });
  queue.receive([question(1), question(2)]);
  const grid = [2, 3, 4, 5, 6].map((id) => question(id));
  queue.add(grid);
  const ids = () => queue.held.map((one) => one.id);
  assert.deepEqual(ids(), [1, 2, 3, 4, 5, 6]);
  assert.deepEqual(queue.spare(grid), [5, 6]);
  assert.deepEqual(ids(), [1, 2, 3, 4]);
  queue.pinned = [4];
  queue.receive([1, 2, 3, 4].map((id) => question(id)));
  assert.deepEqual(ids(), [4, 1, 2, 3]);
});

test("a search is named by its class, and its end is reported unless the person or the cycle ended it", () => {
  const fish = { label: 0, left: 3 };
  assert.equal(inWords(fish), "More like “fish”: 3 to go");
  assert.equal(inWords({ label: null, left: 1 }), "More like the chosen box: 1 to go");
  const was = { cycle: 2, server: "a", search: fish };
  const now = { ...was, search: null };
  assert.match(ended(now, was, false), /That was all like “fish”/);
  assert.match(ended({ ...now, server: "b" }, was, false), /restarted/);
  assert.equal(ended(now, was, true), "");
  assert.equal(ended({ ...now, cycle: 3 }, was, false), "");
  assert.equal(ended(was, was, false), "");
  assert.equal(ended(now, null, false), "");
});

test("the similarity to an example is among the facts", () => {
  const task = makeTask({ ...question(1), score: null, uncertainty: null, similarity: 0.87 });
  assert.deepEqual(factsOf(task, "asking")[0], ["similarity", "87%", "How much it looks like the example."]);
});
