/** How long somebody means to work: a clock that runs while they do, and a word when it is over. Of this tab alone. */

import { el } from "./dom.js";
import { recall, remember } from "./local.js";
import { say } from "./notices.js";

const CHOICES = [10, 20, 30, 45, 60, 90];
/** Seconds without a hand on keys or picture after which nobody is taken to be at work. */
const REST = 60;

/** A row for the side panel. */
export function makeGoal() {
  const kept = recall("goal", { minutes: 0, worked: 0 }, sessionStorage);
  let touched = Date.now();
  for (const kind of ["keydown", "pointerdown", "wheel"])
    addEventListener(kind, () => (touched = Date.now()), { capture: true, passive: true });

  const select = el(
    "select",
    { "aria-label": "How long I mean to work", "data-testid": "goal" },
    el("option", { value: 0, text: "no limit" }),
    ...CHOICES.map((minutes) => el("option", { value: minutes, text: `${minutes} min` })),
  );
  select.value = String(kept.minutes);
  const clock = el("output", { class: "quiet", "data-testid": "goal-clock" });
  const show = () => (clock.textContent = kept.minutes ? `${Math.floor(kept.worked / 60)} of ${kept.minutes} min` : "");
  select.addEventListener("change", () => {
    Object.assign(kept, { minutes: Number(select.value), worked: 0 });
    touched = Date.now(); // a choice from the list is work, too
    remember("goal", kept, sessionStorage);
    show();
  });
  setInterval(() => {
    if (!kept.minutes || document.hidden || document.body.dataset.task === "none" || Date.now() - touched > REST * 1000)
      return;
    kept.worked += 1;
    remember("goal", kept, sessionStorage);
    show();
    if (kept.worked === kept.minutes * 60)
      say(`${kept.minutes} minutes are over. Everything is saved: stop here, or go on.`, "news");
  }, 1000);
  show();
  return el("label", { class: "slider" }, el("span", { text: "stop me after" }), select, clock);
}
