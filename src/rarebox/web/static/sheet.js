/** The list of keyboard shortcuts, which can be changed. */

import { openDialog } from "./dialogs.js";
import { el, replace } from "./dom.js";
import { ACTIONS, FIXED, keysOf, rebind, resetKeys, shown } from "./keys.js";

/** @param {() => void} changed @param {() => void} tour shows the tour */
export function openSheet(changed, tour) {
  openDialog(
    "Keyboard shortcuts",
    (body, close) => {
      const columns = el("div", { class: "sheet", "data-testid": "key-sheet" });
      const remark = el("p", { class: "problem", role: "status" });
      const show = () => replace(columns, ...["Answer", "Boxes", "View", "Several at once"].map(group));

      /** @param {string} name */
      function group(name) {
        return el(
          "section",
          {},
          el("h3", { text: name }),
          el(
            "ul",
            {},
            ...ACTIONS.filter((one) => one.group === name).map((one) =>
              el(
                "li",
                {},
                el("span", { class: "what", text: one.title }),
                el("span", { class: "keys" }, ...keysOf(one.id).map((key) => el("kbd", { text: shown(key) }))),
                el("button", {
                  class: "link",
                  text: "Change",
                  "aria-label": `Change the key of: ${one.title}`,
                  "data-testid": `rebind-${one.id}`,
                  onclick: (/** @type {Event} */ event) =>
                    listen(one.id, one.title, /** @type {HTMLElement} */ (event.currentTarget)),
                }),
              ),
            ),
            ...FIXED.filter((one) => one.group === name).map((one) =>
              el(
                "li",
                {},
                el("span", { class: "what", text: one.title }),
                el("span", { class: "keys" }, ...one.keys.map((key) => el("kbd", { text: key }))),
              ),
            ),
          ),
        );
      }

      /** @param {string} id @param {string} title @param {HTMLElement} button */
      function listen(id, title, button) {
        remark.textContent = `Press the new key for “${title}” (Esc cancels).`;
        button.textContent = "Press a key …";
        button.addEventListener("keydown", (event) => {
          if (["Shift", "Control", "Alt", "Meta"].includes(event.key)) return;
          event.preventDefault();
          event.stopPropagation();
          const problem = event.key === "Escape" ? "" : rebind(id, event);
          if (problem) return void (remark.textContent = problem);
          remark.textContent = "";
          show();
          changed();
        });
        button.addEventListener("keyup", (event) => event.preventDefault());
        button.addEventListener("blur", () => (button.textContent = "Change"));
      }

      body.append(
        columns,
        remark,
        el("p", {
          class: "quiet",
          text: "On a touch screen, one finger moves the picture, or draws if the question is about the whole image. Two fingers zoom. After “Add box”, the next drag draws a box.",
        }),
        el("button", { text: "Show the tour", "data-testid": "show-tour", onclick: () => (close(), tour()) }),
        el("button", {
          text: "Reset all shortcuts",
          "data-testid": "reset-keys",
          onclick: () => (resetKeys(), (remark.textContent = ""), show(), changed()),
        }),
      );
      show();
    },
    { wide: true, testid: "keys" },
  );
}
