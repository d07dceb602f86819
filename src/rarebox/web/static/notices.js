/** Short sentences over the picture. Bad news stay until they are closed. */

import { byId, el, icon } from "./dom.js";

const STAYS = 4500;
const MOST = 3;

/** @param {string} sentence @param {string} [kind] "", "good", "bad" or "news" @param {{text: string, act: () => void}} [offer] */
export function say(sentence, kind = "", offer) {
  const stack = byId("notices");
  // A passing remark makes way for the next one.
  for (const old of [...stack.children])
    if (old.dataset.sentence === sentence || !["bad", "news"].includes(old.dataset.kind)) old.remove();
  const notice = el(
    "p",
    { class: `notice ${kind}`, "data-testid": "notice", "data-sentence": sentence, "data-kind": kind },
    el("span", { text: sentence }),
  );
  const close = () => notice.remove();
  if (offer) notice.append(el("button", { class: "link", text: offer.text, onclick: () => (close(), offer.act()) }));
  if (kind === "bad")
    notice.append(el("button", { class: "bare", "aria-label": "Close", onclick: close }, icon("close")));
  else setTimeout(close, kind === "news" ? 2 * STAYS : STAYS);
  stack.append(notice);
  while (stack.children.length > MOST) stack.firstChild.remove();
}
