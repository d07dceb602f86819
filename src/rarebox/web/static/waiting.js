/** Shown in place of the picture when there is no question or no picture. */

import { command } from "./commands.js";
import { bar, counted, el, replace } from "./dom.js";
import { stageInWords, timeInWords } from "./state.js";

/** @param {HTMLElement} place @param {import("./types.js").State | null} now @param {string} status of the outbox @param {number} waiting number of unsent answers */
export function showWaiting(place, now, status, waiting) {
  const kept = waiting
    ? `${counted(waiting, "answer")} ${waiting === 1 ? "is" : "are"} kept in this browser and will be sent.`
    : "Nothing is lost.";
  const press = (/** @type {string} */ path) => () => command(path);
  const screen = (/** @type {string} */ title, /** @type {(Node | string | null | false)[]} */ ...more) =>
    replace(
      place,
      el(
        "div",
        { class: "waiting-text" },
        el("h2", { text: title }),
        ...more.map((part) => (typeof part === "string" ? el("p", { text: part }) : part)),
      ),
    );

  if (status === "signed-out")
    return screen(
      "Not signed in",
      "Open the link that “rarebox serve” printed in the terminal. It works once: ask for an invite link, or restart the server, to get another.",
      waiting ? kept : null,
    );
  if (status === "offline") return screen("The server does not respond", `This page keeps trying. ${kept}`);
  if (!now) return screen("Loading …");
  const { trainer } = now;
  const progress = trainer.state === "working" && bar(trainer.of ? trainer.done / trainer.of : 0, trainer.stage);
  const doing = [stageInWords(trainer.stage), timeInWords(now)]
    .filter(Boolean)
    .map((words) => `${words[0].toUpperCase()}${words.slice(1)}.`)
    .join(" ");
  if (trainer.state === "failed") {
    return screen(
      "Training failed",
      trainer.reason ?? "No reason was reported.",
      "All answers are saved.",
      el("button", { class: "primary", text: "Try again", onclick: press("/api/retry") }),
    );
  }
  if (now.phase === "finished") {
    return screen(
      "Finished",
      "All questions of this project are answered. Download the labels from the side panel.",
      el("a", {
        class: "button primary",
        href: "/api/export?format=coco",
        download: "",
        text: "Download labels (COCO)",
      }),
    );
  }
  if (now.phase === "preparing") {
    return screen(
      trainer.state === "working" ? "Getting ready" : "Choosing the initial images",
      progress,
      doing,
      "The initial images will appear here automatically.",
    );
  }
  if (trainer.state === "working") {
    return screen(
      "Training on your answers",
      progress,
      doing,
      "The next questions will appear here automatically. In the meantime, you can browse the answers so far.",
    );
  }
  const rest =
    "The remaining questions are with other people or in another tab. If any become free, they will appear here.";
  screen(
    "No questions right now",
    rest,
    now.can_train && el("button", { class: "primary", text: "Train now", onclick: press("/api/train") }),
  );
}

/** Reports that the picture is loading or could not be loaded. @param {HTMLElement} place @param {import("./editor.js").Editor} editor */
export function showPictureStatus(place, editor) {
  if (editor.pictureStatus === "loading") {
    return replace(place, el("p", { class: "loading", text: "Loading the picture …" }));
  }
  replace(
    place,
    el(
      "div",
      { class: "waiting-text", "data-testid": "picture-failed" },
      el("h2", { text: "The picture cannot be shown" }),
      el("p", { text: editor.task?.query.image.name ?? "" }),
      el("p", { text: "Try again, or press “Can't tell” to continue." }),
      el("button", { text: "Try again", onclick: () => editor.showPicture() }),
    ),
  );
}
