/** Geometry of boxes, in pixels of the original image. Pure functions. */

/** @typedef {import("./types.js").Box} Box */
/** @typedef {{width: number, height: number}} Size */
/** @typedef {"nw" | "n" | "ne" | "e" | "se" | "s" | "sw" | "w"} Handle */

/** The shortest side of a box. */
export const MIN_SIDE = 2;

/** @type {Handle[]} */
export const HANDLES = ["nw", "n", "ne", "e", "se", "s", "sw", "w"];

/** @param {number} value @param {number} low @param {number} high */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));

/** @param {number} value */
const rounded = (value) => Math.round(value * 100) / 100;

/** The box clipped to the image, with ordered corners and sides of at least MIN_SIDE. @param {Box} box @param {Size} size @returns {Box} */
export function tidy([ax, ay, bx, by], size) {
  const [x1, x2] = span(ax, bx, size.width);
  const [y1, y2] = span(ay, by, size.height);
  return [rounded(x1), rounded(y1), rounded(x2), rounded(y2)];
}

/** @param {number} a @param {number} b @param {number} length */
function span(a, b, length) {
  let low = clamp(Math.min(a, b), 0, length);
  let high = clamp(Math.max(a, b), 0, length);
  if (high - low < MIN_SIDE) {
    low = clamp((low + high - MIN_SIDE) / 2, 0, length - MIN_SIDE);
    high = Math.min(low + MIN_SIDE, length);
  }
  return [low, high];
}

/** The box moved by (dx, dy), but not out of the image. @param {Box} box @param {number} dx @param {number} dy @param {Size} size @returns {Box} */
export function moved([x1, y1, x2, y2], dx, dy, size) {
  const sx = clamp(dx, -x1, size.width - x2);
  const sy = clamp(dy, -y1, size.height - y2);
  return [rounded(x1 + sx), rounded(y1 + sy), rounded(x2 + sx), rounded(y2 + sy)];
}

/** The box with one handle dragged to (x, y). @param {Box} box @param {Handle} handle @param {number} x @param {number} y @param {Size} size @returns {Box} */
export function resized([x1, y1, x2, y2], handle, x, y, size) {
  if (handle.includes("w")) x1 = clamp(x, 0, x2 - MIN_SIDE);
  if (handle.includes("e")) x2 = clamp(x, x1 + MIN_SIDE, size.width);
  if (handle.includes("n")) y1 = clamp(y, 0, y2 - MIN_SIDE);
  if (handle.includes("s")) y2 = clamp(y, y1 + MIN_SIDE, size.height);
  return [rounded(x1), rounded(y1), rounded(x2), rounded(y2)];
}

/** The position of a handle. @param {Box} box @param {Handle} handle @returns {[number, number]} */
export function handlePoint([x1, y1, x2, y2], handle) {
  const x = handle.includes("w") ? x1 : handle.includes("e") ? x2 : (x1 + x2) / 2;
  const y = handle.includes("n") ? y1 : handle.includes("s") ? y2 : (y1 + y2) / 2;
  return [x, y];
}

/** @param {Box} box @param {number} x @param {number} y @param {number} [slack] */
export const contains = ([x1, y1, x2, y2], x, y, slack = 0) =>
  x >= x1 - slack && x <= x2 + slack && y >= y1 - slack && y <= y2 + slack;

/** @param {Box} box */
export const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);

/** @param {Box | null} a @param {Box | null} b */
export const same = (a, b) =>
  a === b || (a !== null && b !== null && a.every((value, i) => Math.abs(value - b[i]) < 0.01));

/** Intersection over union. @param {Box} a @param {Box} b */
export function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  if (width <= 0 || height <= 0) return 0;
  return (width * height) / (area(a) + area(b) - width * height);
}

/** The box with a margin that helps to recognise its content. @param {Box} box @param {Size} size @param {number} [share] of the longer side @returns {Box} */
export function withContext([x1, y1, x2, y2], size, share = 0.75) {
  const side = Math.max(x2 - x1, y2 - y1);
  const around = Math.min(0.08 * Math.max(size.width, size.height), 4 * side); // a tiny box must stay visible
  const margin = Math.max(share * side, around, 12);
  return [x1 - margin, y1 - margin, x2 + margin, y2 + margin];
}
