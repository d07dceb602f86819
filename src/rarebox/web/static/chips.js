/** The row of classes below the picture. */

import { pressed } from "./buttons.js";
import { colour } from "./colours.js";
import { byId, el, icon, replace } from "./dom.js";
import { hint } from "./keys.js";
import { offered } from "./state.js";

const DIGITS = 20; // classes that have a key

/** @param {import("./annotator.js").Annotator} annotator @param {() => void} find */
export function makeChips(annotator, find) {
  let drawn = "";
  const place = byId("classes");

  /** @param {import("./types.js").Class} one @param {boolean} chosen */
  const chip = ({ label, name }, chosen) =>
    el(
      "button",
      {
        ...{ class: "chip", "data-testid": `class-${label}`, title: name, disabled: !annotator.task },
        ...{ "aria-pressed": String(chosen), onclick: pressed(() => annotator.choose(label)) },
      },
      el("i", { class: "swatch", style: { background: colour(label) } }),
      el("span", { text: name }),
      label < DIGITS && el("kbd", { text: `${label > 9 ? "⇧" : ""}${(label + 1) % 10}` }),
    );

  /** Redraws the row if it changed. */
  function show() {
    const { active, pen } = annotator.editor;
    const label = active ? active.label : pen;
    const names = offered().map((one) => [one.label, one.name]);
    const wanted = JSON.stringify([names, label, annotator.task !== null, hint("find")]);
    if (wanted === drawn) return;
    drawn = wanted;
    replace(
      place,
      el(
        "button",
        { class: "chip find", "data-testid": "find", "data-action": "find", disabled: !annotator.task, onclick: find },
        icon("search"),
        el("span", { text: "Find" }),
        el("kbd", { text: hint("find") }),
      ),
      ...offered()
        .filter((one) => one.label < DIGITS || one.label === label)
        .map((one) => chip(one, one.label === label)),
    );
    const chosen = place.querySelector("[aria-pressed=true]")?.getBoundingClientRect();
    const frame = place.getBoundingClientRect();
    if (chosen) place.scrollLeft += (chosen.left + chosen.right - frame.left - frame.right) / 2;
  }

  return { show };
}
