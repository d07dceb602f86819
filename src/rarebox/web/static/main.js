/** Where everything meets: the question's words, the buttons, the keys, the news from the server. */

import { get, isFor, listen, post, SignedOut } from "./api.js";
import { Annotator } from "./annotator.js";
import { openClasses } from "./classes.js";
import { colour } from "./colours.js";
import { nameForm, openDialog } from "./dialogs.js";
import { byId, counted, el, icon, percent, replace } from "./dom.js";
import { findClass } from "./finder.js";
import { openDisagreements, openGallery } from "./gallery.js";
import { hint, listenToKeys } from "./keys.js";
import { Outbox } from "./outbox.js";
import { tabId } from "./local.js";
import { say } from "./notices.js";
import { makePanel } from "./panel.js";
import { Pictures } from "./pictures.js";
import { openSheet } from "./sheet.js";
import { accept, className, classOf, expectAnything, inWords, offered, onState, state } from "./state.js";
import { View } from "./view.js";
import { showWaiting } from "./waiting.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Answer} Answer */

/** Seconds after which a page without a question asks for one again. */
const LOOK_AGAIN = 8;

const stage = byId("stage");
let status = "saved";
let waiting = 0;

/* ---- starting ---- */

const tab = tabId();

async function start() {
  try {
    accept(await get("/api/state"));
  } catch (error) {
    status = error instanceof SignedOut ? "signed-out" : "offline";
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
            text: "It is kept with each of your answers, so that people working together can tell who said what.",
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
  isFor(first.id);
  for (const id of ["save-state", "bottom"]) byId(id).hidden = false; // nobody who is not signed in has anything saved
  const outbox = new Outbox(first.id, tab, {
    state: accept,
    queries: (queries) => annotator.receive(queries),
    results: (pairs) => {
      annotator.settle(pairs);
      panel.refreshRecent(900);
    },
    status: (now, count) => {
      if (status === "offline" && now !== "offline" && annotator.pictureStatus === "failed") annotator.showPicture();
      if (now === "signed-out" && status !== now)
        say(
          "The server does not know this browser any more. Open the link that “rarebox serve” printed; answers are kept until then.",
          "bad",
        );
      status = now;
      waiting = count;
      showSaveState();
      if (!annotator.task) update();
      const known = state();
      if (known) panel.update(known, spentOnTheWay());
    },
    problem: (sentence) => say(sentence, "bad"),
  });
  /** Answers on their way that the budget will count: a label is an object, a look any answer. */
  const spentOnTheWay = () => {
    const labels = state()?.budget.unit === "labels";
    const counts = (/** @type {string} */ verdict) => verdict === "object" || (!labels && verdict !== "withdrawn");
    return outbox.waiting.filter(
      ({ base, item, parent }) => base.startsWith("q") && !item.after && !parent && counts(item.verdict),
    ).length;
  };

  const keys = listenToKeys({
    yes: () => annotator.yes(),
    find: () => pickClass(),
    not_object: () => annotator.notAnObject(),
    cannot_tell: () => annotator.cannotTell(),
    complete: () => annotator.complete(),
    undo: () => annotator.undo(),
    redo: () => annotator.redo(),
    draw: () => annotator.drawNext("draw"),
    redraw: () => annotator.drawNext("redraw"),
    next_box: () => annotator.cycle(1),
    previous_box: () => annotator.cycle(-1),
    remove: () => annotator.remove(),
    take_all: () => annotator.takeAll(),
    hide: () => annotator.toggleHidden(),
    fit: () => annotator.fit(),
    zoom_in: () => view.zoom(1.25),
    zoom_out: () => view.zoom(1 / 1.25),
    gallery: () => gallery(),
    panel: () => panel.toggle(),
    help: () => openSheet(redraw),
    digit: (/** @type {number} */ n) => annotator.digit(n),
    arrow: (/** @type {number} */ dx, /** @type {number} */ dy) => annotator.nudge(dx, dy),
    tab: (/** @type {number} */ step, /** @type {KeyboardEvent} */ event) =>
      event.target === stage && annotator.tab(step),
    escape: () => annotator.escape(),
  });

  const view = new View(stage, (mark) => (mark.label === null ? "?" : className(mark.label)), {
    select: (id) => annotator.select(id),
    draw: (box, again) => annotator.draw(box, again),
    change: (id, box, phase) => annotator.change(id, box, phase),
    panning: keys.panning,
    panned: keys.panned,
  });

  let returnTo = /** @type {(() => void) | null} */ (null);
  const annotator = new Annotator(outbox, view, new Pictures(), {
    changed: () => update(),
    say,
    findClass: (done) => findClass(done),
    left: (saved) => {
      if (saved) say("Changed.", "good");
      returnTo?.();
      returnTo = null;
    },
  });

  /** Opens an old answer on the picture. @param {Answer} answer @param {(() => void) | null} [back] */
  async function edit(answer, back = null) {
    try {
      const around = await get(`/api/image/${answer.image.id}`);
      returnTo = back;
      annotator.edit(answer, around);
      if (matchMedia("(max-width: 860px)").matches) panel.show(false);
      stage.focus({ preventScroll: true });
    } catch (error) {
      say(/** @type {Error} */ (error).message, "bad");
    }
  }
  const gallery = () => openGallery((answer) => edit(answer, gallery));
  const pickClass = () => annotator.task && findClass((label) => annotator.choose(label));
  const disagreements = () =>
    openDisagreements(
      (query, answers, chosen) => {
        const after = Math.max(...answers.map((one) => one.answer));
        outbox.send(
          {
            query: query.id,
            after,
            verdict: chosen.verdict,
            boxes: chosen.boxes,
            labels: chosen.labels,
            milliseconds: 0,
          },
          { image: query.image.id, base: `q${query.id}`, what: inWords(chosen) },
        );
      },
      (answer) => edit(answer, disagreements),
    );

  const panel = makePanel({
    edit: (answer) => edit(answer),
    gallery,
    classes: openClasses,
    disagreements,
    person: () => askName(false).then(() => news.again()),
    threshold: (value) => annotator.setThreshold(value),
    thresholdNow: () => annotator.threshold,
  });

  /* ---- buttons ---- */

  /** @param {string} id @param {string} text @param {any} glyph @param {() => void} act @param {string} [kind] */
  const button = (id, text, glyph, act, kind = "") =>
    el(
      "button",
      {
        class: kind,
        "data-testid": id,
        "data-action": id,
        onclick: (/** @type {PointerEvent} */ event) => {
          if (event.detail > 0) stage.focus({ preventScroll: true }); // pressed by hand: the keys go back to the picture
          act();
        },
      },
      glyph && icon(glyph),
      el("span", { class: "text", text }),
      el("kbd"),
    );

  const buttons = {
    yes: button(
      "yes",
      "Yes",
      "check",
      () => (annotator.whole && annotator.active?.kind !== "other" ? annotator.complete(true) : annotator.yes()),
      "primary",
    ),
    not_object: button("not_object", "Not an object", "cross", () => annotator.notAnObject()),
    cannot_tell: button("cannot_tell", "Can't tell", "unsure", () => annotator.cannotTell()),
    draw: button("draw", "Add box", "draw", () => annotator.drawNext("draw"), "minor"),
    remove: button("remove", "Remove", "trash", () => annotator.remove(), "minor"),
    take_all: button("take_all", "Take all", "check", () => annotator.takeAll(), "minor"),
    redraw: button("redraw", "Redraw", "redraw", () => annotator.drawNext("redraw"), "minor"),
    complete: button("complete", "Image complete", "done", () => annotator.complete(true), "minor"),
    withdraw: button("withdraw", "Withdraw", "trash", () => annotator.withdraw(), "minor"),
    leave: button("leave", "Back", "close", () => annotator.leave(false), "minor"),
    undo: button("undo", "Undo", "undo", () => annotator.undo(), "minor"),
  };
  byId("answers").append(
    el("div", { class: "main-answers" }, buttons.yes, buttons.not_object, buttons.cannot_tell),
    el(
      "div",
      { class: "minor-answers" },
      buttons.draw,
      buttons.redraw,
      buttons.remove,
      buttons.take_all,
      buttons.complete,
      buttons.withdraw,
      buttons.leave,
      buttons.undo,
    ),
  );
  const quiet = (
    /** @type {string} */ id,
    /** @type {any} */ glyph,
    /** @type {string} */ title,
    /** @type {() => void} */ act,
  ) =>
    el(
      "button",
      {
        class: "bare",
        "data-testid": id,
        "data-title": title,
        "data-action": id,
        "aria-label": title,
        onclick: (/** @type {PointerEvent} */ event) => {
          if (event.detail > 0) stage.focus({ preventScroll: true });
          act();
        },
      },
      icon(glyph),
    );
  byId("tools").append(
    quiet("zoom_in", "plus", "Zoom in", () => view.zoom(1.4)),
    quiet("zoom_out", "minus", "Zoom out", () => view.zoom(1 / 1.4)),
    quiet("fit", "fit", "Fit the box or the image", () => annotator.fit()),
    quiet("hide", "eye", "Hide or show all boxes", () => annotator.toggleHidden()),
  );
  byId("top-buttons").append(
    quiet("gallery", "grid", "Look back at all answers", gallery),
    quiet("classes-editor", "tag", "Edit classes", openClasses),
    quiet("help", "keys", "Keys", () => openSheet(redraw)),
    quiet("panel", "panel", "Side panel", () => panel.toggle()),
  );

  const redraw = () => {
    for (const one of document.querySelectorAll("[data-action]")) {
      const key = hint(/** @type {HTMLElement} */ (one).dataset.action ?? "");
      const kbd = one.querySelector("kbd");
      if (kbd) kbd.textContent = key;
      else
        /** @type {HTMLElement} */ (one).title =
          `${/** @type {HTMLElement} */ (one).dataset.title}${key ? ` (${key})` : ""}`;
    }
    classesShown = "";
    update();
  };

  /* ---- the page as it should look now ---- */

  function update() {
    const task = annotator.task;
    const now = state();
    const place = byId("waiting");
    document.body.dataset.task = !task ? "none" : task.kind === "edit" ? "edit" : task.query.box ? "box" : "image";
    place.hidden = task !== null && annotator.pictureStatus === "ready";
    if (!task) {
      showWaiting(place, now, status, waiting);
      setText("question", "");
      setText("reason", "");
      replace(byId("facts"));
    } else {
      if (!place.hidden) showPicture(place);
      showQuestion();
    }
    byId("question-bar").hidden = !task;
    byId("tools").hidden = !task;
    showButtons();
    showClasses();
    showProgress();
  }

  /** The picture is on its way, or did not come. @param {HTMLElement} place */
  function showPicture(place) {
    const name = annotator.task?.query.image.name ?? "";
    if (annotator.pictureStatus === "loading")
      return replace(place, el("p", { class: "loading", text: "Loading the picture …" }));
    replace(
      place,
      el(
        "div",
        { class: "waiting-text", "data-testid": "picture-failed" },
        el("h2", { text: "The picture cannot be shown" }),
        el("p", { text: name }),
        el("p", { text: "Try again, or say that you can't tell and go on." }),
        el("button", { text: "Try again", onclick: () => annotator.showPicture() }),
      ),
    );
  }

  function showQuestion() {
    const task = annotator.task;
    if (!task) return;
    const { query } = task;
    const active = annotator.active;
    const { guess } = annotator;
    const named = (/** @type {string} */ before, /** @type {number | null} */ label, /** @type {string} */ after) =>
      setQuestion(before, label, after);
    let reason = query.reason;
    const touch = matchMedia("(pointer: coarse)").matches; // no keys to speak of
    if (annotator.view.mode === "draw") {
      named("Draw a box with one drag", null, "");
      reason = touch ? "Press the button again to leave it." : "Esc leaves it.";
    } else if (annotator.view.mode === "redraw") {
      named("Redraw the box with one drag", null, "");
      reason = touch ? "Press the button again to leave it." : "Esc leaves it.";
    } else if (active?.kind === "draft" && active.label === null) {
      named("What is in the new box?", null, "");
      reason = touch
        ? "Tap its class, or find or add one."
        : `A digit chooses its class, ${hint("find")} finds or adds one.`;
    } else if (active?.kind === "label") {
      named(annotator.justDrawn ? "New box, saved as " : "Answered box: ", active.label, "");
      reason = touch
        ? "Tap a class to change it."
        : `A digit or ${hint("find")} changes its class, ${hint("remove")} removes it, ${hint("yes")} goes back to the question.`;
    } else if (active?.kind === "other") {
      named("Unanswered box: ", active.label, "?");
      reason = touch
        ? "Tap its class to make it a label, or beside it to leave it."
        : `${hint("yes")} or a digit makes it a label. Esc leaves it.`;
    } else if (task.kind === "edit" && task.answer) {
      named(
        query.box ? "You are changing an answer: " : "You are changing a whole image",
        query.box && task.answer.verdict === "object" ? guess : null,
        query.box && task.answer.verdict !== "object" ? inWords(task.answer) : "",
      );
      reason = `By ${task.answer.by}. ${touch ? "Back" : "Esc"} leaves it as it is.`;
    } else if (query.box) {
      if (guess === null) named("What is in this box?", null, "");
      else named("Is this ", guess, "?");
    } else {
      named("Box everything in this image", null, "");
      const pen = classOf(annotator.pen);
      reason = `${reason ? `${reason} ` : ""}Drag to draw${pen ? `; new boxes are “${pen.name}”` : ""}.`;
    }
    setText("reason", reason);
    const facts = [];
    if (task.kind === "ask" && query.box) {
      if (query.score !== null) facts.push(["score", percent(query.score)]);
      if (query.uncertainty !== null) facts.push(["uncertainty", query.uncertainty.toFixed(2)]);
    }
    if (task.kind === "ask" && now_phase() !== "first_images") facts.push(["cycle", String(query.cycle)]);
    facts.push(["photo", query.image.name]);
    replace(
      byId("facts"),
      ...facts.map(([name, value]) =>
        el(
          "span",
          { title: `${name} ${value}`, "data-fact": name },
          el("small", { text: name }),
          el("b", { text: value }),
        ),
      ),
    );
  }
  const now_phase = () => state()?.phase;

  function showButtons() {
    const task = annotator.task;
    const active = annotator.active;
    const whole = annotator.whole;
    const failed = annotator.pictureStatus === "failed";
    const loading = annotator.pictureStatus !== "ready";
    const drafts = task?.sketch.drafts.length ?? 0;
    const { guess } = annotator;
    const aside = active?.kind === "label";
    const yes = !task
      ? "Yes"
      : active?.kind === "other"
        ? "Make it a label"
        : aside
          ? "Back to the question"
          : whole
            ? drafts
              ? `Complete: ${counted(drafts, "box", "boxes")}`
              : task.armed
                ? "Sure? Nothing to label here"
                : "Nothing to label here"
            : task.kind === "edit" && guess !== null
              ? "Save"
              : guess === null
                ? "Choose a class"
                : `Yes, ${className(guess)}`;
    setButton(buttons.yes, yes, !task || loading);
    buttons.yes.classList.toggle("armed", Boolean(task?.armed));
    setButton(buttons.not_object, "Not an object", !task || loading);
    buttons.not_object.hidden = whole || aside || active?.kind === "other";
    setButton(buttons.cannot_tell, whole ? "Skip this image" : "Can't tell", !task || (loading && !failed));
    buttons.cannot_tell.hidden = aside || active?.kind === "other";
    buttons.draw.setAttribute("aria-pressed", String(annotator.view.mode === "draw"));
    buttons.redraw.setAttribute("aria-pressed", String(annotator.view.mode === "redraw"));
    buttons.redraw.hidden = !task || whole || task?.kind === "edit";
    setButton(buttons.redraw, "Redraw", !task || loading);
    setButton(buttons.draw, "Add box", !task || loading);
    buttons.draw.hidden = !task;
    buttons.remove.hidden = !active || active.kind === "asked";
    buttons.take_all.hidden = !whole || !annotator.marks().some((mark) => mark.kind === "other");
    buttons.complete.hidden = whole || task?.kind !== "ask" || aside;
    buttons.complete.setAttribute("aria-pressed", String(annotator.imageComplete));
    setButton(buttons.complete, "Image complete", loading);
    buttons.withdraw.hidden = task?.kind !== "edit" || task.answer?.by !== state()?.you; // another person's answer is corrected
    buttons.leave.hidden = task?.kind !== "edit";
    setButton(buttons.undo, "Undo", !annotator.canUndo);
    byId("answers").classList.toggle("idle", !task);
    document.querySelector("[data-testid=hide]")?.setAttribute("aria-pressed", String(annotator.hidden));
  }

  let classesShown = "";
  function showClasses() {
    const active = annotator.active;
    const label = active ? active.label : annotator.pen;
    const key = JSON.stringify([offered().map((one) => [one.label, one.name]), label, annotator.task !== null]);
    if (key === classesShown) return;
    classesShown = key;
    const place = byId("classes");
    const shown = offered().filter((one) => one.label < 20 || one.label === label);
    replace(
      place,
      el(
        "button",
        {
          class: "chip find",
          "data-testid": "find",
          "data-action": "find",
          disabled: !annotator.task,
          onclick: pickClass,
        },
        icon("search"),
        el("span", { text: "Find" }),
        el("kbd", { text: hint("find") }),
      ),
      ...shown.map((one) =>
        el(
          "button",
          {
            class: "chip",
            "data-testid": `class-${one.label}`,
            title: one.name,
            disabled: !annotator.task,
            "aria-pressed": String(one.label === label),
            onclick: (/** @type {PointerEvent} */ event) => {
              if (event.detail > 0) stage.focus({ preventScroll: true });
              annotator.choose(one.label);
            },
          },
          el("i", { class: "swatch", style: { background: colour(one.label) } }),
          el("span", { text: one.name }),
          one.label < 20 && el("kbd", { text: `${one.label > 9 ? "⇧" : ""}${(one.label + 1) % 10}` }),
        ),
      ),
    );
    const pressed = place.querySelector("[aria-pressed=true]")?.getBoundingClientRect();
    const frame = place.getBoundingClientRect();
    if (pressed) place.scrollLeft += (pressed.left + pressed.right - frame.left - frame.right) / 2;
  }

  function showProgress() {
    const now = state();
    if (!now) return;
    const { spent, of, unit } = now.budget;
    const done = Math.min(of, spent + spentOnTheWay());
    const text =
      now.phase === "first_images"
        ? `image ${Math.min(of, done + 1)} of ${of}`
        : now.phase === "preparing"
          ? ""
          : `${done} of ${of} ${unit}`;
    setText("progress-text", text);
    byId("progress-bar").style.width = `${of ? (100 * done) / of : 0}%`;
    byId("progress-bar").parentNode.hidden = !text;
    setText("project", now.project);
  }

  function showSaveState() {
    const node = byId("save-state");
    const words =
      {
        saved: "saved",
        saving: "saving",
        offline: waiting ? `offline (${waiting} waiting)` : "offline",
        "signed-out": "signed out",
      }[status] ?? status;
    if (node.dataset.state === status && node.textContent === words) return;
    node.dataset.state = status;
    node.textContent = words;
    node.title =
      status === "offline"
        ? "The answers are kept in this browser and are sent when the server is back."
        : "Every answer is saved at once.";
  }

  /* ---- news ---- */

  onState((now, before) => {
    document.title = `${now.project} · rarebox`;
    panel.update(now, spentOnTheWay());
    if (before && before.cycle > 0 && now.cycle > before.cycle) {
      const last = now.records.at(-1);
      say(
        `Cycle ${now.cycle}: new questions${last?.ap50 != null ? `, AP50 is now ${percent(last.ap50)}` : ""}.`,
        "news",
      );
    }
    annotator.refresh(); // classes may have new names and colours
  });
  let broken = false;
  const news = listen({
    state: accept,
    queries: () => outbox.ask(),
    opened: () => {
      expectAnything();
      if (broken) outbox.wake();
      if (broken || !annotator.queue.first) outbox.ask();
      broken = false;
    },
    broken: () => {
      if (!broken) outbox.ask(); // finds out whether the server is there
      broken = true;
    },
  });
  // Keeps the leases of a person who thinks for long.
  // Who has nothing to do gets what others leave: nobody tells when a lease ends.
  let asked = Date.now();
  setInterval(() => {
    const pause = annotator.queue.first ? annotator.queue.first.lease_seconds / 3 : LOOK_AGAIN;
    if (document.hidden || Date.now() - asked < 1000 * pause) return;
    asked = Date.now();
    outbox.ask();
  }, 2000);

  panel.update(first, 0);
  panel.refreshRecent();
  redraw();
  showSaveState();
  outbox.open();
  const unfinished = annotator.drafts.unfinished();
  const own = unfinished.find((kept) => kept.client === tab);
  if (own) edit(own.answer);
  else if (unfinished.length)
    say("A change of an old answer was not finished when its page was closed. Open that answer to go on with it.");
  stage.focus({ preventScroll: true });
}

/** @param {string} id @param {string} text */
function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

/** The question, with a class named in its colour. @param {string} before @param {number | null} label @param {string} after */
function setQuestion(before, label, after) {
  const node = byId("question");
  const name = label === null ? "" : className(label);
  const whole = before + name + after;
  if (node.textContent === whole && node.dataset.label === String(label)) return;
  node.dataset.label = String(label);
  replace(
    node,
    before,
    label !== null &&
      el("em", { "data-testid": "guess" }, el("i", { class: "swatch", style: { background: colour(label) } }), name),
    after,
  );
}

/** @param {any} node @param {string} text @param {boolean} disabled */
function setButton(node, text, disabled) {
  const words = node.querySelector(".text");
  if (words.textContent !== text) words.textContent = text;
  node.disabled = disabled;
}

start();
