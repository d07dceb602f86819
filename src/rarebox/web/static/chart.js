/** A line chart of the AP50 of the finished cycles. */

import { el, percent, svg } from "./dom.js";

/** AP50 with its interval, such as "45% (30% to 58%)". @param {import("./types.js").CycleRecord} record */
export function accuracy({ ap50, ap50_interval: interval }) {
  const range = interval ? ` (${percent(interval[0])} to ${percent(interval[1])})` : "";
  return `${percent(ap50 ?? 0)}${range}`;
}

/** @param {import("./types.js").CycleRecord[]} records */
export function apChart(records) {
  const points = records.filter((record) => record.ap50 !== null);
  if (!points.length)
    return el("p", {
      class: "quiet",
      text: records.length ? "Not measured." : "Shown after the first cycle.",
    });
  const [width, height, left, right, top, bottom] = [272, 104, 30, 34, 12, 20];
  const most = Math.max(0.1, ...points.map((point) => point.ap50_interval?.[1] ?? point.ap50 ?? 0));
  const ceiling = Math.min(1, Math.ceil(most * 10 + 0.2) / 10);
  const x = (/** @type {number} */ i) =>
    points.length === 1 ? (left + width - right) / 2 : left + (i * (width - left - right)) / (points.length - 1);
  const y = (/** @type {number} */ ap) => height - bottom - (ap / ceiling) * (height - top - bottom);
  const grid = [0, ceiling / 2, ceiling].flatMap((ap) => [
    svg("line", { class: "grid", x1: left, x2: width - right, y1: y(ap), y2: y(ap) }),
    svg("text", { x: left - 6, y: y(ap) + 3.5, "text-anchor": "end", text: Math.round(ap * 100) }),
  ]);
  const intervals = points.flatMap(({ ap50_interval: interval }, i) =>
    interval ? [svg("line", { class: "interval", x1: x(i), x2: x(i), y1: y(interval[0]), y2: y(interval[1]) })] : [],
  );
  const dots = points.flatMap((point, i) => {
    const dot = svg("circle", { cx: x(i), cy: y(point.ap50 ?? 0), r: 3 });
    dot.append(svg("title", { text: `Cycle ${point.cycle}: AP50 ${accuracy(point)}, ${point.labels} labels` }));
    const every = Math.ceil(points.length / 8);
    const named = i % every === 0 || i === points.length - 1;
    return named ? [dot, svg("text", { x: x(i), y: height - 5, "text-anchor": "middle", text: point.cycle })] : [dot];
  });
  const last = points[points.length - 1];
  return svg(
    "svg",
    {
      class: "chart",
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `AP50 per cycle, last ${accuracy(last)}`,
    },
    ...grid,
    ...intervals,
    svg("polyline", { points: points.map((point, i) => `${x(i)},${y(point.ap50 ?? 0)}`).join(" ") }),
    ...dots,
    svg("text", {
      class: "last",
      x: x(points.length - 1) + 6,
      y: y(last.ap50 ?? 0) + 4,
      text: Math.round(100 * (last.ap50 ?? 0)),
    }),
  );
}
