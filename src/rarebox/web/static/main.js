/**
 * Starts the page and connects its parts: the server leases questions, the Annotator shows them and takes answers, the Outbox
 * sends the answers. Read annotator.js next, then editor.js and outbox.js.
 */

import { Annotator } from "./annotator.js";
import { get, setProject, post, SignedOut } from "./api.js";
import { iconButton, makeAnswerButtons, showKeys } from "./buttons.js";
import { makeChips } from "./chips.js";
import { openClasses } from "./classes.js";
import { nameForm, openDialog } from "./dialogs.js";
import { byId, el, percent } from "./dom.js";
import { findClass } from "./finder.js";
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
import { accept, className, inWords, onState, state } from "./state.js";
import { View } from "./view.js";
import { showPictureStatus, showWaiting } from "./waiting.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Answer} Answer */

const stage = byId("stage");
const tab = tabId();

async function start() {
  try {
    accept(await get("/api/state"));
  } catch (error) {
    const status = error instanceof SignedOut ? "signed-out" : "offline";
    byId("question-bar").hidden = true;
    byId("waiting").hidden = false;
    showWaiting(byId("waiting"), null, status, 0);
    if (status === "offline") setTimeout(start, 2000);
    return;
  }
  if (!state()?.you) await askName(true);
  run(/** @type {State} */ (state()));
}

/** @param {boolean} first @returns {Promise<void>} */
function askName(first) {
  return new Promise((done) => {
    openDialog(
      first ? "What is your name?" : "Change your name",
      (body, close) => {
        body.append(
          el("p", {
            text: "Your name is stored with each of your answers, so that everyone can see who answered what.",
          }),
          nameForm({
            label: "Your name",
            value: state()?.you ?? "",
            button: first ? "Start" : "Change",
            testid: "name",
            done: async (name) => {
              accept(await post("/api/me", { name }));
              close();
            },
          }),
        );
      },
      { fixed: first, testid: "name-dialog", closed: done },
    );
  });
}

