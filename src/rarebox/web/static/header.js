/** The top of the page: progress and whether everything is saved. */

import { byId, setText } from "./dom.js";

/** @typedef {import("./types.js").State} State */

/** The number of unsent answers that the budget will count: only objects if its unit is labels, else all. @param {readonly import("./outbox.js").Sending[]} waiting @param {string} [unit] */
export function spentOnTheWay(waiting, unit) {
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
  return `${done} of ${budget.of} ${budget.unit}`;
}

/** @param {State} now @param {number} onTheWay unsent answers that the budget counts */
export function showProgress(now, onTheWay) {
  const { spent, of } = now.budget;
  const text = progressText(now, onTheWay);
  setText(byId("progress-text"), text);
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
