/** Follows the server's events and renews the leases of this tab's questions. */

import { listen } from "./api.js";
import { accept, acceptAnyVersion } from "./state.js";

/** Seconds after which a page without a question asks again. */
const ASK_AGAIN = 8;

/** @param {import("./outbox.js").Outbox} outbox @param {import("./queue.js").Queue} queue */
export function follow(outbox, queue) {
  let broken = false;
  const news = listen({
    state: accept,
    queries: () => outbox.ask(),
    opened: () => {
      acceptAnyVersion();
      if (broken) outbox.wake();
      if (broken || !queue.first) outbox.ask();
      broken = false;
    },
    broken: () => {
      if (!broken) outbox.ask(); // to find out whether the server is up
      broken = true;
    },
  });
  // Renews the leases while a person thinks. Without a question, asks whether leases of others have expired: the server sends no
  // event for that.
  let asked = Date.now();
  setInterval(() => {
    const pause = queue.first ? queue.first.lease_seconds / 3 : ASK_AGAIN;
    if (document.hidden || Date.now() - asked < 1000 * pause) return;
    asked = Date.now();
    outbox.ask();
  }, 2000);
  return news;
}