/** @param {State} first */
function run(first) {
  setProject(first.id);
  for (const id of ["save-state", "bottom"]) byId(id).hidden = false; // only for people who are signed in
  let status = "saved";

  /* ---- the parts ---- */

  const outbox = new Outbox(first.id, tab, {
    state: accept,
    queries: (queries) => annotator.receive(queries),
    results: (pairs) => {
      annotator.settle(pairs);
      panel.refreshRecent(900);
    },
    status: (now) => {
      if (status === "offline" && now !== "offline" && editor.pictureStatus === "failed") editor.showPicture();
      if (now === "signed-out" && status !== now) {
        notify(
          "You are signed out. Open a new invite link, or restart “rarebox serve” and open the link that it prints. Until then, your answers are kept in this browser.",
          "bad",
        );
      }
      status = now;
      showSaveState(status, outbox.waiting.length);
      if (!annotator.task) update();
      const known = state();
      if (known) panel.update(known, spent());
    },
    problem: (sentence) => notify(sentence, "bad"),
  });
  const spent = () => spentOnTheWay(outbox.waiting, state()?.budget.unit);

  const keys = listenToKeys({
    yes: () => annotator.yes(),
    find: () => pickClass(),
    not_object: () => annotator.notAnObject(),
    cannot_tell: () => annotator.cannotTell(),
    complete: () => annotator.complete(),
    undo: () => annotator.undo(),
    redo: () => annotator.redo(),
    draw: () => editor.drawNext("draw"),
    redraw: () => editor.drawNext("redraw"),
    next_box: () => editor.cycle(1),
    previous_box: () => editor.cycle(-1),
    remove: () => annotator.remove(),
    take_all: () => editor.takeAll(),
    hide: () => editor.toggleHidden(),
    fit: () => editor.fit(),
    zoom_in: () => view.zoom(1.25),
    zoom_out: () => view.zoom(1 / 1.25),
    gallery: () => gallery(),
    panel: () => panel.toggle(),
    help: () => help(),
    digit: (/** @type {number} */ n) => annotator.digit(n),
    arrow: (/** @type {number} */ dx, /** @type {number} */ dy) => editor.nudge(dx, dy),
    tab: (/** @type {number} */ step, /** @type {KeyboardEvent} */ event) => event.target === stage && editor.tab(step),
    escape: () => annotator.escape(),
  });

  const view = new View(stage, (mark) => (mark.label === null ? "?" : className(mark.label)), {
    select: (id) => editor.select(id),
    draw: (box, again) => editor.draw(box, again),
    change: (id, box, phase) => editor.change(id, box, phase),
    panning: keys.panning,
    panned: keys.panned,
  });

  const annotator = new Annotator(outbox, view, new Pictures(), {
    changed: () => update(),
    notify,
    findClass,
    left: (saved) => {
      if (saved) notify("Answer changed.", "good");
      returnTo?.();
      returnTo = null;
    },
  });
  const { editor } = annotator;

  const panel = makePanel({
    edit: (answer) => edit(answer),
    gallery: () => gallery(),
    classes: openClasses,
    disagreements: () => disagreements(),
    person: () => askName(false).then(() => news.again()),
    threshold: (value) => editor.setThreshold(value),
    thresholdNow: () => editor.threshold,
  });

  const buttons = makeAnswerButtons(annotator);
  const pickClass = () => annotator.task && findClass((label) => annotator.choose(label));
  const chips = makeChips(annotator, pickClass);
  byId("tools").append(
    iconButton("zoom_in", "plus", "Zoom in", () => view.zoom(1.4)),
    iconButton("zoom_out", "minus", "Zoom out", () => view.zoom(1 / 1.4)),
    iconButton("fit", "fit", "Zoom to the box or the image", () => editor.fit()),
    iconButton("hide", "eye", "Hide or show all boxes", () => editor.toggleHidden()),
  );
  byId("top-buttons").append(
    iconButton("gallery", "grid", "Browse all answers", () => gallery()),
    iconButton("classes-editor", "tag", "Edit classes", openClasses),
    iconButton("help", "keys", "Keyboard shortcuts", () => help()),
    iconButton("panel", "panel", "Side panel", () => panel.toggle()),
  );

  /* ---- dialogs ---- */

  let returnTo = /** @type {(() => void) | null} */ (null);

  /** Opens an old answer on the picture. @param {Answer} answer @param {(() => void) | null} [back] reopens the dialog it came from */
  async function edit(answer, back = null) {
    try {
      const around = await get(`/api/image/${answer.image.id}`);
      returnTo = back;
      annotator.edit(answer, around);
      if (matchMedia("(max-width: 860px)").matches) panel.show(false);
      stage.focus({ preventScroll: true });
    } catch (error) {
      notify(/** @type {Error} */ (error).message, "bad");
    }
  }
  const gallery = () => openGallery((answer) => edit(answer, gallery));
  const disagreements = () => openDisagreements(decide, (answer) => edit(answer, disagreements));
  const help = () => {
    openSheet(() => {
      showKeys();
      update();
    });
  };

  /** Keeps one of several answers to a question. @param {import("./types.js").Query} query @param {Answer[]} answers @param {Answer} chosen */
  function decide(query, answers, chosen) {
    const after = Math.max(...answers.map((one) => one.answer));
    const { verdict, boxes, labels } = chosen;
    outbox.send(
      { query: query.id, after, verdict, boxes, labels, milliseconds: 0 },
      { image: query.image.id, base: `q${query.id}`, what: inWords(chosen) },
    );
  }

  /* ---- what is shown ---- */

  function update() {
    const { task } = annotator;
    const now = state();
    const place = byId("waiting");
    document.body.dataset.task = !task ? "none" : task.kind === "edit" ? "edit" : task.query.box ? "box" : "image";
    place.hidden = task !== null && editor.pictureStatus === "ready";
    if (!task) showWaiting(place, now, status, outbox.waiting.length);
    else if (!place.hidden) showPictureStatus(place, editor);
    byId("question-bar").hidden = !task;
    byId("tools").hidden = !task;
    showQuestion(editor);
    buttons.show();
    chips.show();
    if (now) showProgress(now, spent());
  }

  onState((now, before) => {
    document.title = `${now.project} · rarebox`;
    panel.update(now, spent());
    if (before && before.cycle > 0 && now.cycle > before.cycle) {
      const last = now.records.at(-1);
      const ap = last?.ap50 != null ? `, AP50 is now ${percent(last.ap50)}` : "";
      notify(`Cycle ${now.cycle}: new questions${ap}.`, "news");
    }
    editor.refresh(); // names and colours of classes may have changed
  });

  /* ---- start ---- */

  const news = follow(outbox, annotator.queue);
  panel.update(first, 0);
  panel.refreshRecent();
  showKeys();
  update();
  showSaveState(status, 0);
  outbox.open();
  const unfinished = annotator.drafts.unfinished();
  const own = unfinished.find((kept) => kept.client === tab);
  if (own) edit(own.answer);
  else if (unfinished.length) {
    notify("A closed page left an unfinished change to an answer. Open that answer to continue.");
  }
  stage.focus({ preventScroll: true });
}

start();
