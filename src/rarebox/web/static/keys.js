/**
 * Keyboard shortcuts. Keys are written "Enter", "a", "Space", "/", "Shift+Z", "ArrowLeft". Combinations with Ctrl, Alt or Meta
 * are left to the browser.
 */

import { forget, recall, remember } from "./local.js";

/** @typedef {{id: string, group: string, title: string, keys: string[], repeats?: boolean}} Action */

/** @type {Action[]} */
export const ACTIONS = [
  { id: "yes", group: "Answer", title: "Confirm the guess, or complete the whole image", keys: ["Enter", "a"] },
  { id: "find", group: "Answer", title: "Find or add a class", keys: ["/"] },
  { id: "not_object", group: "Answer", title: "Not an object", keys: ["x"] },
  { id: "cannot_tell", group: "Answer", title: "Can't tell", keys: ["Space"] },
  { id: "complete", group: "Answer", title: "Mark the image as complete: every object has a box", keys: ["c"] },
  { id: "grid", group: "Answer", title: "Check up to twelve boxes of one class at once, or stop it", keys: ["b"] },
  { id: "similar", group: "Answer", title: "Find more like the selected box", keys: ["m"] },
  { id: "undo", group: "Answer", title: "Undo, including answers", keys: ["z"] },
  { id: "redo", group: "Answer", title: "Redo", keys: ["y", "Shift+Z"] },
  { id: "draw", group: "Boxes", title: "Draw a box with the next drag", keys: ["d"] },
  { id: "redraw", group: "Boxes", title: "Redraw the selected box with the next drag", keys: ["r"] },
  { id: "next_box", group: "Boxes", title: "Next box on the image", keys: ["n"], repeats: true },
  { id: "previous_box", group: "Boxes", title: "Previous box on the image", keys: ["p"], repeats: true },
  { id: "remove", group: "Boxes", title: "Remove the selected box", keys: ["Delete", "Backspace"] },
  { id: "take_all", group: "Boxes", title: "Whole image: accept all dashed boxes", keys: ["t"] },
  { id: "hide", group: "View", title: "Hide or show all boxes", keys: ["h"] },
  { id: "fit", group: "View", title: "Zoom to the box or the image", keys: ["f"] },
  { id: "zoom_in", group: "View", title: "Zoom in", keys: ["+", "="], repeats: true },
  { id: "zoom_out", group: "View", title: "Zoom out", keys: ["-"], repeats: true },
  { id: "gallery", group: "View", title: "Browse all answers", keys: ["g"] },
  { id: "panel", group: "View", title: "Show or hide the side panel", keys: ["s"] },
  { id: "help", group: "View", title: "Show the keyboard shortcuts", keys: ["?"] },
];

/** Keys that cannot be changed. */
export const FIXED = [
  { group: "Answer", title: "Choose that class (0 is the tenth)", keys: ["1 … 9", "0"] },
  { group: "Answer", title: "Choose class 11 to 20", keys: ["Shift + 1 … 0"] },
  { group: "Several at once", title: "Mark this box as no object, or unmark it", keys: ["1 … 9", "0", "-", "="] },
  { group: "Several at once", title: "Go to another box; mark it", keys: ["←", "↑", "→", "↓", "Space"] },
  { group: "Several at once", title: "Ask about this box separately", keys: ["Shift + its key", "/"] },
  { group: "Several at once", title: "Answer all", keys: ["Enter"] },
  { group: "Several at once", title: "Back to single questions", keys: ["Esc"] },
  { group: "Boxes", title: "Move the box by 1 pixel (with Shift by 10)", keys: ["←", "↑", "→", "↓"] },
  { group: "Boxes", title: "Next box, then the buttons", keys: ["Tab"] },
  { group: "Boxes", title: "Deselect the box", keys: ["Esc"] },
  { group: "View", title: "Pan", keys: ["Space + drag", "middle button"] },
  { group: "View", title: "Zoom at the pointer", keys: ["wheel"] },
  { group: "Boxes", title: "Redraw the selected box", keys: ["Shift + drag"] },
];

const RESERVED = ["Tab", "Escape", "ArrowLeft", "ArrowUp", "ArrowRight", "ArrowDown"];
const KEPT = "keys";

/** @type {Record<string, string[]>} */
let changed = recall(KEPT, {});

/** @param {string} id @returns {string[]} */
export const keysOf = (id) => changed[id] ?? ACTIONS.find((one) => one.id === id)?.keys ?? [];

/** The name of the pressed key, or null if it is left to the browser. @param {KeyboardEvent} event */
export function keyName(event) {
  if ((event.ctrlKey || event.altKey || event.metaKey) && !event.getModifierState("AltGraph")) return null;
  const key = event.key;
  if (["Shift", "Control", "Alt", "Meta", "AltGraph", "CapsLock", "Dead", "Process", "Unidentified"].includes(key))
    return null;
  if (key === "/" || key === "?" || key === "+" || key === "=" || key === "-") return key;
  const digit = /^Digit(\d)$/.exec(event.code) ?? (/^\d$/.test(key) ? [key, key] : null); // by position: AZERTY types digits with Shift
  if (digit) return event.shiftKey && event.code.startsWith("Digit") ? `Shift+${digit[1]}` : digit[1];
  if (key === " ") return "Space";
  if (/^\p{L}$/u.test(key)) return event.shiftKey ? `Shift+${key.toUpperCase()}` : key.toLowerCase();
  if (key.length > 1 && event.shiftKey) return `Shift+${key}`;
  return key;
}

