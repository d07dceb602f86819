/** Boxes of one class that are checked at once: their keys, their places and what each mark answers. Pure functions. */

/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./steps.js").Content} Content */
/** @typedef {"right" | "wrong" | "separate"} Verdict  separate: the box is asked about on its own */

/** The key of each box. */
export const KEYS = ["1", "2", "3", "4", "5", "6", "7", "8", "9", "0", "-", "="];
const CODES = KEYS.map((key) => ({ "-": "Minus", "=": "Equal" })[key] ?? `Digit${key}`);

/** The box of a pressed key, by its position on the keyboard; -1 if it has none. @param {{key: string, code: string}} event */
export const placeOf = ({ key, code }) => (CODES.includes(code) ? CODES.indexOf(code) : KEYS.indexOf(key));

/** The mark after a press: the same press again takes it back. @param {Verdict} now @param {Verdict} pressed @returns {Verdict} */
export const toggled = (now, pressed) => (now === pressed ? "right" : pressed);

/** The number of columns that makes the boxes largest. @param {number} count @param {{width: number, height: number}} frame */
export function columnsFor(count, { width, height }) {
  const side = (/** @type {number} */ columns) => Math.min(width / columns, height / Math.ceil(count / columns));
  return [3, 4, 5, 6].reduce((best, columns) => (side(columns) > side(best) ? columns : best));
}

/** The box that an arrow key leads to. @param {number} place @param {string} arrow @param {number} columns @param {number} count */
export function neighbour(place, arrow, columns, count) {
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[arrow] ?? 0;
  const next = place + step;
  return next >= 0 && next < count ? next : place;
}

/** The time of the screen, shared evenly over its answers. @param {number} milliseconds @param {number} count */
export const shares = (milliseconds, count) =>
  Array.from({ length: count }, (_, i) => part(milliseconds, i + 1, count) - part(milliseconds, i, count));

/** @param {number} whole @param {number} i @param {number} count */
const part = (whole, i, count) => Math.floor((whole * i) / count);

/** What a mark answers: the label of an unmarked box is the box that was shown. @param {import("./types.js").Box} box @param {Verdict} mark @param {number} label @returns {Content} */
export const contentOf = (box, mark, label) =>
  mark === "right"
    ? { verdict: "object", boxes: [box], labels: [label] }
    : { verdict: "not_an_object", boxes: [], labels: [] };

/** The text of the button that answers them all. @param {Verdict[]} marks */
export function answerText(marks) {
  const count = (/** @type {Verdict} */ mark) => marks.filter((one) => one === mark).length;
  const parts = [
    ["confirm", count("right")],
    ["reject", count("wrong")],
    ["ask about", count("separate")],
  ];
  const words = parts.flatMap(([what, number]) => (number ? `${what} ${number}` : [])).join(", ");
  return words && words[0].toUpperCase() + words.slice(1);
}
