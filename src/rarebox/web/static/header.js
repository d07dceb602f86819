/** The top of the page: progress and whether everything is saved. */

import { byId, counted, setText } from "./dom.js";

/** @typedef {import("./types.js").State} State */

/**
 * What the budget will count of the unsent answers: their seconds, only objects if its unit is labels, else all.
 * @param {readonly import("./outbox.js").Sending[]} waiting @param {string} [unit]
 */
export function spentOnTheWay(waiting, unit) {
  if (unit === "seconds") return waiting.reduce((sum, { item }) => sum + item.milliseconds, 0) / 1000;
  const counts = (/** @type {string} */ verdict) =>
    verdict === "object" || (unit !== "labels" && verdict !== "withdrawn");
  return waiting.filter(
    ({ base, item, parent }) => base.startsWith("q") && !item.after && !parent && counts(item.verdict),
  ).length;
}

/** @param {State} now @param {number} onTheWay */
export function progressText({ budget, phase }, onTheWay) {
  const done = Math.min(budget.of, budget.spent + onTheWay);
  if (phase === "preparing") return "";
  if (phase === "first_images") return `image ${Math.min(budget.of, done + 1)} of ${budget.of}`;
  return `${inUnit(done, budget.unit)} of ${inUnit(budget.of, budget.unit)} ${shownUnit(budget.unit)}`;
}

/** A part of the budget as it is shown: seconds as minutes. @param {number} spent @param {string} unit */
export const inUnit = (spent, unit) => (unit === "seconds" ? String(Math.round(spent / 6) / 10) : String(spent));

/** @param {string} unit */
export const shownUnit = (unit) => (unit === "seconds" ? "minutes" : unit);

/** How long the rest of the cycle takes, or "". @param {number | null} minutes */
export function toGo(minutes) {
  if (minutes === null) return "";
  if (minutes < 1) return minutes > 0 ? "less than a minute to go" : "";
  return `about ${minutes < 90 ? counted(Math.round(minutes), "minute") : `${(minutes / 60).toFixed(1)} hours`} to go`;
}

/** @param {State} now @param {number} onTheWay unsent answers that the budget counts */
export function showProgress(now, onTheWay) {
  const { spent, of } = now.budget;
  const text = progressText(now, onTheWay);
  setText(byId("progress-text"), text);
  byId("progress-text").title = toGo(now.speed.minutes_left);
  byId("progress-bar").style.width = `${of ? (100 * Math.min(of, spent + onTheWay)) / of : 0}%`;
  /** @type {HTMLElement} */ (byId("progress-bar").parentElement).hidden = !text;
  setText(byId("project"), now.project);
}

/** @param {string} status of the outbox @param {number} waiting number of unsent answers */
export function showSaveState(status, waiting) {
  const node = byId("save-state");
  const text =
    status === "offline" && waiting ? `offline (${waiting} waiting)` : status === "signed-out" ? "signed out" : status;
  if (node.dataset.state === status && node.textContent === text) return;
  node.dataset.state = status;
  node.textContent = text;
  node.title =
    status === "offline"
      ? "Your answers are kept in this browser and will be sent when the server is back."
      : "Every answer is saved immediately.";
}
