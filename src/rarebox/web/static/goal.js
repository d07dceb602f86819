/** A timer for a work session in this tab. It runs while the person works and reports when the time is up. */

import { el } from "./dom.js";
import { recall, remember } from "./local.js";
import { notify } from "./notices.js";

const CHOICES = [10, 20, 30, 45, 60, 90];
/** Seconds without input after which the timer pauses. */
const IDLE_AFTER = 60;

/** A row for the side panel. */
export function makeGoal() {
  const kept = recall("goal", { minutes: 0, worked: 0 }, sessionStorage);
  let touched = Date.now();
  for (const kind of ["keydown", "pointerdown", "wheel"])
    addEventListener(kind, () => (touched = Date.now()), { capture: true, passive: true });

  const select = el(
    "select",
    { "aria-label": "Length of the work session", "data-testid": "goal" },
    el("option", { value: 0, text: "no limit" }),
    ...CHOICES.map((minutes) => el("option", { value: minutes, text: `${minutes} min` })),
  );
  select.value = String(kept.minutes);
  const clock = el("output", { class: "quiet", "data-testid": "goal-clock" });
  const show = () => (clock.textContent = kept.minutes ? `${Math.floor(kept.worked / 60)} of ${kept.minutes} min` : "");
  select.addEventListener("change", () => {
    Object.assign(kept, { minutes: Number(select.value), worked: 0 });
    touched = Date.now(); // choosing from the list counts as input
    remember("goal", kept, sessionStorage);
    show();
  });
  setInterval(() => {
    if (
      !kept.minutes ||
      document.hidden ||
      document.body.dataset.task === "none" ||
      Date.now() - touched > IDLE_AFTER * 1000
    )
      return;
    kept.worked += 1;
    remember("goal", kept, sessionStorage);
    show();
    if (kept.worked === kept.minutes * 60)
      notify(`${kept.minutes} minutes are up. Stop here or continue: everything is saved.`, "news");
  }, 1000);
  show();
  return el("label", { class: "slider" }, el("span", { text: "remind me after" }), select, clock);
}
