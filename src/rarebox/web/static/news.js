/** Follows the server: new states, new questions, restarts. Keeps the leases of this tab's questions. */

import { listen } from "./api.js";
import { accept, expectAnything } from "./state.js";

/** Seconds after which a page without a question asks for one again. */
const ASK_AGAIN = 8;

/** @param {import("./outbox.js").Outbox} outbox @param {import("./queue.js").Queue} queue */
export function follow(outbox, queue) {
  let broken = false;
  const news = listen({
    state: accept,
    queries: () => outbox.ask(),
    opened: () => {
      expectAnything();
      if (broken) outbox.wake();
      if (broken || !queue.first) outbox.ask();
      broken = false;
    },
    broken: () => {
      if (!broken) outbox.ask(); // finds out whether the server is there
      broken = true;
    },
  });
  // Keeps the leases of a person who thinks for long.
  // Who has nothing to do gets what others leave: nobody tells when a lease ends.
  let asked = Date.now();
  setInterval(() => {
    const pause = queue.first ? queue.first.lease_seconds / 3 : ASK_AGAIN;
    if (document.hidden || Date.now() - asked < 1000 * pause) return;
    asked = Date.now();
    outbox.ask();
  }, 2000);
  return news;
}
