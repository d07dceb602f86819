/** The two dialogs of the page: a narrow one and one for galleries. The browser's <dialog> keeps the focus inside. */

import { dialogById, el, icon, replace } from "./dom.js";

/**
 * @param {string} title @param {(body: HTMLElement, close: () => void) => void} fill
 * @param {{wide?: boolean, fixed?: boolean, testid?: string, closed?: () => void}} [how] fixed: only its form closes it
 */
export function openDialog(title, fill, { wide = false, fixed = false, testid = "", closed } = {}) {
  const dialog = dialogById(wide ? "wide" : "dialog");
  if (dialog.open) dialog.close();
  const close = () => dialog.close();
  const body = el("div", { class: "dialog-body", "data-testid": testid || null });
  const head = el(
    "header",
    {},
    el("h2", { text: title }),
    !fixed &&
      el("button", { class: "bare", "aria-label": "Close", "data-testid": "close", onclick: close }, icon("close")),
  );
  replace(dialog, head, body);
  dialog.setAttribute("aria-label", title);
  dialog.oncancel = (/** @type {Event} */ event) => {
    if (fixed) event.preventDefault();
  };
  dialog.onclose = () => {
    if (dialog.open) return; // the late event of the previous dialog
    replace(dialog);
    closed?.();
  };
  dialog.onpointerdown = (/** @type {PointerEvent} */ event) => {
    if (!fixed && event.target === dialog) close(); // pressed outside
  };
  fill(body, close);
  dialog.showModal();
  return close;
}

/** A form for a name. It shows the error when the server refuses the name. @param {{label: string, value?: string, button: string, testid: string, done: (name: string) => Promise<any>}} what */
export function nameForm({ label, value = "", button, testid, done }) {
  const input = el("input", {
    type: "text",
    maxlength: 60,
    value,
    required: true,
    autocomplete: "off",
    "aria-label": label,
    placeholder: label,
    "data-testid": testid,
  });
  const problem = el("p", { class: "problem", role: "alert" });
  const form = el("form", { class: "name-form" }, input, el("button", { class: "primary", text: button }), problem);
  form.addEventListener("submit", async (/** @type {Event} */ event) => {
    event.preventDefault();
    const name = input.value.trim();
    if (!name) return;
    try {
      await done(name);
    } catch (error) {
      problem.textContent = /** @type {Error} */ (error).message;
      input.focus();
    }
  });
  return form;
}
