import assert from "node:assert/strict";
import { beforeEach, test } from "node:test";

import { after, dispatch, FakeServer, freshBrowser, kept, question, settled } from "./fakes.js";
import { Annotator } from "../../src/rarebox/web/static/annotator.js";
import { Outbox } from "../../src/rarebox/web/static/outbox.js";
import { accept } from "../../src/rarebox/web/static/state.js";
import { answerTo } from "../../src/rarebox/web/static/steps.js";
import { makeTask } from "../../src/rarebox/web/static/task.js";

const BOX = [300, 300, 360, 360];

/** @type {FakeServer} */
let server;
/** @type {string[]} */
let notices;
/** @type {Annotator} */
let annotator;

/** A page whose pictures are always there. */
async function openPage() {
  notices = [];
  const view = {
    ...{ mode: "auto", fingerDraws: false, marks: [] },
    ...{ show() {}, focus() {}, reveal() {}, toggleFit() {} },
    render: (/** @type {any[]} */ marks) => (view.marks = marks),
  };
  const picture = { status: "ready", img: {}, ready: Promise.resolve(true) };
  const pictures = { load: () => picture, again: () => picture, keep() {} };
  const outbox = new Outbox("p", "tab", {
    state: accept,
    queries: (queries) => annotator.receive(queries),
    results: (pairs) => annotator.settle(pairs),
    status() {},
    problem() {},
  });
  annotator = new Annotator(outbox, view, pictures, {
    changed() {},
    notify: (sentence) => notices.push(sentence),
    findClass() {},
    left() {},
  });
  outbox.open();
  await settled();
}

const shown = () => annotator.task?.query.id;
const marks = (kind) => annotator.editor.marks().filter((mark) => mark.kind === kind);
const press = async (...keys) => {
  for (const key of keys) {
    annotator[key]();
    await settled();
  }
};

beforeEach(async () => {
  freshBrowser();
  server = new FakeServer(question(1), question(2), question(3), question(4));
  accept({ ...server.state, version: Date.now() });
  await openPage();
});

test("undo goes back over several answers, and redo gives them again", async () => {
  assert.equal(shown(), 1);
  await press("notAnObject", "yes", "cannotTell");
  assert.equal(shown(), 4);
  for (const query of [3, 2, 1]) {
    await press("undo");
    assert.equal(shown(), query);
  }
  assert.deepEqual(server.verdicts, ["not_an_object", "object", "cannot_tell", ...Array(3).fill("withdrawn")]);
  await press("redo", "redo");
  assert.equal(shown(), 3);
  assert.deepEqual(server.verdicts.slice(6), ["not_an_object", "object"]);
  assert.ok(annotator.canRedo);
  await press("undo", "undo", "redo", "redo", "redo");
  assert.equal(shown(), 4);
  assert.deepEqual(
    [1, 2, 3].map((id) => server.standing(id)?.verdict),
    ["not_an_object", "object", "cannot_tell"],
  );
});

test("undo and redo work on answers that are still unsent", async () => {
  server.up = false;
  await press("notAnObject", "yes", "undo", "redo", "undo", "undo");
  assert.equal(shown(), 1);
  assert.equal(kept(), 6);
  server.up = true;
  await after(20_000);
  assert.equal(kept(), 0);
  assert.equal(server.standing(1), null);
  assert.equal(server.standing(2), null);
  await press("redo", "redo");
  assert.equal(server.standing(1).verdict, "not_an_object");
  assert.equal(server.standing(2).verdict, "object");
  assert.deepEqual(notices, []);
});

test("an undone question comes back with the box as it was corrected", async () => {
  annotator.editor.nudge(10, 0);
  await press("yes");
  assert.deepEqual(server.standing(1).boxes, [[110, 100, 210, 200]]);
  await press("undo");
  assert.deepEqual(annotator.task?.sketch.box, [110, 100, 210, 200]);
  await openPage();
  assert.deepEqual(annotator.task?.sketch.box, [110, 100, 210, 200]);
});

test("undo takes back the later of a change and an action first", async () => {
  annotator.editor.nudge(10, 0);
  await after(10);
  annotator.editor.draw(BOX, false);
  await settled();
  await press("undo");
  assert.deepEqual(marks("label"), []);
  assert.deepEqual(annotator.task?.sketch.box, [110, 100, 210, 200]);
  await press("undo");
  assert.deepEqual(annotator.task?.sketch.box, [100, 100, 200, 200]);
});

