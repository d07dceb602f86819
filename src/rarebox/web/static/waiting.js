/** What is going on while there is nothing to ask. */

import { post } from "./api.js";
import { counted, el, replace } from "./dom.js";
import { say } from "./notices.js";
import { bar } from "./panel.js";
import { accept, stageInWords, timeInWords } from "./state.js";

/** @param {HTMLElement} place @param {import("./types.js").State | null} now @param {string} status of the outbox @param {number} waiting answers on their way */
export function showWaiting(place, now, status, waiting) {
  const kept = waiting
    ? `${counted(waiting, "answer")} ${waiting === 1 ? "is" : "are"} kept in this browser and will be sent.`
    : "Nothing is lost.";
  const press = (/** @type {string} */ path) => async () => {
    try {
      accept(await post(path));
    } catch (error) {
      say(/** @type {Error} */ (error).message, "bad");
    }
  };
  const screen = (/** @type {string} */ title, /** @type {any[]} */ ...more) =>
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
      "Open the link that “rarebox serve” printed in the terminal, or ask for an invite link.",
      waiting ? kept : null,
    );
  if (status === "offline") return screen("The server does not answer", `The page tries again by itself. ${kept}`);
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
      trainer.reason ?? "No reason was given.",
      "All answers are kept.",
      el("button", { class: "primary", text: "Try again", onclick: press("/api/retry") }),
    );
  }
  if (now.phase === "finished") {
    return screen(
      "Finished",
      "All questions of this project are answered. The labels can be downloaded from the side panel.",
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
      trainer.state === "working" ? "Getting ready" : "Looking for the most different photos",
      progress,
      doing,
      "The first photos appear here by themselves.",
    );
  }
  if (trainer.state === "working") {
    return screen(
      "Learning from your answers",
      progress,
      doing,
      "The next questions appear here by themselves. Time for a coffee, or for a look at the answers so far.",
    );
  }
  const rest =
    "The questions that remain are with other people or in another tab. What those leave appears here by itself.";
  screen(
    "Nothing to ask just now",
    rest,
    now.can_train && el("button", { class: "primary", text: "Train now", onclick: press("/api/train") }),
  );
}

/** The picture is on its way, or did not come. @param {HTMLElement} place @param {import("./editor.js").Editor} editor */
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
      el("p", { text: "Try again, or say that you can't tell and go on." }),
      el("button", { text: "Try again", onclick: () => editor.showPicture() }),
    ),
  );
}
