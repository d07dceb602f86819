/**
 * One colour per class, fixed by its index, so that it never changes while people work. The first eight keep apart for the
 * common kinds of colour blindness (after Okabe and Ito, lightened for photos); later ones walk round the hues in two tones.
 */

const FIRST = ["#f5a623", "#4fb3f0", "#19b38a", "#f7e34b", "#5b7cff", "#ff6f3c", "#e07bc0", "#e8e8e8"];

/** @param {number | null} label @returns {string} */
export function colour(label) {
  if (label === null || label < 0) return "#ffffff";
  if (label < FIRST.length) return FIRST[label];
  const hue = (label * 137.508) % 360;
  const light = label % 2 === 0 ? 72 : 56;
  return `hsl(${hue.toFixed(0)} 78% ${light}%)`;
}

/** Black or white, whichever reads better on a class's colour. Every colour above is light enough for black. */
export const ink = "#101214";
