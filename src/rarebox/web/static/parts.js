/** The parts of the side panel that show the State: functions that return their elements. */

import { pressed } from "./buttons.js";
import { apChart } from "./chart.js";
import { colour } from "./colours.js";
import { command, downloadLabels } from "./commands.js";
import { bar, counted, duration, el, icon, percent } from "./dom.js";
import { inUnit, shownUnit, toGo } from "./header.js";
import { invite } from "./invite.js";
import { offered, stageInWords, timeInWords } from "./state.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./panel.js").Actions} Actions */

/** A class is rare if it has fewer boxes than this fraction of the most frequent class. */
const RARE = 0.1;

const FORMATS = [
  ["coco", "COCO"],
  ["yolo", "YOLO"],
  ["voc", "Pascal VOC"],
  ["labelstudio", "Label Studio"],
  ["cvat", "CVAT"],
];

/** What the trainer is doing, or a button to start it. @param {State} now */
export function trainerPart(now) {
  const { state: doing, stage, done, of, seconds_left, reason } = now.trainer;
  const time = timeInWords(now);
  if (doing === "failed") {
    return [
      el("h2", { text: "Training failed" }),
      el("p", { text: reason ?? "No reason was reported." }),
      el("p", { class: "quiet", text: "All answers are saved." }),
      el("button", { text: "Try again", "data-testid": "retry", onclick: () => command("/api/retry") }),
    ];
  }
  if (doing === "working") {
    return [
      el(
        "h2",
        { text: stage === "starting" ? "Getting ready" : "Training" },
        seconds_left !== null && el("span", { text: `${duration(seconds_left)} left` }),
      ),
      bar(of ? done / of : 0, "Training"),
      el("p", {
        class: "quiet",
        text: [stageInWords(stage), seconds_left === null && time].filter(Boolean).join("; "),
      }),
    ];
  }
  return [
    el("button", { text: "Train now", "data-testid": "train-now", onclick: () => command("/api/train") }),
    el("p", {
      class: "quiet",
      text: `Trains on the answers so far, before the budget is spent${time ? `; ${time}` : ""}.`,
    }),
  ];
}

/** How much of the budget is spent. @param {State} now @param {number} waiting unsent answers that the budget counts */
export function progressPart(now, waiting) {
  const { spent, of, unit } = now.budget;
  const left = Math.max(0, of - spent - waiting);
  const { per_minute, minutes_left } = now.speed;
  return [
    el(
      "h2",
      { text: now.phase === "first_images" ? "Initial images" : `Cycle ${now.cycle}` },
      el("span", { text: `${inUnit(Math.min(spent + waiting, of), unit)} of ${inUnit(of, unit)} ${shownUnit(unit)}` }),
    ),
    bar(of ? (spent + waiting) / of : 0, "Budget spent"),
    el(
      "dl",
      { class: "figures" },
      figure(inUnit(left, unit), `${shownUnit(unit)} left`, "budget-left"),
      figure(per_minute === null ? "–" : per_minute.toFixed(per_minute < 10 ? 1 : 0), "per minute", "per-minute"),
    ),
    toGo(minutes_left) && el("p", { class: "quiet", text: toGo(minutes_left), "data-testid": "to-go" }),
  ];
}

/** Boxes per class, the rarest first. @param {State} now @param {Actions} actions */
export function classesPart(now, actions) {
  const classes = offered().toSorted((a, b) => a.count - b.count || a.label - b.label);
  const most = Math.max(1, ...now.classes.map((one) => one.count));
  return [
    el(
      "h2",
      { text: "Boxes per class" },
      el("button", { class: "link", text: "Edit classes", "data-testid": "edit-classes", onclick: actions.classes }),
    ),
    el(
      "ul",
      { class: "bars" },
      ...classes.map((one) =>
        el(
          "li",
          {
            class: one.count ? (most >= 10 && one.count < RARE * most ? "rare" : null) : "lacking",
            title: history(one),
          },
          el("span", { class: "who", text: one.name }),
          el("i", { style: { width: `${Math.max(1.5, (100 * one.count) / most)}%`, background: colour(one.label) } }),
          el("b", { text: one.count }),
          similarButton(one, now, actions),
        ),
      ),
    ),
    !classes.length && el("p", { class: "quiet", text: "No classes yet. Draw a box and name it." }),
  ];
}

