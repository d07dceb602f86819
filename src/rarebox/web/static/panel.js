/** The side panel: progress, training, classes, people. Its parts are redrawn from each State. */

import { get } from "./api.js";
import { answerCrop } from "./crop.js";
import { byId, el, icon, replace } from "./dom.js";
import { makeGoal } from "./goal.js";
import { recall, remember } from "./local.js";
import { apPart, classesPart, labelsPart, peoplePart, progressPart, thresholdPart, trainerPart } from "./parts.js";
import { inWords, state } from "./state.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Answer} Answer */

/**
 * What the buttons of the panel do.
 * @typedef {object} Actions
 * @property {(answer: Answer) => void} edit
 * @property {() => void} gallery
 * @property {() => void} classes
 * @property {(label: number) => void} similar  looks for more of a class, or stops doing so
 * @property {() => void} disagreements
 * @property {() => void} person
 * @property {() => void} tour
 * @property {(value: number) => void} threshold
 * @property {() => number} thresholdNow
 */

const NAMES = ["trainer", "progress", "goal", "recent", "balance", "ap", "people", "view", "data"];

/** @param {Actions} actions */
export function makePanel(actions) {
  const parts = Object.fromEntries(NAMES.map((name) => [name, el("section", { class: `part ${name}` })]));
  const close = { class: "grip", "aria-label": "Close the panel", onclick: () => show(false) };
  replace(byId("panel"), el("button", close, icon("close")), ...Object.values(parts));
  parts.trainer.dataset.testid = "trainer";
  parts.recent.dataset.testid = "recent";
  replace(parts.goal, makeGoal());
  replace(parts.view, ...thresholdPart(actions));
  replace(parts.data, ...labelsPart(actions));

  const narrow = matchMedia("(max-width: 860px)");
  const show = (/** @type {boolean} */ open) => {
    document.body.classList.toggle("panel-open", open);
    if (!narrow.matches) remember("panel", open);
    if (open) refreshRecent();
  };
  const toggle = () => show(!document.body.classList.contains("panel-open"));
  const settle = () => show(narrow.matches ? false : recall("panel", true));

  /** @param {State} now @param {number} waiting unsent answers that the budget counts */
  function update(now, waiting) {
    const { state: doing } = now.trainer;
    parts.trainer.hidden = doing === "idle" && !now.can_train;
    parts.trainer.classList.toggle("failed", doing === "failed");
    replace(parts.trainer, ...trainerPart(now));
    replace(parts.progress, ...progressPart(now, waiting));
    replace(parts.balance, ...classesPart(now, actions));
    replace(parts.people, ...peoplePart(now, actions));
    replace(parts.ap, ...apPart(now));
  }

  let timer = 0; // of the next refresh of the last answers

  /** Loads the last ten answers, after a delay without new ones. */
  function refreshRecent(delay = 0) {
    clearTimeout(timer);
    timer = window.setTimeout(async () => {
      if (!document.body.classList.contains("panel-open") || !state()) return;
      try {
        const { answers } = await get("/api/answers?limit=10");
        parts.recent.hidden = !answers.length;
        const thumbs = answers.map((/** @type {Answer} */ answer) => thumb(answer, actions));
        replace(parts.recent, el("h2", { text: "Last answers" }), el("div", { class: "recent-list" }, ...thumbs));
      } catch {
        // Offline: keep the old list.
      }
    }, delay);
  }

  narrow.addEventListener("change", settle);
  settle();
  return { update, toggle, show, refreshRecent };
}

/** @param {Answer} answer @param {Actions} actions */
function thumb(answer, actions) {
  const words = `${inWords(answer)}, by ${answer.by}`;
  return el(
    "button",
    {
      class: `thumb ${answer.verdict}`,
      title: `${words}: change`,
      "aria-label": `Change: ${words}`,
      "data-testid": "recent-answer",
      onclick: () => actions.edit(answer),
    },
    answerCrop(answer, { width: 50, height: 50 }),
  );
}