/** The id of a key's action, or null. @param {string} key */
export const actionOf = (key) => ACTIONS.find((one) => keysOf(one.id).includes(key))?.id ?? null;

/** A key as shown on buttons and in the list of shortcuts. @param {string} key */
export function shown(key) {
  if (key === "+") return key;
  const names = {
    Shift: "⇧",
    Enter: "⏎",
    Space: "Space",
    Delete: "Del",
    Backspace: "⌫",
    ArrowLeft: "←",
    ArrowRight: "→",
    ArrowUp: "↑",
    ArrowDown: "↓",
  };
  return key
    .split("+")
    .map((part) => names[/** @type {keyof typeof names} */ (part)] ?? (part.length > 1 ? part : part.toUpperCase()))
    .join(" ");
}

/** The first key of an action, for hints. @param {string} id */
export const hint = (id) => (keysOf(id)[0] ? shown(keysOf(id)[0]) : "");

/**
 * Assigns one key to an action. Returns an error message if that is not possible.
 * @param {string} id @param {KeyboardEvent} event @returns {string | null}
 */
export function rebind(id, event) {
  const key = keyName(event);
  if (key === null)
    return event.ctrlKey || event.altKey || event.metaKey
      ? "Combinations with Ctrl, Alt or Cmd are reserved for the browser."
      : "Press a key.";
  if (/^F\d+$/.test(key)) return `${key} is reserved for the browser.`;
  if (RESERVED.includes(key) || RESERVED.includes(key.replace("Shift+", ""))) return `${key} cannot be reassigned.`;
  if (/^(Shift\+)?\d$/.test(key)) return "Digits choose classes.";
  const other = ACTIONS.find((one) => one.id !== id && keysOf(one.id).includes(key));
  if (other) return `${shown(key)} is already used for “${other.title}”. Change that one first.`;
  changed = { ...changed, [id]: [key] };
  remember(KEPT, changed);
  return null;
}

export function resetKeys() {
  changed = {};
  forget(KEPT);
}

/** @param {EventTarget | null} target */
const typing = (target) =>
  target instanceof HTMLElement &&
  (target.isContentEditable || ["INPUT", "TEXTAREA", "SELECT"].includes(target.tagName));

/** @param {EventTarget | null} target */
const pressable = (target) =>
  target instanceof HTMLElement && target.closest("button, a, summary, [role=button]") !== null;

/**
 * Listens for keys. `on` maps the ids of actions to functions. `on.digit(n)` receives 1 to 20 and `on.arrow(dx, dy)` pixels;
 * `on.tab(step)` returns whether it used the key. `on.grid_key(key, event)` sees every key first, and returns whether it used it. Space acts when it is released, because holding it pans.
 * @param {Record<string, (...args: any[]) => any>} on
 */
export function listenToKeys(on) {
  const space = { held: false, used: false };

  /** @param {KeyboardEvent} event */
  const elsewhere = (event) =>
    event.defaultPrevented ||
    event.isComposing ||
    typing(event.target) ||
    document.querySelector("dialog[open]") !== null;

  addEventListener("keydown", (event) => {
    if (elsewhere(event)) return;
    const key = keyName(event);
    if (key === null) return;
    if (on.grid_key(key, event)) return event.preventDefault();
    if ((key === "Enter" || key === "Space") && pressable(event.target)) return;
    if (key === "Space") {
      event.preventDefault();
      if (!event.repeat) Object.assign(space, { held: true, used: false });
      return;
    }
    if (run(key, event.repeat, event)) event.preventDefault();
  });
  addEventListener("keyup", (event) => {
    if (event.key !== " " || !space.held) return;
    space.held = false;
    if (!space.used && !elsewhere(event)) run("Space", false, event);
  });
  addEventListener("blur", () => (space.held = false));

  /** @param {string} key @param {boolean} repeated @param {KeyboardEvent} event */
  function run(key, repeated, event) {
    if (key === "Escape") return on.escape();
    if (key === "Tab" || key === "Shift+Tab") return on.tab(key === "Tab" ? 1 : -1, event);
    const arrow = /^(Shift\+)?Arrow(Left|Right|Up|Down)$/.exec(key);
    if (arrow) {
      const step = arrow[1] ? 10 : 1;
      const [dx, dy] = { Left: [-step, 0], Right: [step, 0], Up: [0, -step], Down: [0, step] }[arrow[2]] ?? [0, 0];
      on.arrow(dx, dy);
      return true;
    }
    const digit = /^(Shift\+)?(\d)$/.exec(key);
    const action = ACTIONS.find((one) => keysOf(one.id).includes(key));
    if (!digit && !action) return false;
    if (repeated && !action?.repeats) return true; // a key held down must not answer several questions
    if (digit) on.digit((Number(digit[2]) || 10) + (digit[1] ? 10 : 0));
    else if (action) on[action.id]?.();
    return true;
  }

  return { panning: () => space.held, panned: () => (space.used = true) };
}
