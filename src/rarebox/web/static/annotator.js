/**
 * A person answers questions. The server leases questions to the Queue; the first one is a Task, shown in the Editor with its
 * picture and boxes. Each answer goes through the History, which can undo it, to the Outbox, which sends it.
 */

import { iou } from "./boxes.js";
import { Drafts } from "./drafts.js";
import { Editor } from "./editor.js";
import { History } from "./history.js";
import { SAME_OBJECT } from "./marks.js";
import { Queue } from "./queue.js";
import { classOf, inWords, offered, state } from "./state.js";
import { answerTo, completeImage } from "./steps.js";
import * as stopwatch from "./stopwatch.js";
import { makeTask, redoChange, undoChange } from "./task.js";

/** @typedef {import("./types.js").Answer} Answer */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./steps.js").Content} Content */
/** @typedef {import("./task.js").Task} Task */

/** After so many milliseconds without a key or a movement, nobody is about to press one. */
const LEFT_AFTER = 10_000;

export class Annotator {
  /** Is no question shown, because boxes are checked at once? */
  paused = false;
  /** Has the person just returned to this tab? */
  #returning = false;
  /** Does the question shown wait behind those that come first now? */
  #waits = false;
  /** When the person last pressed a key or moved the pointer. */
  #touched = Date.now();
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #again;

