/** The question above the picture, its reason and the facts beside it. */

import { colour } from "./colours.js";
import { byId, el, percent, replace, setText } from "./dom.js";
import { hint } from "./keys.js";
import { className, classOf, inWords, state } from "./state.js";
import { proposals } from "./task.js";

/** @typedef {import("./editor.js").Editor} Editor */
/** @typedef {import("./task.js").Task} Task */
/** @typedef {{before: string, label?: number | null, after?: string, reason: string}} Words  label: a class named in its colour */

/** Is there probably no keyboard? */
export const byTouch = () => matchMedia("(pointer: coarse)").matches;

/** @param {Editor} editor */
export function showQuestion(editor) {
  const { task } = editor;
  if (task) showWords(wordsOf(task, editor, byTouch()), factsOf(task, state()?.phase));
  else showWords({ before: "", reason: "" });
}

/** @param {Words} words @param {Fact[]} [facts] */
export function showWords({ before, label = null, after = "", reason }, facts = []) {
  setText(byId("reason"), reason);
  replace(
    byId("facts"),
    ...facts.map(([name, value, title]) =>
      el("span", { title, "data-fact": name }, el("small", { text: name }), el("b", { text: value })),
    ),
  );
  const node = byId("question");
  const name = label === null ? "" : className(label);
  if (node.textContent === before + name + after && node.dataset.label === String(label)) return;
  node.dataset.label = String(label);
  const swatch = el("i", { class: "swatch", style: { background: colour(label) } });
  replace(node, before, label !== null && el("em", { "data-testid": "guess" }, swatch, name), after);
}

/**
 * What the page asks for: the mode first, then the selected box, then the question itself.
 * @param {Task} task @param {Pick<Editor, "active" | "guess" | "justDrawn" | "pen"> & {view: {mode: string}}} editor
 * @param {boolean} touch a touch screen: name no keys @returns {Words}
 */
export function wordsOf(task, { active, guess, justDrawn, pen, view }, touch) {
  const { query, answer } = task;
  if (view.mode !== "auto") {
    return {
      before: view.mode === "draw" ? "Draw a box with one drag" : "Redraw the box with one drag",
      reason: touch ? "Press the button again to cancel." : "Esc cancels.",
    };
  }
  if (active?.kind === "draft" && active.label === null) {
    return {
      before: "What is in the new box?",
      reason: touch
        ? "Tap its class, or find or add one."
        : `A digit chooses its class, ${hint("find")} finds or adds one.`,
    };
  }
  if (active?.kind === "label") {
    return {
      before: justDrawn ? "New box, saved as " : "Answered box: ",
      label: active.label,
      reason: touch
        ? "Tap a class to change it."
        : `A digit or ${hint("find")} changes its class, ${hint("remove")} removes it, ${hint("yes")} returns to the question.`,
    };
  }
  if (active?.kind === "other") {
    return {
      ...{ before: "Unanswered box: ", label: active.label, after: "?" },
      reason: touch
        ? "Tap its class to label it, or tap elsewhere to deselect it."
        : `${hint("yes")} or a digit labels it. Esc deselects it.`,
    };
  }
  if (answer) {
    const reason = `By ${answer.by}. ${touch ? "Back" : "Esc"} keeps it unchanged.`;
    if (!query.box) return { before: "You are changing the answer for a whole image", reason };
    const before = "You are changing an answer: ";
    return answer.verdict === "object" ? { before, label: guess, reason } : { before, after: inWords(answer), reason };
  }
  if (query.box) {
    if (guess === null) return { before: "What is in this box?", reason: query.reason };
    return { before: "Is this ", label: guess, after: "?", reason: query.reason };
  }
  if (proposals(query).length) {
    const how = touch
      ? "Tap a wrong box twice to remove it, and drag to add a missing one."
      : `${hint("next_box")} selects the next box, ${hint("not_object")} removes it, a digit changes its class, and a drag adds a missing one.`;
    return { before: "Does every object have its box?", reason: how };
  }
  const name = classOf(pen)?.name;
  const drawing = `Drag to draw${name ? `; new boxes are “${name}”` : ""}.`;
  return { before: "Box everything in this image", reason: [query.reason, drawing].filter(Boolean).join(" ") };
}

/** A name, a value, and what the pointer shows of it. @typedef {[string, string, string]} Fact */

/** @param {Task} task @param {string} [phase] of the project @returns {Fact[]} */
export function factsOf({ kind, query }, phase) {
  const { image, cycle, box, score, similarity, uncertainty } = query;
  /** @type {Fact[]} */
  const facts = [["photo", image.name, image.name]];
  if (kind !== "ask") return facts;
  if (!["first_images", "preparing"].includes(phase ?? ""))
    facts.unshift(["cycle", String(cycle), `The questions of cycle ${cycle} follow training ${cycle - 1}.`]);
  if (similarity != null) facts.unshift(["similarity", percent(similarity), "How much it looks like the example."]);
  if (box && score !== null) {
    const more = uncertainty === null ? "" : ` Its uncertainty u(b): ${uncertainty.toFixed(2)}.`;
    facts.unshift(["sure", percent(score), `How sure the detector is: its score.${more}`]);
  }
  return facts;
}
