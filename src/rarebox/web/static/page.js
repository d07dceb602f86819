/**
 * The page of a signed-in person: connects its parts. The server leases questions, the Annotator shows them and takes answers, the
 * Outbox sends the answers. Read annotator.js next, then editor.js and outbox.js.
 */

import { Annotator } from "./annotator.js";
import { get, setProject } from "./api.js";
import { iconButton, makeAnswerButtons, showKeys } from "./buttons.js";
import { makeChips } from "./chips.js";
import { openClasses } from "./classes.js";
import { accuracy } from "./chart.js";
import { byId } from "./dom.js";
import { findClass } from "./finder.js";
import { Grid } from "./grid.js";
import { openDisagreements, openGallery } from "./gallery.js";
import { showProgress, showSaveState, spentOnTheWay } from "./header.js";
import { listenToKeys } from "./keys.js";
import { tabId } from "./local.js";
import { follow } from "./news.js";
import { notify } from "./notices.js";
import { Outbox } from "./outbox.js";
import { makePanel } from "./panel.js";
import { Pictures } from "./pictures.js";
import { showQuestion } from "./question.js";
import { openSheet } from "./sheet.js";
import { makeSearch } from "./similar.js";
import { accept, className, inWords, onState, state } from "./state.js";
import { isNew, Tour } from "./tour.js";
import { View } from "./view.js";
import { showPictureStatus, showWaiting } from "./waiting.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Answer} Answer */

export class Page {
  #stage = byId("stage");
  #tab = tabId();
  #status = "saved";
  #leaveEdit = /** @type {(() => void) | null} */ (null);

  /** @param {State} first @param {(again: () => void) => void} askName asks for another name, then calls `again` */
  constructor(first, askName) {
    setProject(first.id);
    for (const id of ["save-state", "bottom"]) byId(id).hidden = false; // only for people who are signed in
    this.outbox = this.#makeOutbox(first.id);
    this.keys = this.#listenToKeys();
    this.view = this.#makeView();
    this.annotator = this.#makeAnnotator();
    this.grid = new Grid(this.annotator, this.annotator.page);
    this.tour = new Tour({ focusPicture: () => this.#stage.focus({ preventScroll: true }) });
    this.search = makeSearch(() => this.annotator.letWait());
    this.panel = this.#makePanel(askName);
    this.buttons = makeAnswerButtons(this.annotator, this.grid, () => this.#findSimilar());
    this.chips = makeChips(this.annotator, () => this.#pickClass());
    this.#addIconButtons();
    onState((now, before) => this.#changed(now, before));
    this.news = follow(this.outbox, this.annotator.queue);
    this.panel.update(first, 0);
    this.search.update(first, null);
    this.panel.refreshRecent();
    showKeys();
    this.update();
    showSaveState(this.#status, 0);
    this.outbox.open();
    this.#openUnfinished();
    this.#stage.focus({ preventScroll: true });
  }

  get #editor() {
    return this.annotator.editor;
  }

  /* ---- the parts ---- */

  /** @param {string} project @returns {Outbox} */
  #makeOutbox(project) {
    return new Outbox(project, this.#tab, {
      state: accept,
      queries: (queries, offer) => {
        this.grid.offer = offer;
        this.annotator.receive(queries);
      },
      results: (pairs) => {
        this.annotator.settle(pairs);
        this.grid.settle();
        this.panel.refreshRecent(900);
      },
      status: (now) => this.#saving(now),
      problem: (sentence) => notify(sentence, "bad"),
    });
  }

  /** @returns {ReturnType<typeof listenToKeys>} */
  #listenToKeys() {
    return listenToKeys({
      yes: () => this.annotator.yes(),
      find: () => this.#pickClass(),
      not_object: () => this.annotator.notAnObject(),
      cannot_tell: () => this.annotator.cannotTell(),
      complete: () => this.annotator.complete(),
      grid: () => this.grid.toggle(),
      grid_key: (/** @type {string} */ key, /** @type {KeyboardEvent} */ event) => this.grid.key(key, event),
      similar: () => this.#findSimilar(),
      undo: () => this.annotator.undo(),
      redo: () => this.annotator.redo(),
      draw: () => this.#editor.drawNext("draw"),
      redraw: () => this.#editor.drawNext("redraw"),
      next_box: () => this.#editor.cycle(1),
      previous_box: () => this.#editor.cycle(-1),
      remove: () => this.annotator.remove(),
      take_all: () => this.#editor.takeAll(),
      hide: () => this.#editor.toggleHidden(),
      fit: () => this.#editor.fit(),
      zoom_in: () => this.view.zoom(1.25),
      zoom_out: () => this.view.zoom(1 / 1.25),
      gallery: () => this.#gallery(),
      panel: () => this.panel.toggle(),
      help: () => this.#help(),
      digit: (/** @type {number} */ n) => this.annotator.digit(n),
      arrow: (/** @type {number} */ dx, /** @type {number} */ dy) => this.#editor.nudge(dx, dy),
      tab: (/** @type {number} */ step, /** @type {KeyboardEvent} */ event) =>
        event.target === this.#stage && this.#editor.tab(step),
      escape: () => this.annotator.escape(),
    });
  }

  /** @returns {View} */
  #makeView() {
    return new View(this.#stage, (mark) => (mark.label === null ? "?" : className(mark.label)), {
      select: (id) => this.#editor.click(id),
      draw: (box, again) => this.#editor.draw(box, again),
      change: (id, box, phase) => this.#editor.change(id, box, phase),
      panning: this.keys.panning,
      panned: this.keys.panned,
    });
  }

