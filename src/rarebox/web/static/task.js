/** The question shown, and what a person changes on it before answering. */

/** @typedef {import("./types.js").Answer} Answer */
/** @typedef {import("./types.js").Box} Box */
/** @typedef {import("./types.js").Query} Query */

/** @typedef {{box: Box, label: number | null, from: Box | null}} Draft  a box that is not saved yet; from: the detection it copies */
/** @typedef {{box: Box | null, drafts: Draft[], dismissed: Box[]}} Sketch  what a person may change before answering; dismissed: detections */

/**
 * @typedef {object} Task
 * @property {"ask" | "edit"} kind      a question of the queue, or an old answer that is being changed
 * @property {Query} query
 * @property {number | null} after      the answer that an edit corrects
 * @property {Answer | null} answer
 * @property {Sketch} sketch
 * @property {{sketch: Sketch, at: number}[]} past
 * @property {{sketch: Sketch, at: number}[]} future
 * @property {boolean} armed            pressing again confirms that there is nothing to label
 */

/**
 * @param {Query} query
 * @param {{kind?: "ask" | "edit", after?: number | null, answer?: Answer | null, sketch?: Sketch | null}} [how]
 * @returns {Task}
 */
export function makeTask(query, { kind = "ask", after = null, answer = null, sketch = null } = {}) {
  const start = structuredClone(sketch ?? { box: query.box, drafts: proposals(query), dismissed: [] });
  return { kind, query, after, answer, armed: false, past: [], future: [], sketch: start };
}

/** The likely detections of a whole image, as boxes that a person only has to check. @param {Query} query @returns {Draft[]} */
export const proposals = ({ box, others }) =>
  box ? [] : others.flatMap((one) => (one.likely ? [{ box: one.box, label: one.label, from: one.box }] : []));

/** Changes the sketch, as one step of undo. @param {Task} task @param {(sketch: Sketch) => void} change */
export function alter(task, change) {
  task.past.push({ sketch: structuredClone(task.sketch), at: Date.now() });
  task.future = [];
  task.armed = false;
  change(task.sketch);
}

/**
 * Undoes the last change of the sketch, unless an answer was given after it.
 * @param {Task} task @param {number} answered when the last answer was given @returns {boolean} whether there was one
 */
export const undoChange = (task, answered) => step(task, task.past, task.future, answered);

/** Redoes the last undone change, unless an answer was undone after it. @param {Task} task @param {number} undone */
export const redoChange = (task, undone) => step(task, task.future, task.past, undone);

/** @param {Task} task @param {Task["past"]} from @param {Task["past"]} to @param {number} since */
function step(task, from, to, since) {
  const last = from.at(-1);
  if (!last || last.at < since) return false;
  from.pop();
  to.push({ sketch: task.sketch, at: Date.now() });
  task.sketch = last.sketch;
  return true;
}