/** @param {import("./types.js").Class} one @param {State} now @param {Actions} actions */
function similarButton({ label, name }, { search }, actions) {
  const looking = search?.label === label;
  const title = looking ? `Stop looking for more like “${name}”` : `Find more like “${name}”`;
  const names = { title, "aria-label": title, "aria-pressed": String(looking), "data-testid": `similar-${label}` };
  return el("button", { class: "bare", ...names, onclick: pressed(() => actions.similar(label)) }, icon("search"));
}

/** When the first box of a class was found, and how many questions were about it. @param {import("./types.js").Class} one */
function history({ name, first, asked }) {
  const found = first ? `first box after ${counted(first.answers, "answer")}, in cycle ${first.cycle}` : "no box yet";
  return `${name}: ${found}; ${counted(asked, "box", "boxes")} shown as ${name}`;
}

/** Who has answered, and how well they agree. @param {State} now @param {Actions} actions */
export function peoplePart(now, actions) {
  const { with_guesses, between_people, disagreements } = now.agreement;
  return [
    el(
      "h2",
      { text: "People" },
      !now.fixed_name && el("button", { class: "link", text: `You: ${now.you ?? "?"}`, onclick: actions.person }),
    ),
    el(
      "ul",
      { class: "crowd" },
      ...now.people.map((one) => el("li", {}, el("span", { text: one.name }), el("b", { text: one.answers }))),
    ),
    (with_guesses !== null || between_people !== null) &&
      el("p", {
        class: "quiet",
        text: [
          with_guesses !== null && `The guess was right in ${percent(with_guesses)} of the answers.`,
          between_people !== null && `People agree on ${percent(between_people)} of the questions they share.`,
        ]
          .filter(Boolean)
          .join(" "),
      }),
    disagreements > 0 &&
      el("button", {
        class: "warn",
        text: `Resolve ${counted(disagreements, "disagreement")}`,
        "data-testid": "disagreements",
        onclick: actions.disagreements,
      }),
    el("button", { text: "Invite someone", "data-testid": "invite", onclick: invite }),
  ];
}

/** @param {State} now */
export const apPart = (now) => [
  el("h2", { text: "Accuracy per cycle (AP50)" }),
  apChart(now.records),
  now.held_out?.note && el("p", { class: "quiet", text: now.held_out.note, "data-testid": "held-out" }),
  now.advice && el("p", { class: "advice", text: now.advice, "data-testid": "advice" }),
];

/** The slider for the dashed boxes. @param {Actions} actions */
export function thresholdPart(actions) {
  const slider = el("input", {
    type: "range",
    min: 0,
    max: 95,
    step: 5,
    value: 100 * actions.thresholdNow(),
    "aria-label": "Minimum score of dashed boxes",
    "data-testid": "threshold",
  });
  const sliderText = el("output", { text: percent(actions.thresholdNow()) });
  slider.addEventListener("input", () => {
    sliderText.textContent = percent(slider.valueAsNumber / 100);
    actions.threshold(slider.valueAsNumber / 100);
  });
  return [
    el("h2", { text: "Dashed boxes" }),
    el("label", { class: "slider" }, el("span", { text: "minimum score" }), slider, sliderText),
  ];
}

/** Links to all answers and to exports. @param {Actions} actions */
export const labelsPart = (actions) => [
  el("h2", { text: "Labels" }),
  el("button", { text: "Browse all answers", "data-testid": "open-gallery", onclick: actions.gallery }),
  el("button", { class: "link", text: "Show the tour", "data-testid": "panel-tour", onclick: actions.tour }),
  el(
    "p",
    { class: "downloads" },
    icon("download"),
    ...FORMATS.map(([format, name]) =>
      el("a", {
        href: `/api/export?format=${format}`,
        download: "",
        text: name,
        "data-testid": `export-${format}`,
        onclick: (/** @type {Event} */ event) => (event.preventDefault(), downloadLabels(format)),
      }),
    ),
  ),
];

/** @param {string} value @param {string} name @param {string} testid */
const figure = (value, name, testid) =>
  el("div", {}, el("dd", { text: value, "data-testid": testid }), el("dt", { text: name }));
