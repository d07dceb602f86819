/** What an action sends to the server, and what its undo sends: pure functions. */

import { tidy } from "./boxes.js";
import { className, inWords } from "./state.js";

/** @typedef {import("./types.js").Box} Box */
/** @typedef {import("./types.js").Image} Image */
/** @typedef {import("./types.js").Item} Item */
/** @typedef {import("./types.js").Mark} Mark */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./task.js").Sketch} Sketch */
/** @typedef {import("./task.js").Task} Task */

/**
 * One answer to send. `refer`: it corrects the latest answer of its entry; `fresh`: it answers the reopened question of that
 * answer.
 * @typedef {{item: Content, refer: boolean, fresh: boolean}} Step
 * @typedef {Partial<Item> & Pick<Item, "verdict" | "boxes" | "labels">} Content
 */

/**
 * An action that can be undone: `back` undoes it, `forth` redoes it. If it answers a `query`, undo shows that question again.
 * @typedef {{base: string, image: number, query: Query | null, sketch: Sketch | null, back: Step, forth: Step, what: string}} Entry
 */

/** @returns {Content} */
const withdrawn = () => ({ verdict: "withdrawn", boxes: [], labels: [] });
/** @param {Content} item @returns {Step} */
const first = (item) => ({ item, refer: false, fresh: false });
/** @param {Content} item @param {boolean} [fresh] @returns {Step} */
const later = (item, fresh = false) => ({ item, refer: true, fresh });

/** Does this step add a box to the image? @param {Step} step */
export const draws = (step) => !step.refer && step.item.image !== undefined && !step.item.complete;

/** The answer to the question shown, or the change of an old answer. @param {Task} task @param {Content} item @returns {Entry} */
export function answerTo({ kind, query, after, answer, sketch }, item) {
  const asked = kind === "ask";
  return {
    image: query.image.id,
    base: `q${query.id}`,
    what: inWords(item),
    forth: first({ ...item, query: query.id, after }),
    back: later(answer ? { verdict: answer.verdict, boxes: answer.boxes, labels: answer.labels } : withdrawn()),
    query: asked ? query : null,
    sketch: asked ? sketch : null,
  };
}

/** A box that the detector missed. @param {Image} image @param {Box} box @param {number} label @returns {Entry} */
export function newBox(image, box, label) {
  const item = {
    image: image.id,
    verdict: /** @type {const} */ ("object"),
    boxes: [tidy(box, image)],
    labels: [label],
  };
  const what = `a new box, ${className(label)}`;
  return { image: image.id, base: "", query: null, sketch: null, what, forth: first(item), back: later(withdrawn()) };
}

/** Marks the image as complete: every object has a box. @param {number} image @returns {Entry} */
export function completeImage(image) {
  return {
    ...{ image, base: `complete-${image}`, query: null, sketch: null, what: "image complete" },
    forth: first({ image, complete: true, verdict: "object", boxes: [], labels: [] }),
    back: later(withdrawn()),
  };
}

/**
 * A new box or class for an answered box, or its removal (to: null).
 * @param {number} image @param {Mark} mark @param {Mark[]} group all boxes of the same answer
 * @param {{box?: Box, label?: number} | null} to
 * @param {boolean} own the person's own answer is withdrawn; another person's is rejected
 * @param {boolean} drawn the box was drawn in this tab, so that undoing its removal draws it again
 * @returns {Entry}
 */
export function correction(image, mark, group, to, own, drawn) {
  const before = content(group);
  const after = content(group.flatMap((one) => (one.id !== mark.id ? [one] : to ? [{ ...one, ...to }] : [])));
  const gone = own ? withdrawn() : { ...withdrawn(), verdict: /** @type {const} */ ("not_an_object") };
  const item = after.boxes.length ? after : gone;
  const reopened = item.verdict === "withdrawn";
  const known = mark.key ? {} : { query: mark.query ?? undefined, after: mark.answer };
  return {
    ...{ image, base: mark.base, query: null, sketch: null, what: to ? "a changed box" : "a removed box" },
    forth: first({ ...item, ...known }),
    back: reopened && drawn ? first({ ...before, image }) : later(before, reopened),
  };
}

/** @param {Mark[]} marks @returns {Content} */
const content = (marks) => ({
  verdict: "object",
  boxes: marks.map((one) => one.box),
  labels: marks.map((one) => one.label ?? 0),
});
