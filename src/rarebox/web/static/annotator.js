/**
 * What a person does with the question shown: answer, correct, draw, undo. The question is a Task; what the person changes on
 * it before answering is its sketch. Each answer, drawn object and correction goes through the History to the Outbox, so that
 * it can be undone. The marks on the picture are made anew from the task and the outbox after each action.
 */

import { iou, moved, same, tidy } from "./boxes.js";
import { Drafts } from "./drafts.js";
import { History } from "./history.js";
import { recall, remember } from "./local.js";
import { guessOf, inReadingOrder, isComplete, labelsOf, marksOf } from "./marks.js";
import { Queue } from "./queue.js";
import { classOf, inWords, offered, state } from "./state.js";
import { answerTo, completeImage, correction, newBox } from "./steps.js";
import * as stopwatch from "./stopwatch.js";
import { alter, makeTask, redoChange, undoChange } from "./task.js";

/** @typedef {import("./types.js").Answer} Answer */
/** @typedef {import("./types.js").Box} Box */
/** @typedef {import("./types.js").Mark} Mark */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./steps.js").Content} Content */
/** @typedef {import("./task.js").Sketch} Sketch */
/** @typedef {import("./task.js").Task} Task */

/** A box drawn with this IoU or more with the asked box replaces it. */
const SAME_OBJECT = 0.6;
/** Milliseconds after the last arrow key until a moved box is saved. */
const SETTLE = 700;

export class Annotator {
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
  /** The base of a box that was just drawn: the next class is meant for it. @type {string | null} */
  #justDrawn = null;
  #nudged = -Infinity;
  #returning = false;