test("another answer after undo clears what could be redone", async () => {
  await press("yes", "undo", "notAnObject");
  assert.ok(!annotator.canRedo);
  await press("redo");
  assert.equal(server.standing(1).verdict, "not_an_object");
});

test("boxes of a whole image are undone and redone one by one before it is answered", async () => {
  server.questions = [question(9, null)];
  await openPage();
  annotator.choose(1);
  annotator.editor.draw(BOX, false);
  annotator.editor.draw([10, 10, 50, 50], false);
  assert.equal(marks("draft").length, 2);
  await press("undo");
  assert.deepEqual(
    marks("draft").map((mark) => mark.box),
    [BOX],
  );
  await press("redo", "yes");
  assert.deepEqual(server.standing(9).labels, [1, 1]);
  await press("undo");
  assert.equal(shown(), 9);
  assert.equal(marks("draft").length, 2);
  assert.equal(server.standing(9), null);
});

const PROPOSED = [
  { box: BOX, label: 1, score: 0.9, likely: true },
  { box: [500, 20, 540, 60], label: 2, score: 0.8, likely: true },
  { box: [20, 400, 60, 440], label: 0, score: 0.7, likely: true },
  { box: [400, 400, 440, 440], label: 2, score: 0.4, likely: false },
];

test("a whole image shows likely detections as boxes to check, and Enter completes it", async () => {
  server.questions = [{ ...question(9, null), others: PROPOSED }, question(10)];
  await openPage();
  assert.deepEqual(
    marks("draft").map((mark) => [mark.box, mark.label]),
    PROPOSED.slice(0, 3).map((one) => [one.box, one.label]),
  );
  assert.deepEqual(
    marks("other").map((mark) => mark.id),
    ["o3"],
  );
  annotator.editor.cycle(1); // in reading order: the second detection
  await press("notAnObject");
  assert.equal(annotator.editor.active, null);
  annotator.editor.cycle(1);
  assert.deepEqual(annotator.editor.active?.box, BOX); // it goes on after the removed box
  annotator.choose(0);
  annotator.editor.draw([100, 10, 140, 50], false);
  await press("yes");
  assert.deepEqual(server.standing(9).boxes, [BOX, [20, 400, 60, 440], [100, 10, 140, 50]]);
  assert.deepEqual(server.standing(9).labels, [0, 0, 0]);
  await press("undo");
  assert.equal(marks("draft").length, 3); // as it was left, not as it was proposed
});

test("detections of a newer model are matched with a half-checked image by their boxes", async () => {
  server.questions = [{ ...question(9, null), others: PROPOSED }];
  await openPage();
  annotator.editor.select("o3");
  await press("notAnObject");
  const fresh = { box: [300, 300, 340, 340], label: 1, score: 0.9, likely: true };
  const moved = PROPOSED.map((one) => ({ ...one, box: one.box.map((side) => side + 1) }));
  annotator.receive([{ ...question(9, null), others: [moved[3], fresh, ...moved.slice(0, 3)] }]);
  assert.deepEqual(
    marks("other").map((mark) => mark.box),
    [fresh.box],
  );
  assert.equal(marks("draft").length, 3);
  annotator.editor.select("o1");
  annotator.receive([{ ...question(9, null), others: [fresh, ...moved] }]);
  assert.deepEqual(annotator.editor.active?.box, fresh.box);
  annotator.receive([{ ...question(9, null), others: [{ ...fresh, box: [1, 1, 9, 9] }] }]);
  assert.equal(annotator.editor.active, null); // Enter does not take another one
});

test("a second click accepts a dashed box of a whole image, or makes it dashed again", async () => {
  server.questions = [{ ...question(9, null), others: PROPOSED }];
  await openPage();
  const click = (at) =>
    annotator.editor.click(
      annotator.editor.marks().find((mark) => mark.box === at.box || mark.box.join() === at.box.join()).id,
    );
  click(PROPOSED[0]);
  assert.equal(marks("draft").length, 3);
  click(PROPOSED[0]);
  assert.equal(marks("draft").length, 2);
  assert.equal(annotator.editor.active, null); // so that Enter completes the image
  click(PROPOSED[3]);
  click(PROPOSED[3]);
  assert.equal(marks("draft").length, 3);
  annotator.editor.draw([100, 10, 140, 50], false);
  click({ box: [100, 10, 140, 50] });
  assert.equal(marks("draft").length, 4); // a box that the person drew stays
  await press("undo", "undo", "undo");
  assert.equal(marks("draft").length, 3);
});

