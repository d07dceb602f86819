/**
 * Up to twelve boxes that the detector takes for one class, checked at once: a person marks those without an object and answers them all.
 * They are ordinary questions: each is answered, undone and corrected like one that was shown by itself.
 */

import { byId, el, icon, replace, setText } from "./dom.js";
import { crop } from "./crop.js";
import { answerText, columnsFor, contentOf, KEYS, neighbour, placeOf, shares, toggled } from "./crops.js";
import { actionOf, hint } from "./keys.js";
import { byTouch, showWords } from "./question.js";
import { className, classOf } from "./state.js";
import { answerTo } from "./steps.js";
import * as stopwatch from "./stopwatch.js";
import { makeTask } from "./task.js";

/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./crops.js").Verdict} Verdict */
/** @typedef {{query: Query, box: import("./types.js").Box, mark: Verdict}} Crop  box: as a person has adjusted it */

/** A grid takes no answer for so many milliseconds after it is shown: a second press was meant for the one before. */
const SETTLE = 400;
/** Around each box, as a share of its longer side. */
const MARGIN = 0.3;
/** Actions whose keys keep their meaning. */
const OTHERS = ["grid", "gallery", "panel", "help"];

export class Grid {
  /** What the server offers. @type {import("./types.js").Offer | null} */
  offer = null;
  /** @type {"closed" | "loading" | "shown"} */
  status = "closed";
  /** @type {Crop[]} */
  #crops = [];
  /** When their pictures were all there, or null. @type {number | null} */
  #since = null;
  /** The grid that was answered last, with the keys of its answers. @type {{crops: Crop[], keys: Set<string>} | null} */
  #previous = null;
  #fetching = false;
  #columns = 3;
  #place = byId("grid");

  /** @param {import("./annotator.js").Annotator} annotator @param {import("./editor.js").Page} page */
  constructor(annotator, page) {
    this.annotator = annotator;
    this.page = page;
    this.buttons = this.#makeButtons();
    new ResizeObserver(() => this.open && this.#draw()).observe(this.#place);
  }

  get open() {
    return this.status !== "closed";
  }

  /** Can boxes be checked at once now? */
  get offered() {
    return this.offer !== null && this.annotator.task?.kind !== "edit";
  }

  /* ---- grids come and go ---- */

  /** Opens a grid, or returns to single questions. */
  toggle() {
    if (this.open) this.leave();
    else if (this.offered) this.#next();
    else this.page.notify("There are too few likely boxes of one class to check several at once.");
  }

  /** Shows the next grid once the server has all answers, so that it gives out none of their questions again. */
  #next() {
    this.annotator.queue.pinned = [];
    this.status = "loading";
    this.#show([]);
    this.annotator.pause();
    this.settle();
  }