  /**
   * @param {import("./outbox.js").Outbox} outbox @param {import("./view.js").View} view @param {import("./pictures.js").Pictures} pictures
   * @param {{changed: () => void, say: (sentence: string, kind?: string) => void, findClass: (done: (label: number) => void, cancelled?: () => void) => void,
   *   left: (saved: boolean) => void}} page
   */
  constructor(outbox, view, pictures, page) {
    this.outbox = outbox;
    this.view = view;
    this.pictures = pictures;
    this.page = page;
    this.queue = new Queue(outbox);
    this.history = new History(outbox, stopwatch.lap);
    this.drafts = new Drafts(outbox.project, outbox.client);
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      this.#returning = true;
      outbox.ask();
    });
  }

  /* ---- questions come and go ---- */

  /** What the server has leased to this tab. @param {Query[]} queries */
  receive(queries) {
    this.queue.receive(queries);
    const task = this.task;
    if (task?.kind === "ask") {
      const newer = this.queue.find(task.query.id);
      if (newer) task.query = newer;
      // It is no longer ours. Swapping it under a person's finger would put their answer on another box, so that waits until
      // they come back to the tab; an answer given meanwhile is refused by the server and said so.
      else if (this.#returning && !task.past.length) this.task = null;
    }
    this.#returning = false;
    if (!this.task && this.queue.first) this.#ask(this.queue.first);
    this.#prefetch();
    this.#changed();
  }

  /** Reports answers that were not saved. @param {{record: import("./outbox.js").Sending, result: import("./types.js").Result}[]} pairs */
  settle(pairs) {
    for (const { record, result } of pairs) {
      if (result.status === "saved") continue;
      this.history.drop(record.item.key);
      if (!result.current) {
        this.page.say(`Not saved (${record.what}): ${result.reason ?? "the server refused it."}`, "bad");
      } else {
        const reason = result.reason ? `${result.reason} ` : "";
        this.page.say(
          `${reason}What stands now: ${inWords(result.current)}, by ${result.current.by}. Yours (${record.what}) was not saved over it.`,
          "bad",
        );
      }
    }
    this.#changed();
  }

  /** @param {Task} task */
  #show(task) {
    const { query } = task;
    this.task = task;
    this.hidden = false;
    this.#justDrawn = null;
    this.selected = this.#home;
    this.view.mode = "auto";
    this.view.fingerDraws = query.box === null;
    if (query.box && query.guess !== null) this.pen = classOf(query.guess)?.label ?? this.pen;
    this.showPicture();
  }

  /** Puts the picture of the question up; also the second try after it failed. */
  showPicture() {
    const task = this.task;
    if (!task) return;
    const picture = this.pictures.again(task.query.image);
    const put = () => {
      if (this.task !== task) return;
      this.view.show(picture.status === "ready" ? picture.img : null, task.query.image);
      this.view.focus(task.sketch.box);
      stopwatch.restart();
      this.#changed();
    };
    put();
    if (picture.status === "loading") picture.ready.then(put);
  }

  get pictureStatus() {
    return this.task ? this.pictures.load(this.task.query.image).status : "loading";
  }

  #prefetch() {
    const shown = this.task ? [this.task.query.image] : [];
    this.pictures.keep([...shown, ...this.queue.images, ...this.history.recent.map((query) => query.image)]);
  }

  #advance() {
    if (this.task?.kind === "ask") this.queue.remove(this.task.query.id);
    this.task = null;
    this.selected = null;
    if (this.queue.first) this.#ask(this.queue.first);
    else {
      this.view.show(null, { width: 1, height: 1 });
      this.outbox.ask();
    }
    this.#prefetch();
    this.#changed();
  }

  /** Shows a question, with the draft that was left of it. @param {Query} query */
  #ask(query) {
    this.#show(makeTask(query, { sketch: this.drafts.of(query) }));
  }

  /** Shows an old answer on the picture, to be changed. @param {Answer} answer @param {Pick<Query, "labels" | "others" | "complete">} around */
  edit(answer, { labels, others, complete }) {
    this.#finishMoving();
    const box = answer.box ? (answer.boxes[0] ?? answer.box) : null;
    const drafts = answer.box ? [] : answer.boxes.map((one, i) => ({ box: one, label: answer.labels[i], from: null }));
    const query = {
      ...{ id: answer.query, cycle: answer.cycle, position: 0, image: answer.image, box: answer.box },
      ...{
        guess: answer.guess,
        score: null,
        uncertainty: null,
        reason: "",
        labels,
        others,
        complete,
        lease_seconds: 0,
      },
    };
    const draft = this.drafts.of(query, answer);
    if (draft) this.page.say("Your unfinished change of this answer is back. Esc leaves the answer as it was.");
    const sketch = draft ?? { box, drafts, dismissed: [] };
    this.#show(makeTask(query, { kind: "edit", after: answer.answer, answer, sketch }));
    this.#changed();
  }

  /** Takes the answer being edited out of the labels; its question becomes open again. */
  withdraw() {
    if (this.task?.kind === "edit") this.#answer({ verdict: "withdrawn", boxes: [], labels: [] });
  }

  /** Back from an old answer to the questions. @param {boolean} saved */
  leave(saved) {
    if (this.task?.answer) this.drafts.forget(this.task.query, this.task.answer);
    this.task = null;
    this.#advance();
    this.page.left(saved);
    return true;
  }

  /* ---- what is on the picture ---- */

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

  /** Answered boxes, one of them perhaps under the hand. @param {Task} task @returns {Mark[]} */
  #labels(task) {
    const moving = this.#moving;
    const labels = labelsOf(task.query, this.outbox);
    return moving ? labels.map((mark) => (mark.id === moving.id ? { ...mark, box: moving.box } : mark)) : labels;
  }

  /* ---- the selected box ---- */

  /** What is selected when nothing else is. */
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
    this.#finishMoving();
    if (this.task) this.task.armed = false;
    if (id) this.hidden = false;
    this.selected = id ?? this.#home;
    this.#justDrawn = null;
    const mark = this.active;
    if (mark) this.view.reveal(mark.box);
    this.#changed();
  }

  /** The next box of the picture, round and round. @param {number} step */
  cycle(step) {
    const order = inReadingOrder(this.marks());
    if (!order.length) return;
    const now = order.findIndex((mark) => mark.id === this.selected);
    this.select(order[(now + step + order.length + (now < 0 && step < 0 ? 1 : 0)) % order.length].id);
  }

  /** The same with Tab, but it lets go at either end, so that a keyboard can reach the buttons. @param {number} step */
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

  /** Lets go of whatever is under the hand. */
  escape() {
    if (this.view.mode !== "auto") this.view.mode = "auto";
    else if (this.selected !== this.#home) return this.select(null);
    else if (this.task?.kind === "edit") return this.leave(false);
    else return false;
    this.#changed();
    return true;
  }

  /* ---- answers ---- */

  yes() {
    const mark = this.active;
    if (!this.task) return;
    if (mark?.kind === "other") return this.#take(mark, mark.label);
    if (this.whole) return this.#finishWhole(false);
    if (mark?.kind === "label") return this.select(null);
    if (this.guess === null) return this.page.findClass((chosen) => this.choose(chosen));
    this.#answerBox(this.guess);
  }

  /** A class for the selected box, or for the next one. @param {number} label */
  choose(label) {
    const one = classOf(label);
    if (!one || one.label !== label || !this.task) return;
    const mark = this.active;
    this.pen = label;
    if (mark?.kind === "other") this.#take(mark, label);
    else if (mark?.kind === "draft") this.#sketch((sketch) => (sketch.drafts[orderOf(mark)].label = label));
    else if (mark?.kind === "label") {
      const drawn = this.justDrawn;
      this.#correct(mark, { label });
      if (drawn) this.select(null);
    } else if (mark?.kind === "asked") this.#answerBox(label);
    else this.#changed();
  }

  notAnObject() {
    const mark = this.active;
    if (mark?.kind === "asked") return this.#answer({ verdict: "not_an_object", boxes: [], labels: [] });
    if (mark) return this.remove();
    if (this.whole) this.page.say("Select a box first; if the image holds nothing to label, press Enter.");
  }

  cannotTell() {
    if (this.task) this.#answer({ verdict: "cannot_tell", boxes: [], labels: [] });
  }

  /** Everything on the image has its box. @param {boolean} [deliberate] */
  complete(deliberate = false) {
    const task = this.task;
    if (!task) return;
    if (this.whole) return this.#finishWhole(deliberate);
    if (this.imageComplete) {
      return this.page.say("This image is already marked as complete. Z takes it back if you did it just now.");
    }
    this.history.add(completeImage(task.query.image.id));
    this.page.say("Image marked as complete: what has no box on it counts as background.", "good");
    this.#changed();
  }

  /** @param {boolean} deliberate a button that said "nothing here" was pressed */
  #finishWhole(deliberate) {
    const task = /** @type {Task} */ (this.task);
    const { drafts } = task.sketch;
    const nameless = drafts.findIndex((draft) => draft.label === null);
    if (nameless >= 0) {
      this.select(`d${nameless}`);
      return this.page.findClass((label) => this.choose(label));
    }
    if (!drafts.length && !deliberate && !task.armed) {
      task.armed = true;
      this.page.say("No box on this image. Press Enter again if there is nothing to label.");
      return this.#changed();
    }
    this.#answer({
      verdict: "object",
      boxes: drafts.map((draft) => draft.box),
      labels: drafts.map((draft) => /** @type {number} */ (draft.label)),
    });
  }

  /** @param {number} label */
  #answerBox(label) {
    const box = this.task?.sketch.box;
    if (box) this.#answer({ verdict: "object", boxes: [box], labels: [label] });
  }

  /** Answers the question shown, or changes the old answer. @param {Content} item */
  #answer(item) {
    const task = /** @type {Task} */ (this.task);
    if (this.pictureStatus !== "ready" && item.verdict !== "cannot_tell") {
      return this.page.say("Wait for the picture, or say that you can't tell.");
    }
    this.#finishMoving();
    this.history.add(answerTo(task, item));
    if (item.verdict !== "cannot_tell" || task.kind === "edit") this.drafts.forget(task.query, task.answer);
    if (task.kind === "edit") this.leave(true);
    else this.#advance();
  }

  /* ---- boxes ---- */

  /** A box was drawn. @param {Box} box @param {boolean} again instead of the selected one */
  draw(box, again) {
    const task = this.task;
    const another = this.view.mode === "draw"; // D was pressed: another object, even there
    this.view.mode = "auto";
    if (!task || this.pictureStatus !== "ready") return this.#changed();
    const mark = this.active;
    if (mark && mark.kind !== "other" && again) return this.change(mark.id, box, "end", true);
    if (this.whole) {
      this.#addDraft(box, this.pen, null);
      if (this.pen === null && !offered().length) this.page.findClass((label) => this.choose(label)); // the first class of all
      return;
    }
    if (task.sketch.box && !another && iou(box, task.sketch.box) > SAME_OBJECT) {
      this.page.say("Taken as the asked box. For a second object there, press D before drawing.");
      return this.change("asked", box, "end", true);
    }
    this.#add(box, this.pen);
  }

  /** D: the next drag is a new box, wherever it starts. R: it replaces the selected one. @param {"draw" | "redraw"} mode */
  drawNext(mode) {
    if (!this.task) return;
    if (mode === "draw") this.#finishMoving();
    this.view.mode = this.view.mode === mode ? "auto" : mode;
    this.#changed();
  }

  /** A box is moved or resized. @param {string} id @param {Box} box @param {"start" | "move" | "end"} phase @param {boolean} [atOnce] */
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
      if (phase === "end") this.#finishMoving();
    }
    this.#changed();
  }

  /** Arrow keys. @param {number} dx @param {number} dy */
  nudge(dx, dy) {
    const task = this.task;
    const mark = this.active;
    if (!task || !mark || mark.kind === "other") return;
    const box = moved(mark.box, dx, dy, task.query.image);
    if (mark.kind === "label") {
      this.change(mark.id, box, "move");
      if (this.#moving) this.#moving.timer = window.setTimeout(() => this.#finishMoving(), SETTLE);
    } else {
      // Steps in quick succession are one step of undo.
      const now = performance.now();
      this.change(mark.id, box, now - this.#nudged > SETTLE ? "start" : "move");
      this.#nudged = now;
      this.drafts.keep(task);
    }
    this.view.reveal(box);
  }

  /** Removes the selected box. */
  remove() {
    const task = this.task;
    const mark = this.active;
    if (!task || !mark) return;
    if (mark.kind === "asked") {
      if (task.kind === "edit") return this.withdraw();
      return this.page.say("This box is being asked: X says that it is not an object.");
    }
    if (mark.kind === "draft") this.#sketch((sketch) => sketch.drafts.splice(orderOf(mark), 1));
    else if (mark.kind === "other") this.#sketch((sketch) => sketch.dismissed.push(orderOf(mark)));
    else {
      this.#correct(mark, null);
      this.page.say("Box removed. Z brings it back.");
    }
    this.select(null);
  }

  /** A whole image: all dashed boxes become drafts. */
  takeAll() {
    if (!this.whole || !this.task) return;
    const { image } = this.task.query;
    const others = this.marks().filter((mark) => mark.kind === "other");
    if (!others.length) return;
    this.#sketch(({ drafts }) => {
      for (const mark of others) drafts.push({ box: tidy(mark.box, image), label: mark.label, from: orderOf(mark) });
    });
    this.select(null);
  }

  /** A dashed box becomes an answer, or a draft of a whole image. @param {Mark} mark @param {number | null} label */
  #take(mark, label) {
    if (label === null) return this.page.findClass((chosen) => this.#take(mark, chosen));
    if (this.whole) return this.#addDraft(mark.box, label, orderOf(mark));
    this.#add(mark.box, label);
    this.select(null);
  }

  /** @param {Box} box @param {number | null} label @param {number | null} from */
  #addDraft(box, label, from) {
    const task = /** @type {Task} */ (this.task);
    this.#sketch(({ drafts }) => drafts.push({ box: tidy(box, task.query.image), label, from }));
    this.selected = `d${task.sketch.drafts.length - 1}`;
    this.#changed();
  }

  /** An object that the detector missed: saved at once. @param {Box} box @param {number | null} label */
  #add(box, label) {
    const task = /** @type {Task} */ (this.task);
    if (this.pictureStatus !== "ready") return;
    if (label === null) return this.page.findClass((chosen) => this.#add(box, chosen));
    const key = this.history.add(newBox(task.query.image, box, label));
    this.selected = `k${key}.0`;
    this.#justDrawn = `k${key}`;
    this.pen = label;
    this.#changed();
  }

  /** Changes one answered box, or removes it (null). @param {Mark} mark @param {{box?: Box, label?: number} | null} to */
  #correct(mark, to) {
    const task = /** @type {Task} */ (this.task);
    this.#moving = null;
    const group = this.#labels(task).filter((one) => one.base === mark.base);
    const own = mark.by === state()?.you;
    const entry = correction(task.query.image.id, mark, group, to, own, this.history.drew(mark.base));
    this.history.add(entry, mark.key);
  }

  #finishMoving() {
    const moving = this.#moving;
    if (!moving || !this.task) return;
    clearTimeout(moving.timer);
    this.#moving = null;
    const mark = this.#labels(this.task).find((one) => one.id === moving.id);
    if (mark && !same(mark.box, moving.box)) this.#correct(mark, { box: moving.box });
    this.#changed();
  }

  /** A change before the answer. Undo takes it back first. @param {(sketch: Sketch) => void} change */
  #sketch(change) {
    const task = /** @type {Task} */ (this.task);
    alter(task, change);
    this.drafts.keep(task);
    this.#changed();
  }

  /* ---- undo ---- */

  get canUndo() {
    return Boolean(this.task?.past.length || this.history.last);
  }

  get canRedo() {
    return Boolean(this.task?.future.length || this.history.next);
  }

  undo() {
    const task = this.task;
    this.#finishMoving();
    this.view.mode = "auto";
    if (task && undoChange(task, this.history.last?.at ?? 0)) return this.#sketchMoved(task);
    if (task?.kind === "edit") return this.leave(false);
    const entry = this.history.undo();
    if (!entry) return this.page.say("Nothing left to undo in this tab. The last answers are in the side panel.");
    if (entry.query) {
      const reopened = makeTask(entry.query, { sketch: entry.sketch ?? this.drafts.of(entry.query) });
      this.queue.putFirst(entry.query);
      this.#show(reopened);
      this.drafts.keep(reopened);
      this.#prefetch();
    } else {
      this.page.say(`Taken back: ${entry.what}.`);
      this.selected = this.#home;
    }
    this.#changed();
  }

  redo() {
    const task = this.task;
    if (task && redoChange(task, this.history.next?.at ?? 0)) return this.#sketchMoved(task);
    const entry = this.history.redo();
    if (!entry) return;
    if (entry.query) {
      this.drafts.forget(entry.query);
      this.queue.remove(entry.query.id);
      if (task?.query.id === entry.query.id) this.#advance();
    } else {
      this.page.say(`Done again: ${entry.what}.`);
    }
    this.#changed();
  }

  /** Undo or redo has put another sketch. @param {Task} task */
  #sketchMoved(task) {
    if (!this.active) this.selected = this.#home;
    this.drafts.keep(task);
    this.#changed();
  }

  /* ---- view ---- */

  toggleHidden() {
    this.hidden = !this.hidden;
    this.#changed();
  }

  /** @param {number} value */
  setThreshold(value) {
    this.threshold = value;
    remember("threshold", value);
    this.#changed();
  }

  fit() {
    this.view.toggleFit(this.active?.box ?? this.task?.sketch.box ?? null);
  }

  /** Digits of the classes. @param {number} digit 1 to 20 */
  digit(digit) {
    const one = offered().find((other) => other.label === digit - 1);
    if (one) this.choose(one.label);
    else if (this.task) this.page.say(`There is no class ${digit}. Press / to find or add one.`);
  }

  /** Something outside changed: draw again. */
  refresh() {
    this.#changed();
  }

  #changed() {
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
}

/** The place of a draft or a detection in its list. @param {Pick<Mark, "id">} mark */
const orderOf = (mark) => Number(mark.id.slice(1));
