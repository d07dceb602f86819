/**
 * The picture of the question shown and its boxes: which there are, which one is selected, and how a person changes them.
 * Changes that belong to the question stay in the sketch of its task until the answer. Other changes are saved immediately.
 */

import { iou, moved, same, tidy } from "./boxes.js";
import { recall, remember } from "./local.js";
import { guessOf, inReadingOrder, isComplete, labelsOf, marksOf } from "./marks.js";
import { classOf, isOwn, offered } from "./state.js";
import { correction, newBox } from "./steps.js";
import * as stopwatch from "./stopwatch.js";
import { alter } from "./task.js";

/** @typedef {import("./types.js").Box} Box */
/** @typedef {import("./types.js").Mark} Mark */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./task.js").Sketch} Sketch */
/** @typedef {import("./task.js").Task} Task */

/**
 * What the editor and the annotator call in the page around them.
 * @typedef {object} Page
 * @property {() => void} changed
 * @property {(sentence: string, kind?: string) => void} notify
 * @property {(done: (label: number) => void) => void} findClass
 * @property {(saved: boolean) => void} left  an old answer was closed
 */

/** A box drawn with this IoU or more with the asked box replaces it. */
const SAME_OBJECT = 0.6;
/** Milliseconds after the last arrow key until a moved box is saved. */
const SETTLE = 700;

export class Editor {
  /** @type {Task | null} */
  task = null;
  /** The id of the selected mark. @type {string | null} */
  selected = null;
  /** The class of the next drawn box. @type {number | null} */
  pen = null;
  /** Are all boxes hidden? */
  hidden = false;
  /** Dashed boxes below this score are not shown. */
  threshold = recall("threshold", 0.25);
  /** A saved box that is being moved, not yet sent. @type {{id: string, box: Box, timer: number} | null} */
  #moving = null;
  /** The base of a box that was just drawn. The next class applies to it. @type {string | null} */
  #justDrawn = null;
  #nudged = -Infinity;
  /** The box that was removed last: the next box is the one after it. @type {Box | null} */
  #removed = null;

  /**
   * @param {import("./outbox.js").Outbox} outbox @param {import("./history.js").History} history
   * @param {import("./drafts.js").Drafts} drafts @param {import("./view.js").View} view
   * @param {import("./pictures.js").Pictures} pictures @param {Page} page
   */
  constructor(outbox, history, drafts, view, pictures, page) {
    this.outbox = outbox;
    this.history = history;
    this.drafts = drafts;
    this.view = view;
    this.pictures = pictures;
    this.page = page;
  }

  /* ---- the picture ---- */

  /** @param {Task} task */
  open(task) {
    const { query } = task;
    this.task = task;
    this.hidden = false;
    this.#justDrawn = null;
    this.#removed = null;
    this.selected = this.#home;
    this.view.mode = "auto";
    this.view.fingerDraws = query.box === null;
    if (query.box && query.guess !== null) this.pen = classOf(query.guess)?.label ?? this.pen;
    this.showPicture();
  }

  close() {
    this.task = null;
    this.selected = null;
  }

  /** Shows the picture of the question; if it failed, tries again. */
  showPicture() {
    const task = this.task;
    if (!task) return;
    const picture = this.pictures.again(task.query.image);
    const put = () => {
      if (this.task !== task) return;
      this.view.show(picture.status === "ready" ? picture.img : null, task.query.image);
      this.view.focus(task.sketch.box);
      stopwatch.restart();
      this.refresh();
    };
    put();
    if (picture.status === "loading") picture.ready.then(put);
  }

  get pictureStatus() {
    return this.task ? this.pictures.load(this.task.query.image).status : "loading";
  }

