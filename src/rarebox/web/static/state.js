/** The latest State from the server and the listeners to its changes. */

import { duration } from "./dom.js";

/** @typedef {import("./types.js").State} State */

/** @type {State | null} */
let newest = null;
/** @type {Set<(state: State, before: State | null) => void>} */
const listeners = new Set();

export const state = () => newest;

/** Is this a name of the visitor? @param {string | undefined} name */
export const isOwn = (name) => name !== undefined && Boolean(newest?.names.includes(name));

/** @param {(state: State, before: State | null) => void} listener */
export const onState = (listener) => void listeners.add(listener);

/** Takes a new state. Ignores older ones, which can arrive late, and those of another project. @param {State} next */
export function accept(next) {
  if (newest && (next.id !== newest.id || next.version < newest.version)) return;
  const before = newest;
  newest = next;
  for (const listener of listeners) listener(next, before);
}

/** Accepts any version next: a restarted server may count from zero. */
export function acceptAnyVersion() {
  if (newest) newest = { ...newest, version: -1 };
}

/** The classes that can be chosen. */
export const offered = () => (newest?.classes ?? []).filter((one) => one.merged_into === null);

/** The class of a label, after merges. @param {number | null} label */
export function classOf(label) {
  let found = newest?.classes.find((one) => one.label === label) ?? null;
  for (let hops = 0; found && found.merged_into !== null && hops < 100; hops++) {
    const into = found.merged_into;
    found = newest?.classes.find((one) => one.label === into) ?? null;
  }
  return found;
}

/** @param {number | null} label */
export const className = (label) => classOf(label)?.name ?? (label === null ? "no guess" : `class ${label}`);

const STAGES = {
  starting: "loading the training process",
  features: "comparing labelled boxes",
  fit: "training the detector (1 of 3)",
  evaluate: "measuring its accuracy (2 of 3)",
  score: "scoring all photos (3 of 3)",
};

/** What the trainer is doing, in words. @param {string | null} stage such as "cycle 2: fit" */
export const stageInWords = (stage) =>
  STAGES[/** @type {keyof typeof STAGES} */ (stage?.split(": ").at(-1) ?? "")] ?? stage ?? "";

/** The remaining or the last training time, in words, or "". @param {State} now */
export function timeInWords(now) {
  const { state: doing, seconds_left } = now.trainer;
  if (doing === "working" && seconds_left !== null) return `about ${duration(seconds_left)} left in this step`;
  const before = now.records.at(-1)?.seconds?.fit;
  if (before) return `the last training took ${duration(before)}`;
  return doing === "working" ? "the remaining time is not known yet" : "";
}

/** An answer in words. @param {{verdict: string, labels: number[], boxes: import("./types.js").Box[]}} answer */
export function inWords(answer) {
  if (answer.verdict === "not_an_object") return "not an object";
  if (answer.verdict === "cannot_tell") return "can't tell";
  if (answer.verdict === "withdrawn") return "withdrawn";
  if (answer.labels.length === 0) return "nothing in the image";
  if (answer.labels.length === 1) return className(answer.labels[0]);
  return `${answer.labels.length} boxes`;
}
