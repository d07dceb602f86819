/** The class editor: add, rename, merge. Class indices never change, so colours and keys stay the same. */

import { post } from "./api.js";
import { colour } from "./colours.js";
import { nameForm, openDialog } from "./dialogs.js";
import { counted, el, replace } from "./dom.js";
import { findClass } from "./finder.js";
import { accept, className, offered } from "./state.js";

export function openClasses() {
  openDialog("Classes", (body) => {
    const list = el("ul", { class: "class-list", "data-testid": "class-list" });
    const problem = el("p", { class: "problem", role: "alert" });
    const change = async (/** @type {object} */ request) => {
      problem.textContent = "";
      accept(await post("/api/classes", request));
      show();
    };
    const show = () => replace(list, ...offered().map((one) => row(one)));

    /** @param {import("./types.js").Class} one */
    function row({ label, name, count }) {
      const item = el(
        "li",
        { "data-testid": "class-row" },
        el("i", { class: "swatch", style: { background: colour(label) } }),
        el("span", { class: "who", text: name }),
        el("small", { text: counted(count, "box", "boxes") }),
        el("button", {
          text: "Rename",
          "data-testid": "rename",
          onclick: () => {
            replace(
              item,
              nameForm({
                label: "New name",
                value: name,
                button: "Rename",
                testid: "rename-input",
                done: (text) => change({ rename: { label, name: text } }),
              }),
            );
            item.querySelector("input")?.select();
          },
        }),
        el("button", {
          text: "Merge …",
          "data-testid": "merge",
          onclick: () =>
            findClass((into) => confirm(item, label, into), undefined, {
              title: `Merge “${name}” into`,
              without: label,
              adding: false,
            }),
        }),
      );
      return item;
    }

    /** @param {HTMLElement} item @param {number} label @param {number} into */
    function confirm(item, label, into) {
      replace(
        item,
        el("span", {
          class: "who",
          text: `All boxes of “${className(label)}” become “${className(into)}”. This cannot be undone on this page.`,
        }),
        el("button", {
          class: "primary",
          text: "Merge",
          "data-testid": "merge-confirm",
          onclick: () =>
            change({ merge: { label, into } }).catch((error) => ((problem.textContent = error.message), show())),
        }),
        el("button", { text: "Cancel", onclick: show }),
      );
    }

    const adder = nameForm({
      label: "Name of a new class",
      button: "Add",
      testid: "add-class",
      done: async (name) => {
        await change({ add: name });
        adder.reset();
      },
    });
    body.append(list, problem, adder);
    show();
  });
}