  /**
   * @param {import("./outbox.js").Outbox} outbox @param {import("./view.js").View} view
   * @param {import("./pictures.js").Pictures} pictures @param {import("./editor.js").Page} page
   */
  constructor(outbox, view, pictures, page) {
    this.outbox = outbox;
    this.view = view;
    this.pictures = pictures;
    this.page = page;
    this.queue = new Queue(outbox);
    this.history = new History(outbox, stopwatch.lap);
    this.drafts = new Drafts(outbox.project, outbox.client);
    this.editor = new Editor(outbox, this.history, this.drafts, view, pictures, page);
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      this.#returning = true;
      outbox.ask();
    });
    let pointer = "";
    for (const type of ["keydown", "pointerdown", "pointermove", "wheel"])
      addEventListener(
        type,
        (event) => {
          // Browsers also report a move when the page moves under a pointer at rest.
          const place = event instanceof PointerEvent ? `${event.screenX} ${event.screenY}` : "";
          if (type !== "pointermove" || place !== pointer) this.#touched = Date.now();
          pointer = place || pointer;
        },
        { capture: true, passive: true },
      );
  }

  /** The question shown. */
  get task() {
    return this.editor.task;
  }

  /* ---- questions come and go ---- */

  /** What the server has leased to this tab. @param {Query[]} queries */
  receive(queries) {
    this.queue.receive(queries);
    const task = this.task;
    if (task?.kind === "ask") {
      const newer = this.queue.find(task.query.id);
      if (newer) this.editor.renew(newer);
      // The lease has ended. Replacing the question while a person is about to press a key would put their answer on another
      // box, so the page waits until they return to the tab. Until then, the server refuses answers and the page reports it.
      else if (this.#returning && !task.past.length) this.editor.task = null;
    }
    this.#returning = false;
    if (this.#waits && this.#isOutranked()) {
      this.editor.task = null;
      this.#waits = false;
    }
    this.#showFirst();
  }

  /** A search was begun or stopped: the question shown waits behind those that come first now, unless it was begun. */
  letWait() {
    this.#waits = true;
    this.outbox.ask();
  }

  /** Does another question come first, of those that are looked for or, without a search, of the others? */
  #isOutranked() {
    const { task } = this;
    const { first } = this.queue;
    const idle = task?.kind === "ask" && !task.past.length && first && first.id !== task.query.id;
    return Boolean(idle) && (first?.similarity != null) === Boolean(state()?.search);
  }

  /** Shows the first question if none is shown, or if the one shown gives way to it. */
  #showFirst() {
    if (this.#givesWay()) {
      if (Date.now() - this.#touched > LEFT_AFTER) this.editor.task = null;
      else {
        clearTimeout(this.#again);
        this.#again = setTimeout(() => this.#showFirst(), LEFT_AFTER);
      }
    }
    if (!this.task && this.queue.first && !this.paused) this.#ask(this.queue.first);
    this.#prefetch();
    this.editor.refresh();
  }

  /** Closes the question shown, until `resume`. Its changes are kept. */
  pause() {
    this.editor.finishMoving();
    this.paused = true;
    this.editor.close();
  }

  resume() {
    this.paused = false;
    this.#showFirst();
  }

  /** Whether newer questions wait behind a whole image that nobody has begun: it filled the time of a training. */
  #givesWay() {
    const { task } = this;
    const first = this.queue.first;
    return (
      first !== null && task?.kind === "ask" && !task.query.box && !task.past.length && first.cycle > task.query.cycle
    );
  }

  /** Reports answers that were not saved. @param {{record: import("./outbox.js").Sending, result: import("./types.js").Result}[]} pairs */
  settle(pairs) {
    for (const { record, result } of pairs) {
      if (result.status === "saved") continue;
      const query = this.history.drop(record.item.key)?.query ?? null;
      if (result.status === "rolled_back" && record.aside) continue; // reported before
      const kept = query && !query.box ? this.#keepBoxes(query, record.item, result.current) : "";
      if (!result.current) {
        this.page.notify(`Not saved (${record.what}): ${result.reason ?? "the server refused it."}${kept}`, "bad");
      } else {
        const reason = result.reason ? `${result.reason} ` : "";
        this.page.notify(
          `${reason}The current answer is “${inWords(result.current)}”, by ${result.current.by}. Yours (${record.what}) was not saved.${kept}`,
          "bad",
        );
      }
    }
    this.editor.refresh();
  }

  /**
   * Keeps the boxes of an answer about a whole image that was not saved, as a draft: of the answer that stands instead, if
   * there is one, else of the question. @param {Query} query @param {Pick<Answer, "boxes" | "labels">} own
   * @param {import("./types.js").Standing | null} current @returns {string} what became of the boxes
   */
  #keepBoxes(query, own, current) {
    const drafts = (/** @type {Pick<Answer, "boxes" | "labels">} */ { boxes, labels }) =>
      boxes.map((box, i) => ({ box, label: labels[i], from: null }));
    const theirs = current ? drafts(current) : [];
    const missing = drafts(own).filter(
      ({ box, label }) => !theirs.some((one) => one.label === label && iou(one.box, box) > SAME_OBJECT),
    );
    if (!missing.length) return "";
    const answer = current && {
      ...{ ...current, query: query.id, image: query.image, box: null, guess: null, cycle: query.cycle },
      ...{ milliseconds: 0, at: "" },
    };
    this.drafts.keep({ query, answer, sketch: { box: null, drafts: [...theirs, ...missing], dismissed: [] } });
    return current
      ? ` To add the boxes that only you drew (${missing.length}), open that answer in the list of the last answers.`
      : " Your boxes are kept, in case this question returns.";
  }

  /** Shows a question with its unfinished draft, if any. @param {Query} query */
  #ask(query) {
    this.editor.open(makeTask(query, { sketch: this.drafts.of(query) }));
  }

  #advance() {
    this.#waits = false;
    if (this.task?.kind === "ask") this.queue.remove(this.task.query.id);
    this.editor.close();
    if (this.queue.first) this.#ask(this.queue.first);
    else {
      this.view.show(null, { width: 1, height: 1 });
      this.outbox.ask();
    }
    this.#prefetch();
    this.editor.refresh();
  }

  #prefetch() {
    const shown = this.task ? [this.task.query.image] : [];
    this.pictures.keep([...shown, ...this.queue.images, ...this.history.recent.map((query) => query.image)]);
  }

  /* ---- answers ---- */

  /** Confirms the guess, the selected box or the whole image. */
  yes() {
    const { active, guess, whole } = this.editor;
    if (!this.task) return;
    if (active?.kind === "other") return this.editor.take(active, active.label);
    if (whole) return this.#finishWhole(false);
    if (active?.kind === "label") return this.editor.select(null);
    if (guess === null) return this.page.findClass((chosen) => this.choose(chosen));
    this.#answerBox(guess);
  }

  /** Chooses the class of the selected box, or of the next one. @param {number} label */
  choose(label) {
    if (classOf(label)?.label !== label || !this.task) return;
    if (this.editor.active?.kind !== "asked") return this.editor.setClass(label);
    this.editor.pen = label;
    this.#answerBox(label);
  }

  /** Chooses a class by its digit. @param {number} digit 1 to 20 */
  digit(digit) {
    const one = offered().find((other) => other.label === digit - 1);
    if (one) this.choose(one.label);
    else if (this.task) this.page.notify(`There is no class ${digit}. Press / to find or add one.`);
  }

  notAnObject() {
    const { active, whole } = this.editor;
    if (active?.kind === "asked") return this.#answer({ verdict: "not_an_object", boxes: [], labels: [] });
    if (active) return this.editor.remove();
    if (whole) this.page.notify("Select a box first. If there is nothing to label, press Enter.");
  }

  cannotTell() {
    if (this.task) this.#answer({ verdict: "cannot_tell", boxes: [], labels: [] });
  }

  /** Removes the selected box. */
  remove() {
    if (this.editor.active?.kind !== "asked") return this.editor.remove();
    if (this.task?.kind === "edit") return this.withdraw();
    this.page.notify("This is the box in question. Press X if it is not an object.");
  }

  /** Marks the image as complete: every object has a box. @param {boolean} [deliberate] the button "Nothing to label" was pressed */
  complete(deliberate = false) {
    if (!this.task) return;
    if (this.editor.whole) return this.#finishWhole(deliberate);
    if (this.editor.imageComplete) {
      return this.page.notify("This image is already marked as complete. If you just marked it, press Z to undo.");
    }
    this.history.add(completeImage(this.task.query.image.id));
    this.page.notify("Image marked as complete. Everything without a box counts as background.", "good");
    this.editor.refresh();
  }

  /** @param {boolean} deliberate */
  #finishWhole(deliberate) {
    const task = /** @type {Task} */ (this.task);
    const { drafts } = task.sketch;
    const nameless = drafts.findIndex((draft) => draft.label === null);
    if (nameless >= 0) {
      this.editor.select(`d${nameless}`);
      return this.page.findClass((label) => this.choose(label));
    }
    if (!drafts.length && !deliberate && !task.armed) {
      task.armed = true;
      this.page.notify("No box on this image. Press Enter again if there is nothing to label.");
      return this.editor.refresh();
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
    if (this.editor.pictureStatus !== "ready" && item.verdict !== "cannot_tell") {
      return this.page.notify("Wait for the picture, or press “Can't tell”.");
    }
    this.editor.finishMoving();
    this.history.add(answerTo(task, item));
    if (item.verdict !== "cannot_tell" || task.kind === "edit") this.drafts.forget(task.query, task.answer);
    if (task.kind === "edit") this.leave(true);
    else this.#advance();
  }

  /* ---- old answers ---- */

  /** Shows an old answer on the picture, to be changed. @param {Answer} answer @param {Pick<Query, "labels" | "others" | "complete">} around */
  edit(answer, { labels, others, complete }) {
    this.editor.finishMoving();
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
    if (draft) this.page.notify("Your unfinished change of this answer is restored. Esc discards it.");
    const sketch = draft ?? { box, drafts, dismissed: [] };
    this.editor.open(makeTask(query, { kind: "edit", after: answer.answer, answer, sketch }));
    this.editor.refresh();
  }

  /** Withdraws the old answer and reopens its question. */
  withdraw() {
    if (this.task?.kind === "edit") this.#answer({ verdict: "withdrawn", boxes: [], labels: [] });
  }

  /** Returns from an old answer to the questions. @param {boolean} saved */
  leave(saved) {
    if (this.task?.answer) this.drafts.forget(this.task.query, this.task.answer);
    this.editor.task = null;
    this.#advance();
    this.page.left(saved);
    return true;
  }

  /** Cancels the drawing mode, else deselects the box, else closes the old answer. @returns {boolean} whether it did anything */
  escape() {
    return this.editor.escape() || (this.task?.kind === "edit" && this.leave(false));
  }

  /* ---- undo ---- */

  get canUndo() {
    return Boolean(this.task?.past.length || this.history.last);
  }

  get canRedo() {
    return Boolean(this.task?.future.length || this.history.next);
  }

  /** Undoes the last change of the question shown or, if an action was later, that action. */
  undo() {
    const task = this.task;
    this.editor.finishMoving();
    this.view.mode = "auto";
    if (task && undoChange(task, this.history.last?.at ?? 0)) return this.editor.sketchMoved(task);
    if (task?.kind === "edit") return this.leave(false);
    const entry = this.history.undo();
    if (!entry) return this.page.notify("Nothing left to undo in this tab. The side panel lists the last answers.");
    if (entry.query) {
      const reopened = makeTask(entry.query, { sketch: entry.sketch ?? this.drafts.of(entry.query) });
      this.queue.putFirst(entry.query);
      this.editor.open(reopened);
      this.drafts.keep(reopened);
      this.#prefetch();
      this.editor.refresh();
    } else {
      this.page.notify(`Undone: ${entry.what}.`);
      this.editor.deselect();
    }
  }

  /** Redoes what undo took back. */
  redo() {
    const task = this.task;
    if (task && redoChange(task, this.history.next?.at ?? 0)) return this.editor.sketchMoved(task);
    const entry = this.history.redo();
    if (!entry) return;
    if (entry.query) {
      this.drafts.forget(entry.query);
      this.queue.remove(entry.query.id);
      if (task?.query.id === entry.query.id) this.#advance();
    } else {
      this.page.notify(`Redone: ${entry.what}.`);
    }
    this.editor.refresh();
  }
}
