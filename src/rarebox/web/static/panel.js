/** The side panel: progress, training, classes, people. Redrawn from each State. */

import { get, getFile, post } from "./api.js";
import { apChart } from "./chart.js";
import { colour } from "./colours.js";
import { answerCrop } from "./crop.js";
import { byId, counted, duration, el, icon, percent, replace } from "./dom.js";
import { makeGoal } from "./goal.js";
import { recall, remember } from "./local.js";
import { notify } from "./notices.js";
import { accept, inWords, offered, stageInWords, state, timeInWords } from "./state.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Answer} Answer */

/** A class is rare if it has fewer boxes than this fraction of the most frequent class. */
const RARE = 0.1;

/**
 * @param {{edit: (answer: Answer) => void, gallery: () => void, classes: () => void, disagreements: () => void, person: () => void,
 *   threshold: (value: number) => void, thresholdNow: () => number}} actions
 */
export function makePanel(actions) {
  const panel = byId("panel");
  const parts = Object.fromEntries(
    ["trainer", "progress", "goal", "recent", "balance", "ap", "people", "view", "data"].map((name) => [
      name,
      el("section", { class: `part ${name}` }),
    ]),
  );
  const grip = el(
    "button",
    { class: "grip", "aria-label": "Close the panel", onclick: () => show(false) },
    icon("close"),
  );
  replace(panel, grip, ...Object.values(parts));
  parts.trainer.dataset.testid = "trainer";
  parts.recent.dataset.testid = "recent";

  let timer = 0; // of the next refresh of the last answers
  const narrow = matchMedia("(max-width: 860px)");
  const show = (/** @type {boolean} */ open) => {
    document.body.classList.toggle("panel-open", open);
    if (!narrow.matches) remember("panel", open);
    if (open) refreshRecent();
  };
  const toggle = () => show(!document.body.classList.contains("panel-open"));
  const settle = () => show(narrow.matches ? false : recall("panel", true));
  narrow.addEventListener("change", settle);
  settle();

  /** @param {State} now @param {number} waiting answers on their way */
  function update(now, waiting) {
    trainer(now);
    progress(now, waiting);
    balance(now);
    people(now);
    replace(
      parts.ap,
      el("h2", { text: "AP50 per cycle" }),
      apChart(now.records),
      now.held_out?.note && el("p", { class: "quiet", text: now.held_out.note, "data-testid": "held-out" }),
      now.advice && el("p", { class: "advice", text: now.advice, "data-testid": "advice" }),
    );
  }

  /** @param {State} now */
  function trainer(now) {
    const { state: doing, stage, done, of, seconds_left, reason } = now.trainer;
    const time = timeInWords(now);
    parts.trainer.hidden = doing === "idle" && !now.can_train;
    parts.trainer.classList.toggle("failed", doing === "failed");
    if (doing === "failed") {
      replace(
        parts.trainer,
        el("h2", { text: "Training failed" }),
        el("p", { text: reason ?? "No reason was reported." }),
        el("p", { class: "quiet", text: "All answers are saved." }),
        el("button", { text: "Try again", "data-testid": "retry", onclick: () => ask("/api/retry") }),
      );
    } else if (doing === "working") {
      replace(
        parts.trainer,
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
      );
    } else {
      replace(
        parts.trainer,
        el("button", { text: "Train now", "data-testid": "train-now", onclick: () => ask("/api/train") }),
        el("p", {
          class: "quiet",
          text: `Trains on the answers so far, before the budget is spent${time ? `; ${time}` : ""}.`,
        }),
      );
    }
  }

  /** @param {State} now @param {number} waiting */
  function progress(now, waiting) {
    const { spent, of, unit } = now.budget;
    const left = Math.max(0, of - spent - waiting);
    const { per_minute, minutes_left } = now.speed;
    replace(
      parts.progress,
      el(
        "h2",
        { text: now.phase === "first_images" ? "First images" : `Cycle ${now.cycle}` },
        el("span", { text: `${Math.min(spent + waiting, of)} of ${of} ${unit}` }),
      ),
      bar(of ? (spent + waiting) / of : 0, "Budget spent"),
      el(
        "dl",
        { class: "figures" },
        figure(String(left), `${unit} left`, "budget-left"),
        figure(per_minute === null ? "–" : per_minute.toFixed(per_minute < 10 ? 1 : 0), "per minute", "per-minute"),
        figure(minutes_left === null ? "–" : duration(60 * minutes_left), "time left", "minutes-left"),
      ),
    );
  }

  /** @param {State} now */
  function balance(now) {
    const classes = offered().toSorted((a, b) => a.count - b.count || a.label - b.label);
    const most = Math.max(1, ...now.classes.map((one) => one.count));
    replace(
      parts.balance,
      el(
        "h2",
        { text: "Boxes per class" },
        el("button", { class: "link", text: "Edit classes", "data-testid": "edit-classes", onclick: actions.classes }),
      ),
      el(
        "ul",
        { class: "bars" },
        ...classes.map(({ label, name, count }) =>
          el(
            "li",
            { class: most >= 10 && count < RARE * most ? "rare" : null, title: name },
            el("span", { class: "who", text: name }),
            el("i", { style: { width: `${Math.max(1.5, (100 * count) / most)}%`, background: colour(label) } }),
            el("b", { text: count }),
          ),
        ),
      ),
      !classes.length && el("p", { class: "quiet", text: "No classes yet. Draw a box and name it." }),
    );
  }

  /** @param {State} now */
  function people(now) {
    const { with_guesses, between_people, disagreements } = now.agreement;
    replace(
      parts.people,
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
    );
  }

  replace(parts.goal, makeGoal());

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
    sliderText.textContent = percent(slider.value / 100);
    actions.threshold(slider.value / 100);
  });
  replace(
    parts.view,
    el("h2", { text: "Dashed boxes" }),
    el("label", { class: "slider" }, el("span", { text: "minimum score" }), slider, sliderText),
  );

  const formats = [
    ["coco", "COCO"],
    ["yolo", "YOLO"],
    ["voc", "Pascal VOC"],
    ["labelstudio", "Label Studio"],
    ["cvat", "CVAT"],
  ];
  replace(
    parts.data,
    el("h2", { text: "Labels" }),
    el("button", { text: "Browse all answers", "data-testid": "open-gallery", onclick: actions.gallery }),
    el(
      "p",
      { class: "downloads" },
      icon("download"),
      ...formats.map(([format, name]) =>
        el("a", {
          href: `/api/export?format=${format}`,
          download: "",
          text: name,
          "data-testid": `export-${format}`,
          onclick: (/** @type {Event} */ event) => (event.preventDefault(), download(format)),
        }),
      ),
    ),
  );

  /** @param {string} path */
  async function ask(path) {
    try {
      accept(await post(path));
    } catch (error) {
      notify(/** @type {Error} */ (error).message || "The request failed.", "bad");
    }
  }

  /** Downloads the labels, so that a refusal is shown on this page. @param {string} format */
  async function download(format) {
    try {
      const { content, name } = await getFile(`/api/export?format=${format}`);
      const link = el("a", { href: URL.createObjectURL(content), download: name ?? `labels-${format}.zip` });
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    } catch (error) {
      notify(/** @type {Error} */ (error).message || "The request failed.", "bad");
    }
  }

  async function invite() {
    try {
      const { url, local } = await post("/api/invite");
      const link = el("input", {
        type: "text",
        readonly: true,
        value: url,
        "aria-label": "Invite link",
        "data-testid": "invite-link",
      });
      const { openDialog } = await import("./dialogs.js");
      openDialog("Invite someone", (body) => {
        const copied = el("span", { class: "quiet", role: "status" });
        const copy = async () => {
          link.select();
          const done = navigator.clipboard
            ? await navigator.clipboard.writeText(url).then(
                () => true,
                () => false,
              )
            : false;
          copied.textContent = done ? "Copied." : "Press Ctrl+C to copy.";
        };
        body.append(
          el("p", {
            text: "One person can open this link, once, to label in this project. Until then, treat it like a password.",
          }),
          ...(local
            ? [
                el("p", {
                  "data-testid": "invite-local",
                  text: "It works in another browser on this computer only. For other computers and phones, restart the server with a link for each person: rarebox serve PROJECT --host 0.0.0.0 --people anna,ben",
                }),
              ]
            : []),
          el("div", { class: "name-form" }, link, el("button", { class: "primary", text: "Copy", onclick: copy })),
          copied,
        );
      });
    } catch (error) {
      notify(/** @type {Error} */ (error).message, "bad");
    }
  }

  /** Loads the last ten answers, after a delay without new ones. */
  function refreshRecent(delay = 0) {
    clearTimeout(timer);
    timer = window.setTimeout(async () => {
      if (!document.body.classList.contains("panel-open") || !state()) return;
      try {
        const { answers } = await get("/api/answers?limit=10");
        parts.recent.hidden = !answers.length;
        replace(
          parts.recent,
          el("h2", { text: "Last answers" }),
          el(
            "div",
            { class: "recent-list" },
            ...answers.map((/** @type {Answer} */ answer) => {
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
            }),
          ),
        );
      } catch {
        // Offline: keep the old list.
      }
    }, delay);
  }

  return { update, toggle, show, refreshRecent };
}

/** @param {number} fraction @param {string} label */
export function bar(fraction, label) {
  const value = Math.round(100 * Math.min(1, Math.max(0, fraction)));
  return el(
    "div",
    {
      class: "bar",
      role: "progressbar",
      "aria-label": label,
      "aria-valuenow": value,
      "aria-valuemin": 0,
      "aria-valuemax": 100,
    },
    el("i", { style: { width: `${value}%` } }),
  );
}

/** @param {string} value @param {string} name @param {string} testid */
const figure = (value, name, testid) =>
  el("div", {}, el("dd", { text: value, "data-testid": testid }), el("dt", { text: name }));