  /** Draws everything again. */
  refresh() {
    const marks = this.marks();
    if (this.selected && this.task && !marks.some((mark) => mark.id === this.selected)) {
      // A box drawn here gets a new id once the server has it.
      const [base, order] = this.selected.split(".");
      const id = `${this.outbox.baseOf(base)}.${order ?? 0}`;
      if (this.#justDrawn === base) this.#justDrawn = this.outbox.baseOf(base);
      if (this.#moving?.id === this.selected) this.#moving.id = id;
      this.selected = marks.some((mark) => mark.id === id) ? id : this.#home;
    }
    const shown = !this.hidden && this.pictureStatus === "ready";
    this.view.render(shown ? this.marks() : [], this.selected);
    this.page.changed();
  }

  toggleHidden() {
    this.hidden = !this.hidden;
    this.refresh();
  }

  /** @param {number} value */
  setThreshold(value) {
    this.threshold = value;
    remember("threshold", value);
    this.refresh();
  }

  fit() {
    this.view.toggleFit(this.active?.box ?? this.task?.sketch.box ?? null);
  }

  /* ---- the boxes ---- */

  /** Is the question about the whole image? */
  get whole() {
    return this.task !== null && this.task.query.box === null;
  }

  /** The class that Enter confirms. */
  get guess() {
    return guessOf(this.task);
  }

  /** Is everything on this image labelled, as far as the page knows? */
  get imageComplete() {
    return this.task !== null && isComplete(this.task.query, this.outbox);
  }

  /** All boxes of the picture, hidden or not. @returns {Mark[]} */
  marks() {
    return this.task ? marksOf(this.task, this.#labels(this.task), this.threshold) : [];
  }

  /** Answered boxes, including one that is being moved. @param {Task} task @returns {Mark[]} */
  #labels(task) {
    const moving = this.#moving;
    const labels = labelsOf(task.query, this.outbox);
    return moving ? labels.map((mark) => (mark.id === moving.id ? { ...mark, box: moving.box } : mark)) : labels;
  }

  /* ---- the selected box ---- */

  /** The default selection. */
  get #home() {
    return this.task?.query.box ? "asked" : null;
  }

  get active() {
    return this.marks().find((mark) => mark.id === this.selected) ?? null;
  }

  /** Is the selected box one that was just drawn? */
  get justDrawn() {
    return this.#justDrawn !== null && this.#justDrawn === this.active?.base;
  }

  /** @param {string | null} id */
  select(id) {
    this.finishMoving();
    if (this.task) this.task.armed = false;
    if (id) this.hidden = false;
    this.selected = id ?? this.#home;
    this.#justDrawn = null;
    this.#removed = null;
    const mark = this.active;
    if (mark) this.view.reveal(mark.box);
    this.refresh();
  }

  /** Takes the newer detections and labels of the question shown. A selected detection stays selected if it is still there. @param {Query} query */
  renew(query) {
    const before = this.active;
    if (this.task) this.task.query = query;
    const after = before && this.marks().find((mark) => mark.kind === before.kind && same(mark.box, before.box));
    if (before?.kind === "other") this.selected = after?.id ?? this.#home;
  }

  /** Selects a box that was clicked. On a whole image, a second click accepts a dashed box, or makes an accepted one dashed. @param {string | null} id */
  click(id) {
    const mark = this.active;
    if (!this.whole || id === null || id !== mark?.id) return this.select(id);
    if (mark.kind === "other") this.take(mark, mark.label);
    else if (mark.kind === "draft" && this.task?.sketch.drafts[orderOf(mark)].from !== null) this.remove();
  }

  /** Returns to the default selection without moving the picture. */
  deselect() {
    this.selected = this.#home;
    this.refresh();
  }

  /** Selects the next box, and the first one after the last. @param {number} step */
  cycle(step) {
    const order = inReadingOrder(this.marks());
    if (!order.length) return;
    const removed = this.#removed;
    const now = order.findIndex((mark) => (removed ? same(mark.box, removed) : mark.id === this.selected));
    this.select(order[(now + step + order.length + (now < 0 && step < 0 ? 1 : 0)) % order.length].id);
  }

  /** Selects the next box. At either end it returns false, so that Tab reaches the buttons. @param {number} step */
  tab(step) {
    const order = inReadingOrder(this.marks());
    const now = order.findIndex((mark) => mark.id === this.selected);
    const next = now < 0 && step < 0 ? -1 : now + step;
    if (next < 0 || next >= order.length) {
      if (this.selected !== this.#home) this.select(null);
      return false;
    }
    this.select(order[next].id);
    return true;
  }

  /** Cancels the drawing mode or deselects the box. @returns {boolean} whether it did anything */
  escape() {
    if (this.view.mode === "auto" && this.selected === this.#home) return false;
    if (this.view.mode === "auto") this.select(null);
    else {
      this.view.mode = "auto";
      this.refresh();
    }
    return true;
  }

  /** Gives the selected box, or the next one that is drawn, its class. @param {number} label */
  setClass(label) {
    const mark = this.active;
    this.pen = label;
    if (mark?.kind === "other") this.take(mark, label);
    else if (mark?.kind === "draft") this.#sketch((sketch) => (sketch.drafts[orderOf(mark)].label = label));
    else if (mark?.kind === "label") {
      const drawn = this.justDrawn;
      this.#correct(mark, { label });
      if (drawn) this.select(null);
    } else this.refresh();
  }

  /** Removes the selected box, unless it is the asked one. */
  remove() {
    const mark = this.active;
    if (!mark || mark.kind === "asked") return;
    if (mark.kind === "draft") this.#sketch((sketch) => sketch.drafts.splice(orderOf(mark), 1));
    else if (mark.kind === "other") this.#sketch((sketch) => sketch.dismissed.push(mark.box));
    else {
      this.#correct(mark, null);
      this.page.notify("Box removed. Press Z to undo.");
    }
    this.select(null);
    this.#removed = mark.box;
  }

  /* ---- drawing and moving ---- */

  /** Makes the next drag draw a new box (D) or replace the selected one (R). @param {"draw" | "redraw"} mode */
  drawNext(mode) {
    if (!this.task) return;
    if (mode === "draw") this.finishMoving();
    this.view.mode = this.view.mode === mode ? "auto" : mode;
    this.refresh();
  }

  /** Takes a box that was drawn. @param {Box} box @param {boolean} again it replaces the selected box */
  draw(box, again) {
    const task = this.task;
    const another = this.view.mode === "draw"; // D was pressed: a second object in the same place
    this.view.mode = "auto";
    if (!task || this.pictureStatus !== "ready") return this.refresh();
    const mark = this.active;
    if (mark && mark.kind !== "other" && again) return this.change(mark.id, box, "end", true);
    if (this.whole) {
      this.#addDraft(box, this.pen, null);
      if (this.pen === null && !offered().length) this.page.findClass((label) => this.setClass(label)); // the first class of all
      return;
    }
    if (task.sketch.box && !another && iou(box, task.sketch.box) > SAME_OBJECT) {
      this.page.notify("This replaces the box in question. To draw a second object here, press D first.");
      return this.change("asked", box, "end", true);
    }
    this.#add(box, this.pen);
  }

  /** Moves or resizes a box. @param {string} id @param {Box} box @param {"start" | "move" | "end"} phase @param {boolean} [atOnce] */
  change(id, box, phase, atOnce = false) {
    if (!this.task || this.pictureStatus !== "ready") return;
    this.hidden = false;
    if (id === "asked" || id.startsWith("d")) {
      const put = (/** @type {Sketch} */ sketch) => {
        if (id === "asked") sketch.box = box;
        else sketch.drafts[orderOf({ id })].box = box;
      };
      if (phase === "start" || atOnce) this.#sketch(put);
      else put(this.task.sketch);
      if (phase === "end") this.drafts.keep(this.task);
    } else {
      clearTimeout(this.#moving?.timer);
      this.#moving = { id, box, timer: 0 };
      if (phase === "end") this.finishMoving();
    }
    this.refresh();
  }

  /** Moves the selected box by pixels. @param {number} dx @param {number} dy */
  nudge(dx, dy) {
    const task = this.task;
    const mark = this.active;
    if (!task || !mark || mark.kind === "other") return;
    const box = moved(mark.box, dx, dy, task.query.image);
    if (mark.kind === "label") {
      this.change(mark.id, box, "move");
      if (this.#moving) this.#moving.timer = window.setTimeout(() => this.finishMoving(), SETTLE);
    } else {
      // Quick key presses are one step of undo.
      const now = performance.now();
      this.change(mark.id, box, now - this.#nudged > SETTLE ? "start" : "move");
      this.#nudged = now;
      this.drafts.keep(task);
    }
    this.view.reveal(box);
  }

  /** Saves the box that is being moved. */
  finishMoving() {
    const moving = this.#moving;
    if (!moving || !this.task) return;
    clearTimeout(moving.timer);
    this.#moving = null;
    const mark = this.#labels(this.task).find((one) => one.id === moving.id);
    if (mark && !same(mark.box, moving.box)) this.#correct(mark, { box: moving.box });
    this.refresh();
  }

  /* ---- boxes become labels ---- */

  /** Turns a dashed box into a label, or into a draft of a whole image. @param {Mark} mark @param {number | null} label */
  take(mark, label) {
    if (label === null) return this.page.findClass((chosen) => this.take(mark, chosen));
    if (this.whole) return this.#addDraft(mark.box, label, mark.box);
    this.#add(mark.box, label);
    this.select(null);
  }

  /** Turns all dashed boxes of a whole image into drafts. */
  takeAll() {
    if (!this.whole || !this.task) return;
    const { image } = this.task.query;
    const others = this.marks().filter((mark) => mark.kind === "other");
    if (!others.length) return;
    this.#sketch(({ drafts }) => {
      for (const mark of others) drafts.push({ box: tidy(mark.box, image), label: mark.label, from: mark.box });
    });
    this.select(null);
  }

  /** @param {Box} box @param {number | null} label @param {Box | null} from */
  #addDraft(box, label, from) {
    const task = /** @type {Task} */ (this.task);
    this.#sketch(({ drafts }) => drafts.push({ box: tidy(box, task.query.image), label, from }));
    this.selected = `d${task.sketch.drafts.length - 1}`;
    this.refresh();
  }

  /** Saves an object that the detector missed. @param {Box} box @param {number | null} label */
  #add(box, label) {
    const task = /** @type {Task} */ (this.task);
    if (this.pictureStatus !== "ready") return;
    if (label === null) return this.page.findClass((chosen) => this.#add(box, chosen));
    const key = this.history.add(newBox(task.query.image, box, label));
    this.selected = `k${key}.0`;
    this.#justDrawn = `k${key}`;
    this.pen = label;
    this.refresh();
  }

  /** Changes one answered box, or removes it (null). @param {Mark} mark @param {{box?: Box, label?: number} | null} to */
  #correct(mark, to) {
    const task = /** @type {Task} */ (this.task);
    this.#moving = null;
    const group = this.#labels(task).filter((one) => one.base === mark.base);
    const own = isOwn(mark.by);
    const entry = correction(task.query.image.id, mark, group, to, own, this.history.drew(mark.base));
    this.history.add(entry, mark.key);
  }

  /* ---- the sketch ---- */

  /** Changes the sketch, as one step of undo. @param {(sketch: Sketch) => void} change */
  #sketch(change) {
    const task = /** @type {Task} */ (this.task);
    alter(task, change);
    this.drafts.keep(task);
    this.refresh();
  }

  /** Shows the sketch that undo or redo restored. @param {Task} task */
  sketchMoved(task) {
    if (!this.active) this.selected = this.#home;
    this.drafts.keep(task);
    this.refresh();
  }
}

/** The place of a draft or a detection in its list. @param {Pick<Mark, "id">} mark */
const orderOf = (mark) => Number(mark.id.slice(1));
