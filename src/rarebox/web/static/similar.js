/** Find more like this: asks for boxes like an example and shows what is looked for, until none is left. */

import { post, Refused } from "./api.js";
import { byId, counted, el, icon, replace, setText } from "./dom.js";
import { notify } from "./notices.js";
import { accept, className, state } from "./state.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Search} Search */
/** @typedef {{label: number | null, image?: number, box?: import("./types.js").Box}} Example  a class, or a box and the class to offer */

/** @param {Search} search */
const likeWhat = ({ label }) => (label === null ? "the chosen box" : `“${className(label)}”`);

/** What is looked for, and how many boxes are left. @param {Search} search */
export const inWords = (search) => `More like ${likeWhat(search)}: ${search.left} to go`;

/**
 * What to say about a search that is over, or "". A new cycle is reported anyway.
 * @param {State} now @param {State | null} before @param {boolean} stopped by this person, just now
 */
export function ended(now, before, stopped) {
  const was = before?.search;
  if (!was || now.search || stopped || now.cycle !== before.cycle) return "";
  if (now.server !== before.server)
    return `The server was restarted and no longer looks for more like ${likeWhat(was)}.`;
  return `That was all like ${likeWhat(was)} for now. Press the button again to look for more.`;
}

/** @param {() => void} changed the questions come in another order now */
export function makeSearch(changed) {
  let stopped = false;

  /** @param {string} path @param {object} body @returns {Promise<boolean>} whether the server did it */
  async function send(path, body) {
    try {
      accept(await post(path, body));
      changed();
      return true;
    } catch (error) {
      const sentence = /** @type {Error} */ (error).message || "The request failed.";
      notify(sentence, error instanceof Refused ? "news" : "bad"); // a refusal says what to do instead
      return false;
    }
  }

  async function stop() {
    stopped = true;
    await send("/api/search/stop", {});
    stopped = false;
  }

  /** @param {Example} example */
  async function start(example) {
    if (!(await send("/api/search", example))) return;
    const found = state()?.search;
    if (found) notify(`${counted(found.left, "box", "boxes")} like ${likeWhat(found)} come next.`, "good");
  }

  /** Looks for more of a class, or stops doing so. @param {number} label */
  const toggle = (label) => (state()?.search?.label === label ? stop() : start({ label }));

  // Made once: a button that is replaced while it is pressed hears no click.
  const words = el("span");
  const button = el("button", { class: "link", text: "Stop", "data-testid": "stop-search", onclick: stop });

  /** @param {State} now @param {State | null} before */
  function update(now, before) {
    const sentence = ended(now, before, stopped);
    if (sentence) notify(sentence, "news");
    const place = byId("search");
    place.hidden = !now.search;
    if (!place.childElementCount) replace(place, icon("search"), words, button);
    if (now.search) setText(words, inWords(now.search));
  }

  return { start, toggle, update };
}
