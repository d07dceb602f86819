/** Galleries: all answers, to change or withdraw them, and answers of two people that disagree. */

import { get } from "./api.js";
import { answerCrop } from "./crop.js";
import { openDialog } from "./dialogs.js";
import { el, replace } from "./dom.js";
import { inWords, isOwn, offered, state } from "./state.js";

/** @typedef {import("./types.js").Answer} Answer */
/** @typedef {import("./types.js").Query} Query */

const PAGE = 36;
/** The filter is kept while the page is open. */
const filter = { label: "", verdict: "", by: "" };

/** @param {(answer: Answer) => void} edit */
export function openGallery(edit) {
  openDialog(
    "Answers",
    (body, close) => {
      const grid = el("div", { class: "grid", "data-testid": "gallery" });
      const more = el("button", { text: "More", "data-testid": "gallery-more", hidden: true, onclick: () => load() });
      const remark = el("p", { class: "quiet", role: "status" });
      let oldest = /** @type {number | null} */ (null);
      let round = 0;

      const load = async (from = oldest) => {
        const mine = ++round;
        const query = new URLSearchParams({ limit: String(PAGE) });
        for (const [name, value] of Object.entries(filter)) if (value) query.set(name, value);
        if (from !== null) query.set("before", String(from));
        try {
          const { answers } = await get(`/api/answers?${query}`);
          if (mine !== round) return;
          if (from === null) replace(grid);
          grid.append(...answers.map((/** @type {Answer} */ answer) => card(answer, () => (close(), edit(answer)))));
          oldest = answers.at(-1)?.answer ?? oldest;
          more.hidden = answers.length < PAGE;
          remark.textContent = grid.children.length ? "" : "No matching answers.";
        } catch (error) {
          remark.textContent = /** @type {Error} */ (error).message;
        }
      };
      const again = () => ((oldest = null), load(null));
      const choice = (
        /** @type {keyof typeof filter} */ name,
        /** @type {string} */ title,
        /** @type {[string, string][]} */ options,
      ) => {
        const select = el(
          "select",
          { "aria-label": title, "data-testid": `filter-${name}` },
          ...options.map(([value, text]) => el("option", { value, text })),
        );
        select.value = filter[name];
        if (select.selectedIndex < 0) select.value = filter[name] = "";
        select.addEventListener("change", () => ((filter[name] = select.value), again()));
        return select;
      };
      /** @type {[string, string][]} */
      const people = [
        ...(state()?.you ? [/** @type {[string, string]} */ (["me", "by me"])] : []),
        ...(state()?.people ?? [])
          .filter((one) => !isOwn(one.name))
          .map((one) => /** @type {[string, string]} */ ([one.name, `by ${one.name}`])),
      ];
      body.append(
        el(
          "div",
          { class: "filters" },
          choice("label", "Class", [
            ["", "All classes"],
            ...offered().map((one) => /** @type {[string, string]} */ ([String(one.label), one.name])),
          ]),
          choice("verdict", "Verdict", [
            ["", "All verdicts"],
            ["object", "Objects"],
            ["not_an_object", "Not an object"],
            ["cannot_tell", "Can't tell"],
          ]),
          choice("by", "Person", [["", "By anyone"], ...people]),
        ),
        grid,
        remark,
        more,
      );
      load(null);
    },
    { wide: true, testid: "gallery-dialog" },
  );
}

/** @param {Answer} answer @param {() => void} act */
function card(answer, act) {
  const words = inWords(answer);
  return el(
    "button",
    {
      class: `card ${answer.verdict}`,
      "data-testid": "gallery-item",
      "aria-label": `${words}, by ${answer.by}: change`,
      onclick: act,
    },
    answerCrop(answer, { width: 150, height: 116 }),
    el("b", { text: words }),
    el("small", { text: answer.by }),
  );
}

/** @param {(query: Query, answers: Answer[], chosen: Answer) => void} decide @param {(answer: Answer) => void} edit */
export function openDisagreements(decide, edit) {
  openDialog(
    "Disagreements",
    async (body, close) => {
      const list = el("div", { class: "disagreements", "data-testid": "disagreement-list" });
      body.append(
        el("p", { class: "quiet", text: "Two people gave different answers. Choose the one to keep." }),
        list,
      );
      try {
        const { disagreements } = await get("/api/disagreements");
        if (!disagreements.length) list.append(el("p", { text: "There are no disagreements." }));
        for (const { query, answers } of disagreements) list.append(pair(query, answers));
      } catch (error) {
        list.append(el("p", { text: /** @type {Error} */ (error).message }));
      }

      /** @param {Query} query @param {Answer[]} answers */
      function pair(query, answers) {
        const newest = answers.reduce((a, b) => (b.answer > a.answer ? b : a));
        const row = el("section", { class: "pair", "data-testid": "disagreement" });
        const sides = answers.map((answer) => {
          const whole = { ...answer, image: answer.image ?? query.image, box: query.box };
          return el(
            "figure",
            {},
            answerCrop(whole, { width: 260, height: 190 }),
            el("figcaption", {}, el("b", { text: inWords(answer) }), el("small", { text: answer.by })),
            el("button", {
              class: "primary",
              text: `${answer.by} is right`,
              "data-testid": "decide",
              onclick: () => {
                decide(query, answers, answer);
                row.remove();
                if (!list.children.length) close();
              },
            }),
          );
        });
        row.append(
          ...sides,
          el("button", {
            class: "link",
            text: "Neither: answer it myself",
            onclick: () => (close(), edit({ ...newest, image: newest.image ?? query.image, box: query.box })),
          }),
        );
        return row;
      }
    },
    { wide: true },
  );
}
