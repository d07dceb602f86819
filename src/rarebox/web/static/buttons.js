/** The buttons of the page. A press with the pointer returns the keyboard focus to the picture. */

import { byId, counted, el, icon, setText } from "./dom.js";
import { hint } from "./keys.js";
import { className, isOwn } from "./state.js";

/** @typedef {import("./annotator.js").Annotator} Annotator */
/** @typedef {import("./editor.js").Editor} Editor */
/** @typedef {import("./dom.js").Icon} Icon */

/** @param {() => void} act @returns {(event: PointerEvent) => void} */
export const pressed = (act) => (event) => {
  if (event.detail > 0) byId("stage").focus({ preventScroll: true });
  act();
};

/** @param {string} id of its action @param {Icon} glyph @param {string} title @param {() => void} act */
export const iconButton = (id, glyph, title, act) =>
  el(
    "button",
    {
      ...{ class: "bare", "data-testid": id, "data-title": title, "data-action": id, "aria-label": title },
      onclick: pressed(act),
    },
    icon(glyph),
  );

/** @param {string} id of its action @param {string} text @param {Icon} glyph @param {() => void} act @param {string} [kind] */
const answerButton = (id, text, glyph, act, kind = "minor") =>
  el(
    "button",
    { class: kind, "data-testid": id, "data-action": id, onclick: pressed(act) },
    icon(glyph),
    el("span", { class: "text", text }),
    el("kbd"),
  );

/**
 * Makes the buttons below the picture.
 * @param {Annotator} annotator @param {import("./grid.js").Grid} grid @param {() => void} findSimilar
 */
export function makeAnswerButtons(annotator, grid, findSimilar) {
  const { editor } = annotator;
  const wholeAnswer = () => editor.whole && editor.active?.kind !== "other";
  const yes = () => (wholeAnswer() ? annotator.complete(true) : annotator.yes());
  const main = {
    yes: answerButton("yes", "Yes", "check", yes, "primary"),
    not_object: answerButton("not_object", "Not an object", "cross", () => annotator.notAnObject(), ""),
    cannot_tell: answerButton("cannot_tell", "Can't tell", "unsure", () => annotator.cannotTell(), ""),
  };
  const minor = {
    draw: answerButton("draw", "Add box", "draw", () => editor.drawNext("draw")),
    redraw: answerButton("redraw", "Redraw", "redraw", () => editor.drawNext("redraw")),
    remove: answerButton("remove", "Remove", "trash", () => annotator.remove()),
    take_all: answerButton("take_all", "Accept all", "check", () => editor.takeAll()),
    complete: answerButton("complete", "Image complete", "done", () => annotator.complete(true)),
    similar: answerButton("similar", "More like this", "search", findSimilar),
    withdraw: answerButton("withdraw", "Withdraw", "trash", () => annotator.withdraw()),
    leave: answerButton("leave", "Back", "close", () => annotator.leave(false)),
    undo: answerButton("undo", "Undo", "undo", () => annotator.undo()),
  };
  byId("answers").append(
    el("div", { class: "main-answers" }, ...Object.values(main)),
    el("div", { class: "minor-answers" }, ...Object.values(minor)),
  );
  const offer = { grid: answerButton("grid", "Check several", "grid", () => grid.toggle(), "offer") };
  byId("facts").before(offer.grid);
  return { show: () => showAnswerButtons({ ...main, ...minor, ...offer }, annotator, grid) };
}

/** @param {Record<string, HTMLButtonElement>} buttons @param {Annotator} annotator @param {import("./grid.js").Grid} grid */
function showAnswerButtons(buttons, { task, editor, canUndo }, { offer, offered, open }) {
  const { active, whole, pictureStatus } = editor;
  const { mode } = editor.view;
  const edited = task?.kind === "edit";
  const loading = pictureStatus !== "ready";
  const onLabel = active?.kind === "label";
  const onOther = active?.kind === "other";
  set(buttons.yes, task ? yesText(task, editor) : "Yes", !task || loading);
  buttons.yes.classList.toggle("armed", Boolean(task?.armed));
  set(buttons.not_object, "Not an object", !task || loading);
  buttons.not_object.hidden = whole || onLabel || onOther;
  set(buttons.cannot_tell, whole ? "Skip this image" : "Can't tell", !task || pictureStatus === "loading");
  buttons.cannot_tell.hidden = onLabel || onOther;
  set(buttons.draw, "Add box", !task || loading);
  buttons.draw.setAttribute("aria-pressed", String(mode === "draw"));
  buttons.draw.hidden = !task;
  set(buttons.redraw, "Redraw", !task || loading);
  buttons.redraw.setAttribute("aria-pressed", String(mode === "redraw"));
  buttons.redraw.hidden = !task || whole || edited;
  buttons.remove.hidden = !active || active.kind === "asked";
  buttons.take_all.hidden = !whole || !editor.marks().some((mark) => mark.kind === "other");
  set(buttons.complete, "Image complete", loading);
  buttons.complete.hidden = whole || task?.kind !== "ask" || onLabel;
  buttons.complete.setAttribute("aria-pressed", String(editor.imageComplete));
  buttons.similar.hidden = !active;
  buttons.withdraw.hidden = !edited || !isOwn(task?.answer?.by); // another person's answer is changed instead
  buttons.leave.hidden = !edited;
  set(buttons.grid, `Check ${offer?.boxes ?? 0} at once`, false);
  buttons.grid.title = `Boxes that look like ${className(offer?.label ?? null)}`;
  buttons.grid.hidden = !offered || !task || open || whole;
  set(buttons.undo, "Undo", !canUndo);
  byId("answers").classList.toggle("idle", !task);
  document.querySelector("[data-testid=hide]")?.setAttribute("aria-pressed", String(editor.hidden));
}

/** The text of the first button. @param {import("./task.js").Task} task @param {Pick<Editor, "active" | "guess" | "whole">} editor */
export function yesText(task, { active, guess, whole }) {
  if (active?.kind === "other") return "Label this box";
  if (active?.kind === "label") return "Back to the question";
  if (whole) {
    const drafts = task.sketch.drafts.length;
    if (drafts) return `Complete: ${counted(drafts, "box", "boxes")}`;
    return task.armed ? "Really nothing to label?" : "Nothing to label";
  }
  if (guess === null) return "Choose a class";
  return task.kind === "edit" ? "Save" : `Yes, ${className(guess)}`;
}

/** Writes the keys of all actions on their buttons. */
export function showKeys() {
  for (const button of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-action]"))) {
    const { action = "", title = "" } = button.dataset;
    const key = hint(action);
    const kbd = button.querySelector("kbd");
    if (kbd) kbd.textContent = key;
    else button.title = key ? `${title} (${key})` : title;
  }
}

/** @param {HTMLButtonElement} button @param {string} text @param {boolean} disabled */
function set(button, text, disabled) {
  setText(/** @type {Element} */ (button.querySelector(".text")), text);
  button.disabled = disabled;
}
