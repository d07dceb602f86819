/** Unfinished changes, stored in the browser so that a reload or a closed tab does not lose them. */

import { forget, names, recall, remember } from "./local.js";

/** @typedef {import("./types.js").Answer} Answer */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./task.js").Sketch} Sketch */
/** @typedef {import("./task.js").Task} Task */

const DAYS = 14;

export class Drafts {
  /** Deletes old drafts. @param {string} project @param {string} client the tab */
  constructor(project, client) {
    this.project = project;
    this.client = client;
    for (const name of [...names(`${project}/draft/`), ...names(`${project}/edit/`)]) {
      if (Date.now() - (recall(name)?.at ?? 0) > DAYS * 864e5) forget(name);
    }
  }

  /** @param {Query} query @param {Answer | null} [answer] that is being changed @returns {Sketch | null} */
  of(query, answer = null) {
    return recall(this.#name(query, answer))?.sketch ?? null;
  }

  /** @param {{query: Pick<Query, "id">, answer: Answer | null, sketch: Sketch}} task */
  keep({ query, answer, sketch }) {
    remember(this.#name(query, answer), { at: Date.now(), sketch, answer, client: this.client });
  }

  /** @param {Query} query @param {Answer | null} [answer] */
  forget(query, answer = null) {
    forget(this.#name(query, answer));
  }

  /** Old answers that were being changed when their page was closed. @returns {{answer: Answer, client: string}[]} */
  unfinished() {
    return names(`${this.project}/edit/`)
      .map((name) => recall(name))
      .filter((kept) => kept?.answer);
  }

  /** @param {Pick<Query, "id">} query @param {Answer | null} answer */
  #name(query, answer) {
    return `${this.project}/${answer ? `edit/${answer.answer}` : `draft/${query.id}`}`;
  }
}
