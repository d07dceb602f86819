/** Measures the time that a person spends on a question. It pauses while the tab is hidden. */

let spent = 0;
let since = performance.now();
let running = !document.hidden;

document.addEventListener("visibilitychange", () => {
  if (document.hidden && running) spent += performance.now() - since;
  running = !document.hidden;
  since = performance.now();
});

export function restart() {
  spent = 0;
  since = performance.now();
}

/** Milliseconds since the last lap or restart. */
export function lap() {
  const total = Math.round(spent + (running ? performance.now() - since : 0));
  restart();
  return total;
}
