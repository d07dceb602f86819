/**
 * One colour per class, fixed by its index. The first eight are distinguishable with the common kinds of colour blindness
 * (after Okabe and Ito, lightened for photos). Later ones cycle through the hues at two lightness levels.
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

/** The colour of text on a class's colour: all colours above are light enough for black. */
export const ink = "#101214";
