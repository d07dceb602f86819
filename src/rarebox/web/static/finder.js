/** The search for a class. A name that does not exist can be added as a new class. */

import { post } from "./api.js";
import { colour } from "./colours.js";
import { byId, dialogById, el, replace } from "./dom.js";
import { accept, offered } from "./state.js";

/**
 * @param {(label: number) => void} done @param {() => void} [cancelled]
 * @param {{title?: string, without?: number, adding?: boolean}} [how]
 */
export function findClass(done, cancelled, { title = "Find a class", without = -1, adding = true } = {}) {
  const dialog = dialogById("finder");
  if (dialog.open) dialog.close();
  let at = 0;
  let chosen = false;
  /** @type {{text: string, label: number | null}[]} */
  let options = [];
  const input = el("input", {
    type: "text",
    maxlength: 60,
    placeholder: adding ? `${title}, or type a new name` : title,
    autocomplete: "off",
    spellcheck: "false",
    role: "combobox",
    "aria-expanded": "true",
    "aria-controls": "found",
    "aria-label": title,
    "data-testid": "class-search",
  });
  const list = el("ul", { id: "found", role: "listbox", "aria-label": "Classes" });
  const problem = el("p", { class: "problem", role: "alert" });

  const search = () => {
    const typed = input.value.trim().replace(/\s+/g, " "); // as the server normalises it
    const words = typed.toLowerCase();
    const found = offered().filter((one) => one.label !== without && one.name.toLowerCase().includes(words));
    const begins = (/** @type {string} */ name) => (name.toLowerCase().startsWith(words) ? 0 : 1);
    found.sort((a, b) => begins(a.name) - begins(b.name));
    options = found.map((one) => ({ text: one.name, label: one.label }));
    const exact = offered().some((one) => one.name.toLowerCase() === words);
    if (adding && words && !exact) options.push({ text: typed, label: null });
    at = 0;
    show();
  };
  const show = () => {
    replace(
      list,
      ...options.map(({ text, label }, i) =>
        el(
          "li",
          {
            role: "option",
            id: `found-${i}`,
            "aria-selected": String(i === at),
            "data-testid": label === null ? "class-add" : "class-option",
            onpointerdown: (/** @type {Event} */ event) => event.preventDefault(),
            onclick: () => take(i),
          },
          label === null
            ? el("i", { class: "swatch new", text: "+" })
            : el("i", { class: "swatch", style: { background: colour(label) } }),
          el("span", { text: label === null ? `Add “${text}”` : text }),
          label !== null &&
            label < 20 &&
            el("kbd", { text: label < 10 ? String((label + 1) % 10) : `⇧ ${(label - 9) % 10}` }),
        ),
      ),
    );
    if (!options.length)
      list.append(el("li", { class: "none", text: "No classes yet. Type a name to add the first one." }));
    input.setAttribute("aria-activedescendant", options.length ? `found-${at}` : "");
    list.children[at]?.scrollIntoView({ block: "nearest" });
  };
  const take = async (/** @type {number} */ i) => {
    const option = options[i];
    if (!option) return;
    let { label } = option;
    if (label === null) {
      try {
        const next = await post("/api/classes", { add: option.text });
        accept(next);
        label =
          next.classes.find(
            (/** @type {import("./types.js").Class} */ one) =>
              one.merged_into === null && one.name.toLowerCase() === option.text.toLowerCase(),
          )?.label ?? null;
      } catch (error) {
        problem.textContent = /** @type {Error} */ (error).message;
        return;
      }
    }
    chosen = true;
    dialog.close();
    if (label !== null) done(label);
  };

  input.addEventListener("input", search);
  input.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.isComposing) return;
    const digit = input.value === "" && /^\d$/.test(event.key) ? (Number(event.key) || 10) - 1 : -1;
    // A digit chooses a class unless a name contains it.
    const byDigit = options.some(({ text }) => text.includes(event.key))
      ? -1
      : options.findIndex(({ label }) => label === digit);
    if (byDigit >= 0) {
      event.preventDefault();
      return void take(byDigit);
    }
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step && options.length) {
      at = (at + step + options.length) % options.length;
      show();
    } else if (event.key === "Enter") {
      if (!event.repeat) take(at);
    } else return;
    event.preventDefault();
  });
  replace(dialog, input, list, problem);
  dialog.onclose = () => {
    replace(dialog);
    if (!chosen) cancelled?.();
    byId("stage").focus({ preventScroll: true });
  };
  dialog.onpointerdown = (/** @type {PointerEvent} */ event) => {
    if (event.target === dialog) dialog.close(); // pressed outside
  };
  dialog.showModal();
  search();
  input.focus();
}
