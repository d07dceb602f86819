/** Starts the page: signs in, asks for a name if there is none, and opens the page. Read page.js next. */

import { get, post, SignedOut } from "./api.js";
import { nameForm, openDialog } from "./dialogs.js";
import { byId, el } from "./dom.js";
import { Page } from "./page.js";
import { accept, state } from "./state.js";
import { showWaiting } from "./waiting.js";

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
  new Page(/** @type {import("./types.js").State} */ (state()), (again) => askName(false).then(again));
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

start();
