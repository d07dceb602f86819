/** Requests that a button makes. Errors are shown on the page. */

import { getFile, post } from "./api.js";
import { el } from "./dom.js";
import { notify } from "./notices.js";
import { accept } from "./state.js";

/** Sends a command whose reply is the new state. @param {string} path */
export const command = (path) => reporting(async () => accept(await post(path)));

/** Downloads the labels. @param {string} format */
export const downloadLabels = (format) =>
  reporting(async () => {
    const { content, name } = await getFile(`/api/export?format=${format}`);
    const link = el("a", { href: URL.createObjectURL(content), download: name ?? `labels-${format}.zip` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  });

/** @param {() => Promise<void>} request */
export async function reporting(request) {
  try {
    await request();
  } catch (error) {
    notify(/** @type {Error} */ (error).message || "The request failed.", "bad");
  }
}