  /** @returns {Annotator} */
  #makeAnnotator() {
    return new Annotator(this.outbox, this.view, new Pictures(), {
      changed: () => this.update(),
      notify,
      findClass,
      left: (saved) => {
        if (saved) notify("Answer changed.", "good");
        this.#leaveEdit?.();
        this.#leaveEdit = null;
      },
    });
  }

  /** @param {(again: () => void) => void} askName @returns {ReturnType<typeof makePanel>} */
  #makePanel(askName) {
    return makePanel({
      edit: (answer) => this.#edit(answer),
      gallery: () => this.#gallery(),
      classes: openClasses,
      similar: (label) => {
        if (matchMedia("(max-width: 860px)").matches) this.panel.show(false);
        this.search.toggle(label);
      },
      disagreements: () => this.#disagreements(),
      tour: () => this.#tour(),
      person: () => askName(() => this.news.again()),
      threshold: (value) => this.#editor.setThreshold(value),
      thresholdNow: () => this.#editor.threshold,
    });
  }

  #addIconButtons() {
    byId("tools").append(
      iconButton("zoom_in", "plus", "Zoom in", () => this.view.zoom(1.4)),
      iconButton("zoom_out", "minus", "Zoom out", () => this.view.zoom(1 / 1.4)),
      iconButton("fit", "fit", "Zoom to the box or the image", () => this.#editor.fit()),
      iconButton("hide", "eye", "Hide or show all boxes", () => this.#editor.toggleHidden()),
    );
    byId("top-buttons").append(
      iconButton("gallery", "grid", "Browse all answers", () => this.#gallery()),
      iconButton("classes-editor", "tag", "Edit classes", openClasses),
      iconButton("help", "keys", "Keyboard shortcuts", () => this.#help()),
      iconButton("panel", "panel", "Side panel", () => this.panel.toggle()),
    );
  }

  /** Looks for boxes like the selected one. */
  #findSimilar() {
    const { task } = this.annotator;
    const { active } = this.#editor;
    if (!task || !active) return notify("Select a box first.");
    this.search.start({ image: task.query.image.id, box: active.box, label: active.label });
  }

  /* ---- dialogs ---- */

  #pickClass() {
    if (this.annotator.task) findClass((label) => this.annotator.choose(label));
  }

  #gallery() {
    openGallery((answer) => this.#edit(answer, () => this.#gallery()));
  }

  #disagreements() {
    openDisagreements(
      (...decision) => this.#decide(...decision),
      (answer) => this.#edit(answer, () => this.#disagreements()),
    );
  }

  #help() {
    const changed = () => {
      showKeys();
      this.update();
    };
    openSheet(changed, () => this.#tour());
  }

  /** Shows the tour again. */
  #tour() {
    if (!this.annotator.task) notify("The tour begins with the next question.");
    if (isNarrow()) this.panel.show(false);
    this.tour.again();
    this.update();
  }

  /** Opens an old answer on the picture. @param {Answer} answer @param {(() => void) | null} [back] reopens the dialog it came from */
  async #edit(answer, back = null) {
    try {
      const around = await get(`/api/image/${answer.image.id}`);
      this.grid.leave();
      this.#leaveEdit = back;
      this.annotator.edit(answer, around);
      if (isNarrow()) this.panel.show(false);
      this.#stage.focus({ preventScroll: true });
    } catch (error) {
      notify(/** @type {Error} */ (error).message, "bad");
    }
  }

  /** Reopens a change to an answer that was not finished when this tab was reloaded. */
  #openUnfinished() {
    const unfinished = this.annotator.drafts.unfinished();
    const own = unfinished.find((kept) => kept.client === this.#tab);
    if (own) this.#edit(own.answer);
    else if (unfinished.length) {
      notify("A closed page left an unfinished change to an answer. Open that answer to continue.");
    }
  }

  /** Keeps one of several answers to a question. @param {import("./types.js").Query} query @param {Answer[]} answers @param {Answer} chosen */
  #decide(query, answers, chosen) {
    const after = Math.max(...answers.map((one) => one.answer));
    const { verdict, boxes, labels } = chosen;
    this.outbox.send(
      { query: query.id, after, verdict, boxes, labels, milliseconds: 0 },
      { image: query.image.id, base: `q${query.id}`, what: inWords(chosen) },
    );
  }

  /* ---- what is shown ---- */

  /** Shows the current task, or what the page is waiting for. */
  update() {
    const { task } = this.annotator;
    const now = state();
    const place = byId("waiting");
    this.grid.follow();
    const checking = this.grid.open;
    document.body.dataset.task = checking ? "grid" : shownTask(task);
    place.hidden = checking || (task !== null && this.#editor.pictureStatus === "ready");
    if (checking) place.replaceChildren();
    else if (!task) showWaiting(place, now, this.#status, this.outbox.waiting.length);
    else if (!place.hidden) showPictureStatus(place, this.#editor);
    byId("question-bar").hidden = !task && !checking;
    byId("tools").hidden = !task;
    for (const id of ["classes", "answers"]) byId(id).hidden = checking;
    if (!checking) showQuestion(this.#editor);
    this.grid.show();
    this.buttons.show();
    this.chips.show();
    if (now) showProgress(now, this.#spent());
    if (now && !checking) {
      this.tour.follow(place.hidden, this.#editor.whole, isNew(now, this.outbox.waiting.length));
    } else this.tour.follow(false, false, false);
  }

  #spent() {
    return spentOnTheWay(this.outbox.waiting, state()?.budget.unit);
  }

  /** Shows whether answers are saved. @param {string} now */
  #saving(now) {
    if (this.#status === "offline" && now !== "offline" && this.#editor.pictureStatus === "failed") {
      this.#editor.showPicture();
    }
    if (now === "signed-out" && this.#status !== now) {
      notify(
        "You are signed out. Open a new invite link, or restart “rarebox serve” and open the link that it prints. Until then, your answers are kept in this browser.",
        "bad",
      );
    }
    this.#status = now;
    showSaveState(now, this.outbox.waiting.length);
    this.grid.hear(now);
    if (!this.annotator.task) this.update();
    const known = state();
    if (known) this.panel.update(known, this.#spent());
  }

  /** Shows a new state of the project. @param {State} now @param {State | null} before */
  #changed(now, before) {
    document.title = `${now.project} · rarebox`;
    this.outbox.hear(now);
    this.search.update(now, before);
    this.panel.update(now, this.#spent());
    if (before && before.cycle > 0 && now.cycle > before.cycle) {
      const last = now.records.at(-1);
      const ap = last?.ap50 != null ? `, accuracy (AP50) is now ${accuracy(last)}` : "";
      notify(`Cycle ${now.cycle}: new questions${ap}.`, "news");
    }
    this.#editor.refresh(); // names and colours of classes may have changed
  }
}

/** Does the side panel cover the picture? */
const isNarrow = () => matchMedia("(max-width: 860px)").matches;

/** What kind of task is shown. @param {import("./task.js").Task | null} task */
const shownTask = (task) => (!task ? "none" : task.kind === "edit" ? "edit" : task.query.box ? "box" : "image");