test("a single box on a box question is not changed by clicks", async () => {
  server.questions = [{ ...question(9), others: PROPOSED }];
  await openPage();
  for (let i = 0; i < 2; i++) annotator.editor.click("o0");
  assert.equal(marks("label").length, 0);
  assert.equal(marks("draft").length, 0);
});

test("a whole image without a box needs a second press", async () => {
  server.questions = [question(9, null)];
  await openPage();
  await press("yes");
  assert.deepEqual(server.verdicts, []);
  await press("yes");
  assert.deepEqual(server.standing(9).boxes, []);
});

test("a drawn object is saved at once, taken back by undo and drawn again by redo", async () => {
  annotator.choose(1); // the guess of question 1 is corrected: question 2 comes
  annotator.editor.draw(BOX, false);
  await settled();
  assert.equal(server.verdicts.length, 2);
  const drawn = server.saved[1].query;
  assert.equal(annotator.editor.active?.id, `q${drawn}.0`); // still selected, to be given its class
  assert.ok(annotator.editor.justDrawn);
  assert.deepEqual(
    marks("label").map((mark) => [mark.box, mark.label]),
    [[BOX, annotator.editor.pen]],
  );
  await press("undo");
  assert.equal(server.standing(drawn), null);
  assert.deepEqual(marks("label"), []);
  await press("redo");
  const again = server.saved.at(-1).query;
  assert.notEqual(again, drawn); // to the server it is another box
  assert.equal(marks("label").length, 1);
  await press("undo");
  assert.equal(server.standing(again), null);
  assert.deepEqual(marks("label"), []);
});

test("the class of a drawn object is corrected, undone and redone, also offline", async () => {
  server.up = false;
  annotator.editor.draw(BOX, false);
  annotator.choose(2);
  assert.deepEqual(
    marks("label").map((mark) => mark.label),
    [2],
  );
  await press("undo");
  assert.deepEqual(
    marks("label").map((mark) => mark.label),
    [0],
  );
  await press("redo");
  server.up = true;
  await after(20_000);
  assert.deepEqual(
    marks("label").map((mark) => mark.label),
    [2],
  );
  assert.deepEqual(server.verdicts, Array(4).fill("object"));
  await press("undo", "undo");
  assert.deepEqual(marks("label"), []);
  server.up = false;
  await press("redo", "redo");
  assert.equal(marks("label").length, 1);
  server.up = true;
  await after(20_000);
  assert.deepEqual(
    marks("label").map((mark) => mark.label),
    [2],
  );
  assert.deepEqual(
    notices.filter((sentence) => sentence.startsWith("Not saved")),
    [],
  );
});

test("a removed box comes back by undo", async () => {
  annotator.editor.draw(BOX, false);
  await settled();
  const [mark] = marks("label");
  annotator.editor.select(mark.id);
  await press("remove");
  assert.deepEqual(marks("label"), []);
  await press("undo");
  assert.deepEqual(
    marks("label").map((one) => one.box),
    [BOX],
  );
  await press("redo");
  assert.deepEqual(marks("label"), []);
});

test("another person's box is rejected, not withdrawn, and comes back by undo", async () => {
  const label = { verdict: "object", query: 50, answer: 1, by: "ben", image: 1, boxes: [BOX], labels: [2] };
  server.saved.push(label);
  await openPage();
  annotator.editor.select("q50.0");
  await press("remove");
  assert.equal(server.standing(50).verdict, "not_an_object");
  await press("undo");
  assert.deepEqual(server.standing(50).boxes, [BOX]);
});

test("an image marked as complete is marked back by undo", async () => {
  await press("complete");
  assert.ok(annotator.editor.imageComplete);
  await press("undo");
  assert.ok(!annotator.editor.imageComplete);
  await press("redo");
  assert.ok(annotator.editor.imageComplete);
});