  /** Some answers were settled. */
  settle() {
    if (this.status === "loading" && !this.#fetching && !this.annotator.outbox.waiting.length) this.#fetch();
  }

  async #fetch() {
    const { outbox, queue } = this.annotator;
    this.#fetching = true;
    const { queries, problem } = await outbox.grid();
    this.#fetching = false;
    queue.add(queries);
    if (this.status !== "loading") return outbox.release(queue.spare(queries));
    if (!queries.length) {
      this.leave();
      const none = "There are too few boxes left to check several at once. Here is the next question.";
      return this.page.notify(problem ?? none, problem ? "bad" : undefined);
    }
    const { drafts } = this.annotator;
    this.#show(
      queries.flatMap((query) => {
        const box = drafts.of(query)?.box ?? query.box;
        return box ? [{ query, box, mark: "right" }] : [];
      }),
    );
  }

  /** @param {Crop[]} crops */
  #show(crops) {
    if (crops.length) this.status = "shown";
    this.#crops = crops;
    this.#draw();
    this.page.changed();
    this.#focus(0);
  }

  /** Returns to single questions. Unanswered boxes go back to the server, except those that come next anyway. */
  leave() {
    if (!this.open) return;
    this.#close();
    const { outbox, queue } = this.annotator;
    outbox.release(queue.spare(this.#crops.map(({ query }) => query)));
    this.annotator.resume();
    byId("stage").focus({ preventScroll: true });
  }

  #close() {
    this.status = "closed";
    this.#previous = null;
    replace(this.#place);
  }

  /* ---- marks and answers ---- */

  /** @param {number} place @param {Verdict} pressed */
  mark(place, pressed) {
    const one = this.#crops[place];
    if (!one) return;
    one.mark = toggled(one.mark, pressed);
    this.#showMarks();
  }

  /** Answers all boxes: confirms the unmarked ones and rejects the marked ones. */
  answer() {
    if (this.status !== "shown" || this.#since === null || Date.now() - this.#since < SETTLE) return;
    const { history, drafts, queue } = this.annotator;
    const answered = this.#crops.filter(({ mark }) => mark !== "separate");
    const times = shares(stopwatch.lap(), answered.length);
    const keys = answered.map(({ query, box, mark }, i) => {
      const content = contentOf(box, mark, classOf(query.guess)?.label ?? query.guess ?? 0);
      drafts.forget(query);
      queue.remove(query.id);
      return history.add(answerTo(makeTask(query), content), null, times[i]);
    });
    const separate = this.#crops.flatMap(({ query, mark }) => (mark === "separate" ? query : []));
    if (separate.length) return this.#askAbout(separate);
    this.#previous = { crops: this.#crops, keys: new Set(keys) };
    this.#next();
  }

  /** Shows these questions one by one, then the next grid. @param {Query[]} queries */
  #askAbout(queries) {
    this.#close();
    for (const query of queries.toReversed()) this.annotator.queue.putFirst(query);
    this.annotator.queue.pinned = queries.map((query) => query.id);
    this.annotator.resume();
  }

  /** Shows the next grid once the separate questions are answered. */
  follow() {
    const { queue } = this.annotator;
    if (queue.pinned.length && !queue.pinned.some((id) => queue.find(id))) this.#next();
  }

  /** Returns to single questions if no grid can be fetched: the answers are kept. @param {string} status of the outbox */
  hear(status) {
    if (this.status === "loading" && ["offline", "signed-out"].includes(status)) this.leave();
  }

  /** Takes all answers of the last grid back and shows it again; without one, undoes the last answer. */
  undo() {
    const { history, outbox, queue } = this.annotator;
    const { crops = [], keys = new Set() } = this.#previous ?? {};
    if (!keys.has(history.last?.key)) return (this.leave(), this.annotator.undo());
    const undone = new Set();
    while (keys.has(history.last?.key)) undone.add(history.undo()?.query?.id);
    const back = crops.filter(({ query }) => undone.has(query.id));
    const others = this.#crops.map(({ query }) => query);
    this.#previous = null;
    queue.held = [...back.map(({ query }) => query), ...queue.held];
    outbox.release(queue.spare(others));
    this.#show(back);
  }

  /** A key that was pressed. @param {string} key @param {KeyboardEvent} event @returns {boolean} whether the grid used it */
  key(key, event) {
    if (!this.open || key === "Tab" || key === "Shift+Tab") return false;
    const place = placeOf(event);
    const here = this.#focused;
    const action = actionOf(key);
    if (event.repeat && !key.startsWith("Arrow")) return place >= 0 || action !== null;
    if (key === "Shift+Enter") return !isElsewhere(event.target); // no answer, and no press of a box
    if (key === "Escape") this.leave();
    else if (key.startsWith("Arrow")) this.#focus(neighbour(here, key, this.#columns, this.#crops.length));
    else if (key === "/") this.mark(here, "separate");
    else if (place >= 0) this.mark(place, event.shiftKey ? "separate" : "wrong");
    else if (key === "Space" || (action === "yes" && isElsewhere(event.target))) return !isButton(event.target);
    else if (action === "yes") this.answer();
    else if (action === "undo") this.undo();
    else return action !== null && !OTHERS.includes(action);
    return true;
  }

  /* ---- what is shown ---- */

  /** Shows the question and the buttons. */
  show() {
    this.#place.hidden = !this.open;
    byId("grid-answers").hidden = !this.open;
    if (!this.open) return;
    const label = this.#crops[0]?.query.guess ?? this.offer?.label ?? null;
    const how = byTouch()
      ? "Tap a box that shows no object. “?” asks about a box separately: another class, a poor box, or you can't tell. Then answer all."
      : `Click a box that shows no object, or press its key. “?” asks about a box separately: another class, a poor box, or you can't tell. ${hint("yes")} answers all.`;
    showWords({ before: "Is each of these a correct box of ", label, after: "?", reason: how });
    const ready = this.status === "shown" && this.#since !== null;
    setText(text(this.buttons.answer), answerText(this.#crops.map(({ mark }) => mark)) || "Loading …");
    this.buttons.answer.disabled = !ready;
    this.buttons.undo.disabled = !this.annotator.history.last;
  }

  /** Draws the crops, as large as the frame allows. */
  #draw() {
    const gap = 8;
    const { clientWidth, clientHeight } = this.#place;
    const frame = { width: clientWidth - gap, height: clientHeight - gap };
    if (this.#crops.length && frame.width > 0) this.#columns = columnsFor(this.#crops.length, frame);
    const width = Math.floor(frame.width / this.#columns - gap);
    const height = Math.floor(frame.height / Math.ceil(this.#crops.length / this.#columns) - gap);
    const here = this.#focused;
    const focused = this.#place.contains(document.activeElement);
    this.#place.style.gridTemplateColumns = `repeat(${this.#columns}, ${width}px)`;
    const loading = this.status === "loading" && el("p", { class: "loading", text: "Loading the next boxes …" });
    if (!this.#crops.length) return replace(this.#place, loading);
    replace(this.#place, ...this.#crops.map((one, i) => this.#tile(one, i, { width, height })));
    this.#showMarks();
    if (focused) this.#focus(here);
    this.#load();
  }

  /** @param {Crop} crop @param {number} i @param {{width: number, height: number}} size */
  #tile({ query, box }, i, size) {
    const boxes = [{ box, label: query.guess }];
    const wrong = el(
      "button",
      { class: "tile", "data-testid": "crop", "aria-keyshortcuts": KEYS[i], onclick: () => this.mark(i, "wrong") },
      crop(query.image, box, boxes, size, MARGIN),
      el("kbd", { text: KEYS[i] }),
    );
    const separate = el(
      "button",
      {
        ...{ class: "separate", "data-testid": "separate", tabindex: -1, title: "Ask about this box separately (/)" },
        ...{ "aria-label": `Ask about box ${i + 1} separately`, onclick: () => this.mark(i, "separate") },
      },
      icon("unsure"),
    );
    wrong.addEventListener("focus", () => this.#rove(i));
    return el("div", { class: "crop-card" }, wrong, separate);
  }

  /** Waits for all pictures. A box whose picture cannot be shown is asked about separately. */
  async #load() {
    const drawn = [...this.#place.querySelectorAll("img")];
    this.#since = null;
    for (const img of drawn) img.loading = "eager";
    const loaded = await Promise.allSettled(drawn.map((img) => img.decode()));
    if (!drawn[0]?.isConnected) return; // drawn again, or left
    loaded.forEach(({ status }, i) => status === "rejected" && (this.#crops[i].mark = "separate"));
    this.#since = Date.now();
    stopwatch.restart();
    this.#showMarks();
  }

  #showMarks() {
    [...this.#place.children].forEach((card, i) => {
      const { query, mark } = this.#crops[i];
      const [wrong, separate] = card.children;
      card.className = `crop-card ${mark}`;
      const said = { right: "", wrong: ", no object", separate: ", asked about separately" }[mark];
      wrong.setAttribute("aria-label", `Box ${i + 1}: ${className(query.guess)}, ${query.image.name}${said}`);
      wrong.setAttribute("aria-pressed", String(mark === "wrong"));
      separate.setAttribute("aria-pressed", String(mark === "separate"));
    });
    this.show();
  }

  get #tiles() {
    return /** @type {HTMLElement[]} */ ([...this.#place.querySelectorAll(".tile")]);
  }

  /** The box that has, or had last, the keyboard focus. */
  get #focused() {
    return Math.max(
      0,
      this.#tiles.findIndex((tile) => tile.tabIndex === 0),
    );
  }

  /** @param {number} place */
  #focus(place) {
    this.#rove(place);
    this.#tiles[place]?.focus({ preventScroll: true });
  }

  /** Only one box is a stop of the Tab key; arrows lead to the others. @param {number} place */
  #rove(place) {
    this.#tiles.forEach((tile, i) => (tile.tabIndex = i === place ? 0 : -1));
  }

  #makeButtons() {
    const answer = button("grid_answer", "yes", "check", "Confirm", () => this.answer(), "primary");
    const undo = button("grid_undo", "undo", "undo", "Undo", () => this.undo());
    const leave = button("grid_leave", "grid", "close", "One at a time", () => this.leave());
    byId("grid-answers").append(
      el("div", { class: "main-answers" }, answer),
      el("div", { class: "minor-answers" }, undo, leave),
    );
    return { answer, undo };
  }
}

/** @param {string} testid @param {string} action whose key it names @param {import("./dom.js").Icon} glyph @param {string} words @param {() => void} act */
const button = (testid, action, glyph, words, act, kind = "minor") =>
  el(
    "button",
    { class: kind, "data-testid": testid, "data-action": action, onclick: act },
    icon(glyph),
    el("span", { class: "text", text: words }),
    el("kbd"),
  );

/** @param {HTMLElement} node */
const text = (node) => /** @type {Element} */ (node.querySelector(".text"));

/** @param {EventTarget | null} target */
const isButton = (target) => target instanceof HTMLElement && target.closest("button, a") !== null;

/** Is this a button outside the grid, which Enter presses? @param {EventTarget | null} target */
const isElsewhere = (target) => isButton(target) && !(/** @type {HTMLElement} */ (target).closest("#grid"));
