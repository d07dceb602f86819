/** Messages over the picture. Errors stay until they are closed. */

import { byId, el, icon } from "./dom.js";

const STAYS = 4500;
const MOST = 3;

/** @param {string} sentence @param {string} [kind] "", "good", "bad" or "news" */
export function notify(sentence, kind = "") {
  const stack = byId("notices");
  // A new message replaces the previous one, except errors and news.
  for (const old of /** @type {HTMLElement[]} */ ([...stack.children]))
    if (old.dataset.sentence === sentence || !["bad", "news"].includes(old.dataset.kind ?? "")) old.remove();
  const notice = el(
    "p",
    { class: `notice ${kind}`, "data-testid": "notice", "data-sentence": sentence, "data-kind": kind },
    el("span", { text: sentence }),
  );
  const close = () => notice.remove();
  if (kind === "bad")
    notice.append(el("button", { class: "bare", "aria-label": "Close", onclick: close }, icon("close")));
  else setTimeout(close, kind === "news" ? 2 * STAYS : STAYS);
  stack.append(notice);
  while (stack.children.length > MOST) stack.firstChild?.remove();
}