test("an answer that the server refused cannot be undone", async () => {
  server.up = false;
  await press("yes");
  const [record] = annotator.outbox.waiting;
  server.refused.add(record.item.key);
  server.up = true;
  await after(20_000);
  assert.ok(!annotator.canUndo);
  assert.match(notices.at(-1), /Not saved .*wrong box/);
});

test("a conflict reports the current answer", async () => {
  server.saved.push({ verdict: "cannot_tell", query: 1, answer: 1, by: "ben", image: 1, boxes: [], labels: [] });
  await press("yes");
  assert.match(notices.at(-1), /“can't tell”, by ben/);
  assert.ok(!annotator.canUndo);
});

/** Opens the page with a question about a whole image, and draws a box. @param {import("../../src/rarebox/web/static/types.js").Box} box */
async function drawOnWholeImage(box) {
  freshBrowser();
  server = new FakeServer(question(1, null), question(2));
  await openPage();
  annotator.editor.pen = 0;
  annotator.editor.draw(box, false);
}

test("boxes on a whole image that somebody else has answered are kept as a change of that answer", async () => {
  await drawOnWholeImage([10, 10, 60, 60]);
  annotator.editor.draw([300, 10, 350, 60], false);
  const image = question(1).image;
  const theirs = { query: 1, answer: 1, by: "ben", verdict: "object", boxes: [[11, 10, 60, 61]], labels: [0] };
  server.saved.push({ ...theirs, image: 1 });
  await press("yes");
  assert.match(notices.at(-1), /by ben.*only you drew \(1\), open that answer/);
  annotator.edit(
    { ...theirs, image, box: null, guess: null, cycle: 1, at: "" },
    { labels: [], others: [], complete: false },
  );
  assert.deepEqual(
    annotator.task?.sketch.drafts.map(({ box }) => box),
    [
      [11, 10, 60, 61],
      [300, 10, 350, 60],
    ],
  );
});

test("boxes on a whole image that was refused are there when the question returns", async () => {
  await drawOnWholeImage([10, 10, 60, 60]);
  server.up = false;
  await press("yes");
  server.refused.add(annotator.outbox.waiting[0].item.key);
  server.up = true;
  await after(20_000);
  assert.match(notices.at(-1), /Not saved.*Your boxes are kept/);
  await openPage();
  assert.equal(shown(), 1);
  assert.deepEqual(
    annotator.task?.sketch.drafts.map(({ box }) => box),
    [[10, 10, 60, 60]],
  );
});

test("answers can be undone after the page was loaded again", async () => {
  await press("notAnObject");
  await openPage();
  assert.equal(shown(), 2);
  await press("undo");
  assert.equal(shown(), 1);
  assert.equal(server.standing(1), null);
});

test("a changed box survives a reload of the page before it is answered", async () => {
  annotator.editor.nudge(10, 0);
  await openPage();
  assert.deepEqual(annotator.task?.sketch.box, [110, 100, 210, 200]);
});

test("an old answer is changed, and undo restores it", async () => {
  await press("yes");
  const old = { ...server.saved[0], image: question(1).image, box: question(1).box, guess: 0, cycle: 1, at: "" };
  annotator.edit(old, { labels: [], others: [], complete: false });
  assert.equal(annotator.task?.kind, "edit");
  annotator.choose(2);
  await settled();
  assert.deepEqual(server.standing(1).labels, [2]);
  assert.equal(server.standing(1).after, 1);
  assert.equal(shown(), 2);
  await press("undo");
  assert.deepEqual(server.standing(1).labels, [0]);
});

test("an unfinished change of an old answer is found again, until it is left", async () => {
  await press("yes");
  const old = { ...server.saved[0], image: question(1).image, box: question(1).box, guess: 0, cycle: 1, at: "" };
  annotator.edit(old, { labels: [], others: [], complete: false });
  annotator.editor.nudge(0, 10);
  await openPage();
  assert.deepEqual(
    annotator.drafts.unfinished().map((one) => [one.answer.query, one.client]),
    [[1, "tab"]],
  );
  annotator.edit(old, { labels: [], others: [], complete: false });
  assert.deepEqual(annotator.task?.sketch.box, [100, 110, 200, 210]);
  await press("escape");
  assert.deepEqual(annotator.drafts.unfinished(), []);
});

test("a dashed box becomes a label, and all of them do on a whole image", async () => {
  const others = [
    { box: BOX, label: 1, score: 0.9 },
    { box: [500, 400, 540, 440], label: 2, score: 0.8 },
    { box: [0, 0, 40, 40], label: 2, score: 0.1 },
  ];
  server.questions = [{ ...question(1), others }];
  await openPage();
  assert.equal(marks("other").length, 2); // the third is below the threshold
  annotator.editor.select("o0");
  await press("yes");
  assert.deepEqual(
    server.saved.map((one) => [one.boxes, one.labels]),
    [[[BOX], [1]]],
  );
  server.questions.push({ ...question(2, null), others });
  await press("yes", "yes"); // back to the question, then its answer
  annotator.editor.takeAll();
  assert.equal(marks("draft").length, 2);
  assert.equal(marks("other").length, 0);
  await press("undo");
  assert.equal(marks("other").length, 2);
});

test("a whole image that filled the time of a training gives way to newer questions once the person is idle", async () => {
  server.questions = [question(9, null)];
  await openPage();
  assert.equal(shown(), 9);
  server.questions = [{ ...question(10), cycle: 2 }, question(9, null)];
  await after(9_000);
  dispatch("pointermove", new PointerEvent(5, 7));
  annotator.outbox.ask();
  await after(9_000);
  assert.equal(shown(), 9); // the person may be about to press a key
  dispatch("pointermove", new PointerEvent(5, 7)); // the page moved, not the pointer
  await after(12_000); // without another message from the server
  assert.equal(shown(), 10);
  await press("yes");
  assert.equal(shown(), 9); // it comes back when nothing newer is left
});

test("a whole image with a box in progress stays, however long the person is idle", async () => {
  server.questions = [question(9, null)];
  await openPage();
  annotator.editor.draw([10, 10, 60, 60]);
  server.questions = [{ ...question(10), cycle: 2 }, question(9, null)];
  await after(60_000);
  annotator.outbox.ask();
  await settled();
  assert.equal(shown(), 9);
});

test("while boxes are checked at once no question is shown, and its changes are kept", async () => {
  annotator.editor.nudge(10, 0);
  annotator.pause();
  annotator.outbox.ask();
  await settled();
  assert.equal(annotator.task, null);
  annotator.resume();
  assert.equal(shown(), 1);
  assert.deepEqual(annotator.task?.sketch.box, [110, 100, 210, 200]);
});

test("answers of one screen carry their shares of its time, and each is undone by itself", async () => {
  annotator.pause();
  const entry = (id) => answerTo(makeTask(question(id)), { verdict: "not_an_object", boxes: [], labels: [] });
  annotator.history.add(entry(1), null, 500);
  annotator.history.add(entry(2), null, 501);
  await settled();
  assert.deepEqual(
    server.saved.map((one) => one.milliseconds),
    [500, 501],
  );
  annotator.resume();
  await press("undo");
  assert.equal(shown(), 2);
  assert.equal(server.standing(1).verdict, "not_an_object");
  await press("redo");
  assert.notEqual(server.saved.at(-1).milliseconds, 501); // the time is not counted twice
});

const sought = (id) => ({ ...question(id), similarity: 0.9 });
const looking = (search) => accept({ ...server.state, version: Date.now(), search });

test("the question shown waits behind those that a search puts first", async () => {
  looking({ label: 0, left: 1 });
  server.questions.unshift(sought(9));
  await after(0);
  assert.equal(shown(), 1); // a question is not replaced under the finger of a person who pressed nothing
  annotator.letWait();
  await settled();
  assert.equal(shown(), 9);
  looking(null);
  server.questions.push(server.questions.shift()); // stopped: its question keeps its turn, the last one
  annotator.letWait();
  await settled();
  assert.equal(shown(), 1);
});

test("a question that was begun stays, and so does the one shown when the questions come late", async () => {
  annotator.editor.nudge(10, 0);
  looking({ label: 0, left: 1 });
  server.questions.unshift(sought(9));
  annotator.letWait();
  await settled();
  assert.equal(shown(), 1);
  await press("yes");
  assert.equal(shown(), 9);
  server.questions.unshift(sought(10));
  annotator.outbox.ask();
  await settled();
  assert.equal(shown(), 9);
});
