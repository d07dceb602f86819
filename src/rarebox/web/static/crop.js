/** Thumbnails: the part of a photo around one answer. */

import { withContext } from "./boxes.js";
import { colour } from "./colours.js";
import { el, svg } from "./dom.js";
import { classOf } from "./state.js";

/** @typedef {import("./types.js").Box} Box */

/** The URL of the picture to crop: the small one unless the box is tiny. @param {import("./types.js").Image} image @param {Box | null} box @param {number} width */
function source(image, box, width) {
  const side = box ? Math.max(box[2] - box[0], box[3] - box[1]) : Math.max(image.width, image.height);
  const detail = (side * 320) / Math.max(image.width, image.height); // pixels of the box in the small picture
  return box && detail < width * 0.35 ? image.url : `${image.url}?size=320`;
}

/**
 * @param {import("./types.js").Image} image @param {Box | null} focus the box in the middle; null: the whole image
 * @param {{box: Box, label: number | null, dashed?: boolean}[]} boxes @param {{width: number, height: number}} size in screen pixels
 * @param {number} [margin] around the box, as a share of its longer side
 */
export function crop(image, focus, boxes, { width, height }, margin) {
  const [x1, y1, x2, y2] = focus ? withContext(focus, image, margin) : [0, 0, image.width, image.height];
  const scale = Math.min(width / (x2 - x1), height / (y2 - y1), 8);
  const left = width / 2 - (scale * (x1 + x2)) / 2;
  const top = height / 2 - (scale * (y1 + y2)) / 2;
  const img = el("img", {
    src: source(image, focus, width),
    alt: "",
    loading: "lazy",
    decoding: "async",
    draggable: "false",
  });
  Object.assign(img.style, {
    width: `${image.width * scale}px`,
    height: `${image.height * scale}px`,
    transform: `translate(${left}px, ${top}px)`,
  });
  const rects = boxes.map(({ box, label, dashed }) => {
    const place = {
      x: box[0] * scale + left,
      y: box[1] * scale + top,
      width: (box[2] - box[0]) * scale,
      height: (box[3] - box[1]) * scale,
    };
    return svg(
      "g",
      { class: dashed ? "other" : "label" },
      svg("rect", { class: "casing", ...place }),
      svg("rect", { class: "line", ...place, style: { stroke: colour(classOf(label)?.label ?? label) } }),
    );
  });
  return el(
    "span",
    { class: "crop", style: { width: `${width}px`, height: `${height}px` } },
    img,
    svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height }, ...rects),
  );
}

/** The thumbnail of an answer. @param {import("./types.js").Answer} answer @param {{width: number, height: number}} size */
export function answerCrop(answer, size) {
  const focus = answer.box ? (answer.boxes[0] ?? answer.box) : null;
  const boxes = answer.boxes.map((box, i) => ({ box, label: answer.labels[i] }));
  const asked = answer.box && !boxes.length ? [{ box: answer.box, label: null, dashed: true }] : [];
  return crop(answer.image, focus, [...boxes, ...asked], size);
}
