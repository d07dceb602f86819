/** The dialog with a link that lets another person label in this project. */

import { post } from "./api.js";
import { reporting } from "./commands.js";
import { openDialog } from "./dialogs.js";
import { el } from "./dom.js";

export const invite = () =>
  reporting(async () => {
    const { url, local } = await post("/api/invite");
    const link = el("input", {
      type: "text",
      readonly: true,
      value: url,
      "aria-label": "Invite link",
      "data-testid": "invite-link",
    });
    openDialog("Invite someone", (body) => {
      const copied = el("span", { class: "quiet", role: "status" });
      const copy = async () => {
        link.select();
        const done = navigator.clipboard
          ? await navigator.clipboard.writeText(url).then(
              () => true,
              () => false,
            )
          : false;
        copied.textContent = done ? "Copied." : "Press Ctrl+C to copy.";
      };
      body.append(
        el("p", {
          text: "One person can open this link, once, to label in this project. Until then, treat it like a password.",
        }),
        ...(local
          ? [
              el("p", {
                "data-testid": "invite-local",
                text: "It works in another browser on this computer only. For other computers and phones, restart the server with a link for each person: rarebox serve PROJECT --host 0.0.0.0 --people anna,ben",
              }),
            ]
          : []),
        el("div", { class: "name-form" }, link, el("button", { class: "primary", text: "Copy", onclick: copy })),
        copied,
      );
    });
  });
