/**
 * The question at hand and what a person does with it: answer, mend, draw, undo. Everything ends as an Item on the Outbox; what
 * is still on its way is laid over what the server last said, so the picture is always as the person left it.
 */

import { iou, moved, same, tidy } from "./boxes.js";
import { forget, names, recall, remember } from "./local.js";
import { classOf, className, inWords, offered, state } from "./state.js";
import * as stopwatch from "./stopwatch.js";

/** @typedef {import("./types.js").Box} Box */
/** @typedef {import("./types.js").Mark} Mark */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./types.js").Item} Item */
/** @typedef {import("./types.js").Answer} Answer */
/** @typedef {{box: Box, label: number | null, from: number | null}} Draft   from: the dashed box it was taken over from */
/** @typedef {{box: Box | null, drafts: Draft[], dismissed: number[]}} Sketch   what a person may change before answering */

/**
 * @typedef {object} Task
 * @property {"ask" | "edit"} kind      a question of the queue, or an old answer looked at again
 * @property {Query} query
 * @property {number | null} after      the answer that an edit corrects
 * @property {Answer | null} answer
 * @property {Sketch} sketch
 * @property {{sketch: Sketch, at: number}[]} past
 * @property {{sketch: Sketch, at: number}[]} future
 * @property {boolean} armed            "nothing to label here" was said once
 */

/**
 * One step that can be undone: `back` takes it back, `forth` does it again; both refer to the answer with `key`. A step with a
 * `query` was the answer to it, and undoing it shows that question again.
 * @typedef {{key: string, base: string, image: number, query: Query | null, sketch: Sketch | null, back: Step, forth: Step, what: string, at: number}} Entry
 * @typedef {{item: Partial<Item> & {verdict: import("./types.js").Verdict, boxes: Box[], labels: number[]}, refer: boolean, fresh: boolean}} Step
 */

const HISTORY = 40;
const DRAFT_DAYS = 14;
/** Drawn so much over the asked box, a box is meant to replace it. */
const SAME_OBJECT = 0.6;
/** A detection so much on the asked box is the asked box. */
const SAME_DETECTION = 0.8;
const SETTLE = 700;

/** @type {Step["item"]} */
const WITHDRAWN = { verdict: "withdrawn", boxes: [], labels: [] };

/** Does this step put a new box on the image? @param {Step} step */
const draws = (step) => !step.refer && step.item.image !== undefined && !step.item.complete;

