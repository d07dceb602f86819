/** The boxes on the picture: those from the server, replaced by unsent answers, and drafts. Pure functions. */

import { iou, same } from "./boxes.js";
import { classOf, state } from "./state.js";

/** @typedef {import("./types.js").Mark} Mark */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./task.js").Task} Task */
/** @typedef {Pick<import("./outbox.js").Outbox, "waiting" | "baseOf">} Waiting */

/** A detection with this IoU or more with the asked box is the asked box. */
const SAME_DETECTION = 0.8;

/** Detections of two models, or boxes of two people, with more than this IoU are taken for one object. */
export const SAME_OBJECT = 0.5;

/** The class of a label after merges. @param {number | null} label */
const current = (label) => classOf(label)?.label ?? label;

/** The class that Enter confirms. @param {Task | null} task */
export function guessOf(task) {
  const answer = task?.answer;
  if (answer) return current(answer.verdict === "object" ? (answer.labels[0] ?? null) : null);
  return current(task?.query.guess ?? null);
}

/** All boxes of the picture, bottom first. @param {Task} task @param {Mark[]} labels its answered boxes @param {number} threshold lowest score shown @returns {Mark[]} */
export function marksOf(task, labels, threshold) {
  const { query, sketch } = task;
  const drafts = sketch.drafts.map((draft, i) => mark("draft", `d${i}`, draft));
  const asked = sketch.box && {
    ...mark("asked", "asked", { box: sketch.box, label: guessOf(task) }),
    score: task.kind === "ask" ? query.score : null,
  };
  return [...detections(task, labels, threshold), ...labels, ...drafts, ...(asked ? [asked] : [])];
}

/** Detections that nobody has answered. @param {Task} task @param {Mark[]} labels @param {number} threshold @returns {Mark[]} */
function detections({ query, sketch }, labels, threshold) {
  const sources = [...sketch.dismissed, ...sketch.drafts.map((draft) => draft.from)];
  const settled = sources.flatMap((box) => (Array.isArray(box) ? [box] : [])); // earlier versions stored indices
  const gone = settled.filter((box) => !query.others.some((other) => same(other.box, box))); // of an earlier model
  return query.others.flatMap((other, i) => {
    const hidden =
      settled.some((box) => same(box, other.box)) ||
      gone.some((box) => iou(box, other.box) > SAME_OBJECT) ||
      (other.score ?? 1) < threshold ||
      labels.some((label) => same(label.box, other.box)) ||
      (query.box !== null && iou(query.box, other.box) > SAME_DETECTION);
    return hidden ? [] : [{ ...mark("other", `o${i}`, { ...other, label: current(other.label) }), score: other.score }];
  });
}

/** Answered boxes except the asked one. @param {Query} query @param {Waiting} outbox @returns {Mark[]} */
export function labelsOf(query, outbox) {
  /** @type {Map<string, Omit<Mark, "id" | "base" | "kind">[]>} */
  const groups = new Map();
  for (const label of query.labels) {
    const base = `q${label.query}`;
    groups.set(base, [...(groups.get(base) ?? []), label]);
  }
  for (const { image, item, base } of outbox.waiting) {
    if (image !== query.image.id || item.complete) continue;
    const about = { query: item.query ?? null, key: item.key, by: state()?.you ?? "you" };
    // Deleted first, so that changed boxes are drawn on top.
    groups.delete(outbox.baseOf(base));
    const boxes = item.boxes.map((box, i) => ({ ...about, box, label: item.labels[i] }));
    groups.set(outbox.baseOf(base), boxes);
  }
  groups.delete(`q${query.id}`);
  return [...groups].flatMap(([base, group]) =>
    group.map((one, i) => ({
      ...one,
      ...{ id: `${base}.${i}`, base, kind: /** @type {const} */ ("label"), label: current(one.label) },
    })),
  );
}

/** Is the image marked as complete? @param {Query} query @param {Waiting} outbox */
export function isComplete({ image, complete }, outbox) {
  const record = outbox.waiting.findLast((one) => one.image === image.id && one.base === `complete-${image.id}`);
  return record ? record.item.verdict !== "withdrawn" : complete;
}

/** The asked box first, then by rows. @param {Mark[]} marks @returns {Mark[]} */
export function inReadingOrder(marks) {
  const first = (/** @type {Mark} */ one) => (one.kind === "asked" ? 0 : 1);
  return marks.toSorted((a, b) => first(a) - first(b) || a.box[1] - b.box[1] || a.box[0] - b.box[0]);
}

/** @param {Mark["kind"]} kind @param {string} id @param {Pick<Mark, "box" | "label">} what @returns {Mark} */
const mark = (kind, id, { box, label }) => ({ id, base: id, kind, box, label });
