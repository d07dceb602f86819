/** A short tour for a person without any answer: what is asked, how to answer, how to undo, and where the progress is. */

import { el, replace } from "./dom.js";
import { hint } from "./keys.js";
import { recall, remember } from "./local.js";
import { byTouch } from "./question.js";

/** @typedef {{anchor: string, text: string}} Stop  a sentence about the element it is anchored to */

const KEPT = "tour";
const GAP = 10;

/** The stops of the tour. @param {boolean} whole is the question about a whole image? @param {boolean} touch @returns {Stop[]} */
export function stopsOf(whole, touch) {
  const key = (/** @type {string} */ action) => (touch ? "" : ` (${hint(action)})`);
  const answers = whole
    ? `Draw a box around each object with one drag and choose its class, then complete the photo${key("yes")}.`
    : `Answer with these buttons${touch ? "" : " or the keys on them"}: yes, another class, not an object.`;
  const skip = whole ? "Skip this image" : "Can't tell";
  return [
    { anchor: "#question-bar", text: `This is what the page asks about the ${whole ? "photo" : "box in the photo"}.` },
    { anchor: "#bottom", text: answers },
    {
      anchor: "[data-testid=undo]",
      text: `Undo${key("undo")} takes back any answer, and “${skip}”${key("cannot_tell")} passes over what you are not sure of.`,
    },
    {
      anchor: "[data-testid=budget]",
      text: "This is how far you are: after the last answer the detector learns from all of them, and new questions appear.",
    },
  ];
}

/** Has this person given no answer yet? @param {Pick<import("./types.js").State, "people" | "names">} now @param {number} unsent answers */
export const isNew = ({ people, names }, unsent) =>
  unsent === 0 && !people.some(({ name, answers }) => answers > 0 && names.includes(name));

export class Tour {
  /** The stop that is shown, or null. @type {number | null} */
  #at = null;
  /** Is the tour to be shown with the next question? */
  #wanted = false;
  #whole = false;
  #bubble = el("div", { class: "tour", role: "dialog", "aria-label": "Tour", "data-testid": "tour", hidden: true });

  /** @param {{focusPicture: () => void}} page */
  constructor(page) {
    this.page = page;
    document.body.append(this.#bubble);
    addEventListener("resize", () => this.#place());
    addEventListener(
      "keydown",
      (event) => {
        if (event.key !== "Escape" || this.#bubble.hidden || document.querySelector("dialog[open]")) return;
        event.preventDefault();
        this.end();
      },
      { capture: true },
    );
  }

  /** Shows the tour again, with the next question if there is none now. */
  again() {
    this.#at = null;
    this.#wanted = true;
  }

  /**
   * Called whenever the page has changed: begins the tour for a new person, and hides it while there is no question.
   * @param {boolean} asked is a question shown, with its picture? @param {boolean} whole is it about a whole image?
   * @param {boolean} newcomer
   */
  follow(asked, whole, newcomer) {
    if (asked && this.#at === null && (this.#wanted || (newcomer && !recall(KEPT)))) {
      this.#wanted = false;
      this.#whole = whole;
      this.#show(0);
    }
    const hidden = this.#at === null || !asked;
    if (hidden === this.#bubble.hidden) return;
    this.#bubble.hidden = hidden;
    this.#place();
  }

  /** Ends the tour for good in this browser. */
  end() {
    remember(KEPT, true);
    this.#at = null;
    this.#bubble.hidden = true;
    this.#place();
    this.page.focusPicture();
  }

  get #stops() {
    return stopsOf(this.#whole, byTouch());
  }

  /** @param {number} at */
  #show(at) {
    this.#at = at;
    const last = at === this.#stops.length - 1;
    const next = el(
      "button",
      { class: "primary", "data-testid": "tour-next", onclick: () => (last ? this.end() : this.#show(at + 1)) },
      last ? "Done" : "Next",
    );
    const skip = el(
      "button",
      { class: "link", "data-testid": "tour-skip", onclick: () => this.end() },
      "Skip the tour",
    );
    replace(
      this.#bubble,
      el("p", { id: "tour-text", text: this.#stops[at].text }),
      el(
        "p",
        { class: "tour-buttons" },
        el("small", { text: `${at + 1} of ${this.#stops.length}` }),
        !last && skip,
        next,
      ),
    );
    this.#bubble.setAttribute("aria-describedby", "tour-text");
    this.#bubble.hidden = false;
    this.#place();
    next.focus({ preventScroll: true });
  }

  /** Places the bubble below the element it explains, or above it in the lower half of the window. */
  #place() {
    for (const old of document.querySelectorAll(".explained")) old.classList.remove("explained");
    if (this.#at === null || this.#bubble.hidden) return;
    const anchor = document.querySelector(this.#stops[this.#at].anchor);
    const found = anchor?.getBoundingClientRect();
    anchor?.classList.add("explained");
    const { left } = found?.width ? found : { left: innerWidth / 2 };
    // It must not cover the other buttons.
    const { top, bottom } = (anchor?.closest("#bottom") ?? anchor ?? document.body).getBoundingClientRect();
    const { offsetWidth, offsetHeight } = this.#bubble;
    const below = bottom + GAP + offsetHeight < innerHeight;
    this.#bubble.style.left = `${Math.max(GAP, Math.min(left, innerWidth - offsetWidth - GAP))}px`;
    this.#bubble.style.top = `${below ? bottom + GAP : Math.max(GAP, top - GAP - offsetHeight)}px`;
  }
}