export class Annotator {
  /** @type {Task | null} */
  task = null;
  /** Questions leased to this tab, the one shown included. @type {Query[]} */
  held = [];
  /** @type {string | null} */
  selected = null;
  /** The class of the next drawn box. @type {number | null} */
  pen = null;
  hidden = false;
  /** Dashed boxes below this score are not shown. */
  threshold = recall("threshold", 0.25);
  /** @type {Entry[]} */
  #past = [];
  /** @type {Entry[]} */
  #future = [];
  /** A saved box under the hand, not yet sent. @type {{id: string, box: Box, timer: number} | null} */
  #mending = null;
  /** @type {string | null} a box drawn a moment ago, waiting for its class */
  #justDrawn = null;
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
    const past = recall(`${outbox.project}/history`, [], sessionStorage);
    this.#past = Array.isArray(past) ? past : [];
    for (const name of [...names(`${outbox.project}/draft/`), ...names(`${outbox.project}/edit/`)]) {
      if (Date.now() - (recall(name)?.at ?? 0) > DRAFT_DAYS * 864e5) forget(name);
    }
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return;
      this.#returning = true;
      outbox.ask();
    });
  }

  /* ---- the queue ---- */

  /** What the server has leased to this tab. @param {Query[]} queries */
  receive(queries) {
    const reopened = this.held.filter((query) => this.outbox.latest(query.id)?.item.verdict === "withdrawn");
    const fresh = queries.filter((query) => !this.outbox.latest(query.id));
    this.held = [...reopened, ...fresh];
    const task = this.task;
    if (task?.kind === "ask") {
      const newer = this.held.find((query) => query.id === task.query.id);
      if (newer) task.query = newer;
      // It is no longer ours. Swapping it under a person's finger would put their answer on another box, so that waits until
      // they come back to the tab; an answer given meanwhile is refused by the server and said so.
      else if (this.#returning && !task.past.length) this.task = null;
    }
    this.#returning = false;
    if (!this.task && this.held.length) this.#show(this.held[0]);
    this.#prefetch();
    this.#changed();
  }

  /** @param {{record: import("./outbox.js").Sending, result: import("./types.js").Result}[]} pairs */
  settle(pairs) {
    for (const { record, result } of pairs) {
      if (result.status === "saved") continue;
      const gone = (/** @type {Entry} */ entry) => entry.key !== record.item.key;
      this.#past = this.#past.filter(gone);
      this.#future = this.#future.filter(gone);
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
    this.#keepHistory();
    this.#changed();
  }

  #prefetch() {
    const images = this.held.slice(0, 4).map((query) => query.image);
    if (this.task) images.unshift(this.task.query.image);
    for (const entry of this.#past.slice(-2)) if (entry.query) images.push(entry.query.image);
    this.pictures.keep(images);
  }

  /** @param {Query} query @param {{kind?: "ask" | "edit", after?: number | null, answer?: Answer | null, sketch?: Sketch | null}} [how] */
  #show(query, { kind = "ask", after = null, answer = null, sketch = null } = {}) {
    const kept = recall(this.#draftName(query, answer))?.sketch;
    if (kept && answer)
      this.page.say("Your unfinished change of this answer is back. Esc leaves the answer as it was.");
    this.task = {
      kind,
      query,
      after,
      answer,
      armed: false,
      past: [],
      future: [],
      sketch: structuredClone(
        (answer ? (kept ?? sketch) : (sketch ?? kept)) ?? { box: query.box, drafts: [], dismissed: [] },
      ),
    };
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

  #advance() {
    const done = this.task?.kind === "ask" ? this.task.query.id : null;
    this.held = this.held.filter((query) => query.id !== done);
    this.task = null;
    this.selected = null;
    if (this.held.length) this.#show(this.held[0]);
    else {
      this.view.show(null, { width: 1, height: 1 });
      this.outbox.ask();
    }
    this.#prefetch();
    this.#changed();
  }

  /* ---- what is on the picture ---- */

  get whole() {
    return this.task !== null && this.task.query.box === null;
  }

  /** What is selected when nothing else is. */
  get #home() {
    return this.task?.query.box ? "asked" : null;
  }

  /** The class that Enter says yes to. */
  get guess() {
    const answer = this.task?.answer;
    const label = answer
      ? answer.verdict === "object"
        ? (answer.labels[0] ?? null)
        : null
      : (this.task?.query.guess ?? null);
    return classOf(label)?.label ?? label;
  }

  /** All boxes of the picture, hidden or not. @returns {Mark[]} */
  marks() {
    const task = this.task;
    if (!task) return [];
    /** @type {Mark[]} */
    const marks = [];
    const labels = this.#labels(task);
    task.query.others.forEach((other, i) => {
      const score = other.score ?? 1;
      const taken =
        task.sketch.drafts.some((draft) => draft.from === i) ||
        task.sketch.dismissed.includes(i) ||
        labels.some((label) => same(label.box, other.box));
      const asked = task.query.box !== null && iou(task.query.box, other.box) > SAME_DETECTION;
      if (!taken && !asked && score >= this.threshold)
        marks.push({
          id: `o${i}`,
          base: `o${i}`,
          kind: "other",
          box: other.box,
          label: classOf(other.label)?.label ?? other.label,
          score: other.score,
        });
    });
    marks.push(...labels);
    task.sketch.drafts.forEach((draft, i) =>
      marks.push({ id: `d${i}`, base: `d${i}`, kind: "draft", box: draft.box, label: draft.label }),
    );
    if (task.sketch.box) {
      marks.push({
        id: "asked",
        base: "asked",
        kind: "asked",
        box: task.sketch.box,
        label: this.guess,
        score: task.kind === "ask" ? task.query.score : null,
      });
    }
    return marks;
  }

  /** Answered boxes: as the server knows them, with what is on its way laid over. @param {Task} task @returns {Mark[]} */
  #labels(task) {
    const own = `q${task.query.id}`;
    /** @type {Map<string, Mark[]>} */
    const groups = new Map();
    const add = (/** @type {string} */ base, /** @type {Omit<Mark, "id" | "base" | "kind">} */ rest) => {
      const group = groups.get(base) ?? [];
      group.push({
        ...rest,
        label: classOf(rest.label)?.label ?? rest.label,
        id: `${base}.${group.length}`,
        base,
        kind: "label",
      });
      groups.set(base, group);
    };
    for (const label of task.query.labels) add(`q${label.query}`, label);
    for (const record of this.outbox.waiting) {
      if (record.image !== task.query.image.id || record.item.complete) continue;
      const base = this.outbox.baseOf(record.base);
      groups.delete(base);
      record.item.boxes.forEach((box, i) =>
        add(base, {
          box,
          label: record.item.labels[i],
          query: record.item.query ?? null,
          key: record.item.key,
          by: state()?.you ?? "you",
        }),
      );
    }
    groups.delete(own);
    const marks = [...groups.values()].flat();
    const mending = this.#mending;
    return mending ? marks.map((mark) => (mark.id === mending.id ? { ...mark, box: mending.box } : mark)) : marks;
  }

  /** Is everything on this image labelled, as far as the page knows? */
  get imageComplete() {
    const image = this.task?.query.image.id;
    const record = this.outbox.waiting.findLast((one) => one.image === image && one.base === `complete-${image}`);
    return record ? record.item.verdict !== "withdrawn" : Boolean(this.task?.query.complete);
  }

  get active() {
    return this.marks().find((mark) => mark.id === this.selected) ?? null;
  }

  get justDrawn() {
    return this.#justDrawn !== null && this.#justDrawn === this.active?.base;
  }

  /** @param {string | null} id */
  select(id) {
    this.#finishMending();
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
    const order = this.#inOrder();
    if (!order.length) return;
    const now = order.findIndex((mark) => mark.id === this.selected);
    this.select(order[(now + step + order.length + (now < 0 && step < 0 ? 1 : 0)) % order.length].id);
  }

  /** The same with Tab, but it lets go at either end, so that a keyboard can reach the buttons. @param {number} step */
  tab(step) {
    const order = this.#inOrder();
    const now = order.findIndex((mark) => mark.id === this.selected);
    const next = now < 0 && step < 0 ? -1 : now + step;
    if (next < 0 || next >= order.length) {
      if (this.selected !== this.#home) this.select(null);
      return false;
    }
    this.select(order[next].id);
    return true;
  }

  #inOrder() {
    const first = (/** @type {Mark} */ mark) => (mark.kind === "asked" ? 0 : 1);
    return this.marks().sort((a, b) => first(a) - first(b) || a.box[1] - b.box[1] || a.box[0] - b.box[0]);
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
    const task = this.task;
    const mark = this.active;
    if (!task) return;
    if (mark?.kind === "other") return this.#take(mark, mark.label);
    if (this.whole) return this.#finishWhole(false);
    if (mark?.kind === "label") return this.select(null);
    if (this.guess === null) return this.page.findClass((chosen) => this.choose(chosen));
    this.#answerBox(this.guess);
  }

  /** @param {number} label */
  choose(label) {
    const one = classOf(label);
    if (!one || one.label !== label || !this.task) return;
    const mark = this.active;
    this.pen = label;
    if (mark?.kind === "other") this.#take(mark, label);
    else if (mark?.kind === "draft") this.#sketch((sketch) => (sketch.drafts[Number(mark.id.slice(1))].label = label));
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

  complete(deliberate = false) {
    const task = this.task;
    if (!task) return;
    if (this.whole) return this.#finishWhole(deliberate);
    if (this.imageComplete)
      return this.page.say("This image is already marked as complete. Z takes it back if you did it just now.");
    const image = task.query.image.id;
    this.#step({
      image,
      base: `complete-${image}`,
      query: null,
      sketch: null,
      what: "image complete",
      forth: { item: { image, complete: true, verdict: "object", boxes: [], labels: [] }, refer: false, fresh: false },
      back: { item: { ...WITHDRAWN }, refer: true, fresh: false },
    });
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

  /** @param {Step["item"]} item */
  #answer(item) {
    const task = /** @type {Task} */ (this.task);
    if (this.pictureStatus !== "ready" && item.verdict !== "cannot_tell")
      return this.page.say("Wait for the picture, or say that you can't tell.");
    this.#finishMending();
    const query = task.query.id;
    const forth = { item: { ...item, query, after: task.after }, refer: false, fresh: false };
    const back = task.answer
      ? {
          item: { verdict: task.answer.verdict, boxes: task.answer.boxes, labels: task.answer.labels },
          refer: true,
          fresh: false,
        }
      : { item: { ...WITHDRAWN }, refer: true, fresh: false };
    this.#step({
      image: task.query.image.id,
      base: `q${query}`,
      what: inWords(item),
      forth,
      back,
      query: task.kind === "ask" ? task.query : null,
      sketch: task.kind === "ask" ? task.sketch : null,
    });
    if (item.verdict !== "cannot_tell" || task.kind === "edit") forget(this.#draftName(task.query, task.answer));
    if (task.kind === "edit") this.leave(true);
    else this.#advance();
  }

  /* ---- boxes ---- */

  /** @param {Box} box @param {boolean} again */
  draw(box, again) {
    const task = this.task;
    const another = this.view.mode === "draw"; // D was pressed: another object, even there
    this.view.mode = "auto";
    if (!task || this.pictureStatus !== "ready") return this.#changed();
    const mark = this.active;
    if (mark && mark.kind !== "other" && again) return this.change(mark.id, box, "end", true);
    if (this.whole) {
      this.#sketch((sketch) => sketch.drafts.push({ box, label: this.pen, from: null }));
      this.selected = `d${task.sketch.drafts.length - 1}`;
      if (this.pen === null && !offered().length) this.page.findClass((label) => this.choose(label)); // the first class of all
      return this.#changed();
    }
    if (task.sketch.box && !another && iou(box, task.sketch.box) > SAME_OBJECT) {
      this.page.say("Taken as the asked box. For a second object there, press D before drawing.");
      return this.change("asked", box, "end", true);
    }
    this.#miss(box, this.pen);
  }

  /** D: the next drag is a new box, wherever it starts. R: it replaces the active one. @param {"draw" | "redraw"} mode */
  drawNext(mode) {
    if (!this.task) return;
    if (mode === "draw") this.#finishMending();
    this.view.mode = this.view.mode === mode ? "auto" : mode;
    this.#changed();
  }

  /** A box under the hand. @param {string} id @param {Box} box @param {"start" | "move" | "end"} phase @param {boolean} [atOnce] */
  change(id, box, phase, atOnce = false) {
    if (!this.task || this.pictureStatus !== "ready") return;
    this.hidden = false;
    if (id === "asked" || id.startsWith("d")) {
      const put = (/** @type {Sketch} */ sketch) => {
        if (id === "asked") sketch.box = box;
        else sketch.drafts[Number(id.slice(1))].box = box;
      };
      if (phase === "start" || atOnce) this.#sketch(put);
      else put(this.task.sketch);
      if (phase === "end") this.#keepDraft();
    } else {
      const timer = this.#mending?.timer ?? 0;
      clearTimeout(timer);
      this.#mending = { id, box, timer: 0 };
      if (phase === "end") this.#finishMending();
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
      if (this.#mending) this.#mending.timer = window.setTimeout(() => this.#finishMending(), SETTLE);
    } else {
      // Steps in quick succession are one step of undo.
      const now = performance.now();
      this.change(mark.id, box, now - this.#nudged > SETTLE ? "start" : "move");
      this.#nudged = now;
      this.#keepDraft();
    }
    this.view.reveal(box);
  }
  #nudged = -Infinity;

  remove() {
    const task = this.task;
    const mark = this.active;
    if (!task || !mark) return;
    if (mark.kind === "asked") {
      if (task.kind === "edit") return this.withdraw();
      return this.page.say("This box is being asked: X says that it is not an object.");
    }
    const order = Number(mark.id.slice(1));
    if (mark.kind === "draft") this.#sketch((sketch) => sketch.drafts.splice(order, 1));
    else if (mark.kind === "other") this.#sketch((sketch) => sketch.dismissed.push(order));
    else {
      this.#correct(mark, null);
      this.page.say("Box removed. Z brings it back.");
    }
    this.select(null);
  }

  /** A dashed box becomes an answer. @param {Mark} mark @param {number | null} label */
  #take(mark, label) {
    const task = /** @type {Task} */ (this.task);
    if (label === null) return this.page.findClass((chosen) => this.#take(mark, chosen));
    if (!this.whole) {
      this.#miss(mark.box, label);
      return this.select(null);
    }
    this.#sketch((sketch) =>
      sketch.drafts.push({ box: tidy(mark.box, task.query.image), label, from: Number(mark.id.slice(1)) }),
    );
    this.selected = `d${task.sketch.drafts.length - 1}`;
    this.#changed();
  }

  takeAll() {
    if (!this.whole || !this.task) return;
    const { image } = this.task.query;
    const others = this.marks().filter((mark) => mark.kind === "other");
    if (!others.length) return;
    this.#sketch((sketch) => {
      for (const mark of others)
        sketch.drafts.push({ box: tidy(mark.box, image), label: mark.label, from: Number(mark.id.slice(1)) });
    });
    this.select(null);
  }

  /** A box that the model missed: saved at once. @param {Box} box @param {number | null} label */
  #miss(box, label) {
    const task = /** @type {Task} */ (this.task);
    if (this.pictureStatus !== "ready") return;
    if (label === null) return this.page.findClass((chosen) => this.#miss(box, chosen));
    const image = task.query.image.id;
    const key = this.#step({
      image,
      base: "",
      query: null,
      sketch: null,
      what: `a new box, ${className(label)}`,
      forth: {
        item: { image, verdict: "object", boxes: [tidy(box, task.query.image)], labels: [label] },
        refer: false,
        fresh: false,
      },
      back: { item: { ...WITHDRAWN }, refer: true, fresh: false },
    });
    this.selected = `k${key}.0`;
    this.#justDrawn = `k${key}`;
    this.pen = label;
    this.#changed();
  }

  /** Changes one answered box, or removes it (null). @param {Mark} mark @param {{box?: Box, label?: number} | null} to */
  #correct(mark, to) {
    const task = /** @type {Task} */ (this.task);
    this.#mending = null;
    const group = this.#labels(task).filter((one) => one.base === mark.base);
    const content = (/** @type {Mark[]} */ marks) => ({
      verdict: /** @type {const} */ ("object"),
      boxes: marks.map((one) => one.box),
      labels: marks.map((one) => one.label ?? 0),
    });
    const after = group.flatMap((one) =>
      one.id !== mark.id ? [one] : to ? [{ ...one, box: to.box ?? one.box, label: to.label ?? one.label }] : [],
    );
    const before = content(group);
    // Only one's own answer can be withdrawn; another person's is corrected.
    const gone =
      mark.by === state()?.you ? WITHDRAWN : { ...WITHDRAWN, verdict: /** @type {const} */ ("not_an_object") };
    const item = after.length ? content(after) : gone;
    const image = task.query.image.id;
    const drawn = this.#past.some(
      (entry) => draws(entry.forth) && this.outbox.baseOf(entry.base) === this.outbox.baseOf(mark.base),
    );
    const reopened = item.verdict === "withdrawn"; // bringing it back answers its question anew, or draws it anew
    const known = mark.key
      ? {}
      : { query: /** @type {number} */ (mark.query), after: /** @type {number} */ (mark.answer) };
    this.#step(
      {
        image,
        base: mark.base,
        query: null,
        sketch: null,
        what: to ? "a changed box" : "a removed box",
        forth: { item: { ...item, ...known }, refer: false, fresh: false },
        back:
          reopened && drawn
            ? { item: { ...before, image }, refer: false, fresh: false }
            : { item: before, refer: true, fresh: reopened },
      },
      mark.key ?? null,
    );
  }

  #finishMending() {
    const mending = this.#mending;
    if (!mending || !this.task) return;
    clearTimeout(mending.timer);
    this.#mending = null;
    const mark = this.#labels(this.task).find((one) => one.id === mending.id);
    if (mark && !same(mark.box, mending.box)) this.#correct(mark, { box: mending.box });
    this.#changed();
  }

  /** A change before the answer, which undo takes back first. @param {(sketch: Sketch) => void} change */
  #sketch(change) {
    const task = /** @type {Task} */ (this.task);
    task.past.push({ sketch: structuredClone(task.sketch), at: Date.now() });
    task.future = [];
    task.armed = false;
    change(task.sketch);
    this.#keepDraft();
    this.#changed();
  }

  /** @param {Query} query @param {Answer | null} [answer] that is being changed */
  #draftName(query, answer = null) {
    return `${this.outbox.project}/${answer ? `edit/${answer.answer}` : `draft/${query.id}`}`;
  }

  #keepDraft() {
    const task = this.task;
    if (task)
      remember(this.#draftName(task.query, task.answer), {
        at: Date.now(),
        sketch: task.sketch,
        answer: task.answer,
        client: this.outbox.client,
      });
  }

  /** Old answers that were being changed when a page was closed. @returns {{answer: Answer, client: string}[]} */
  unfinished() {
    return names(`${this.outbox.project}/edit/`)
      .map((name) => recall(name))
      .filter((kept) => kept?.answer);
  }

  /* ---- undo ---- */

  /** @param {Omit<Entry, "key" | "at">} entry @param {string | null} [parent] @returns {string} key */
  #step(entry, parent = null) {
    const key = this.#send(entry.forth, entry, parent);
    const base = entry.base || `k${key}`;
    // Doing it again goes by the answer that undo left behind; only a first answer starts from nothing.
    const forth = { ...entry.forth, refer: parent !== null || Boolean(entry.forth.item.after) };
    this.#past.push({ ...entry, key, base, forth, at: Date.now() });
    this.#nowAt(base, key);
    this.#past = this.#past.slice(-HISTORY);
    this.#future = [];
    this.#keepHistory();
    return key;
  }

  /** All steps on one answer refer to what it is now. @param {string} base @param {string} key */
  #nowAt(base, key) {
    const name = this.outbox.baseOf(base);
    for (const entry of [...this.#past, ...this.#future]) if (this.outbox.baseOf(entry.base) === name) entry.key = key;
  }

  /** Takes a step back or does it again. @param {Step} step @param {Entry} entry */
  #do(step, entry) {
    const before = this.outbox.baseOf(entry.base);
    entry.key = this.#send(step, { ...entry, base: draws(step) ? "" : entry.base }, step.refer ? entry.key : null);
    entry.at = Date.now();
    if (draws(step)) {
      // A box drawn anew is another box to the server; all steps on the old one mean this one from now on.
      for (const one of [entry, ...this.#past, ...this.#future])
        if (this.outbox.baseOf(one.base) === before) one.base = `k${entry.key}`;
    }
    this.#nowAt(entry.base, entry.key);
  }

  /** @param {Step} step @param {Omit<Entry, "key" | "at">} entry @param {string | null} parent */
  #send(step, entry, parent) {
    const { image, base, what } = entry;
    const item = { after: null, ...step.item, milliseconds: stopwatch.lap() };
    return this.outbox.send(item, { image, base: base || undefined, what, parent, fresh: step.fresh });
  }

  #keepHistory() {
    remember(`${this.outbox.project}/history`, this.#past.slice(-20), sessionStorage);
  }

  get canUndo() {
    return Boolean(this.task?.past.length) || this.#past.length > 0;
  }

  get canRedo() {
    return Boolean(this.task?.future.length) || this.#future.length > 0;
  }

  undo() {
    const task = this.task;
    this.#finishMending();
    this.view.mode = "auto";
    const sketch = task?.past.at(-1);
    if (task && sketch && sketch.at >= (this.#past.at(-1)?.at ?? 0)) {
      task.past.pop();
      task.future.push({ sketch: task.sketch, at: Date.now() });
      return this.#putSketch(task, sketch.sketch);
    }
    if (task?.kind === "edit") return this.leave(false);
    const entry = this.#past.pop();
    if (!entry) return this.page.say("Nothing left to undo in this tab. The last answers are in the side panel.");
    this.#do(entry.back, entry);
    this.#future.push(entry);
    this.#keepHistory();
    if (entry.query) {
      this.held = [entry.query, ...this.held.filter((query) => query.id !== entry.query?.id)];
      this.#show(entry.query, { sketch: entry.sketch });
      this.#keepDraft();
      this.#prefetch();
    } else {
      this.page.say(`Taken back: ${entry.what}.`);
      this.selected = this.#home;
    }
    this.#changed();
  }

  redo() {
    const task = this.task;
    const sketch = task?.future.at(-1);
    if (task && sketch && sketch.at >= (this.#future.at(-1)?.at ?? 0)) {
      task.future.pop();
      task.past.push({ sketch: task.sketch, at: Date.now() });
      return this.#putSketch(task, sketch.sketch);
    }
    const entry = this.#future.pop();
    if (!entry) return;
    this.#do(entry.forth, entry);
    this.#past.push(entry);
    this.#keepHistory();
    if (entry.query) {
      forget(this.#draftName(entry.query));
      this.held = this.held.filter((query) => query.id !== entry.query?.id);
      if (task?.query.id === entry.query.id) this.#advance();
    } else {
      this.page.say(`Done again: ${entry.what}.`);
    }
    this.#changed();
  }

  /** @param {Task} task @param {Sketch} sketch */
  #putSketch(task, sketch) {
    task.sketch = sketch;
    if (!this.active) this.selected = this.#home;
    this.#keepDraft();
    this.#changed();
  }

  /* ---- old answers ---- */

  /** Shows an old answer on the picture, to be changed. @param {Answer} answer @param {Pick<Query, "labels" | "others" | "complete">} around */
  edit(answer, around) {
    this.#finishMending();
    const { labels, others, complete } = around;
    const box = answer.box ? (answer.boxes[0] ?? answer.box) : null;
    const drafts = answer.box ? [] : answer.boxes.map((one, i) => ({ box: one, label: answer.labels[i], from: null }));
    const query = {
      id: answer.query,
      cycle: answer.cycle,
      position: 0,
      image: answer.image,
      box: answer.box,
      guess: answer.guess,
      score: null,
      uncertainty: null,
      reason: "",
      labels,
      others,
      complete,
      lease_seconds: 0,
    };
    this.#show(query, { kind: "edit", after: answer.answer, answer, sketch: { box, drafts, dismissed: [] } });
    this.#changed();
  }

  /** Takes the answer being edited out of the labels; its question becomes open again. */
  withdraw() {
    if (this.task?.kind === "edit") this.#answer({ ...WITHDRAWN });
  }

  /** Back from an old answer to the questions. @param {boolean} saved */
  leave(saved) {
    if (this.task?.answer) forget(this.#draftName(this.task.query, this.task.answer));
    this.task = null;
    this.#advance();
    this.page.left(saved);
    return true;
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
    if (this.selected && this.task) {
      const marks = this.marks();
      if (!marks.some((mark) => mark.id === this.selected)) {
        // A box drawn here gets a new name once the server has it.
        const [base, order] = this.selected.split(".");
        const name = `${this.outbox.baseOf(base)}.${order ?? 0}`;
        if (this.#justDrawn === base) this.#justDrawn = this.outbox.baseOf(base);
        if (this.#mending?.id === this.selected) this.#mending.id = name;
        this.selected = marks.some((mark) => mark.id === name) ? name : this.#home;
      }
    }
    const shown = !this.hidden && this.pictureStatus === "ready";
    this.view.render(shown ? this.marks() : [], this.selected);
    this.page.changed();
  }
}
