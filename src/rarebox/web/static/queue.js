/** The questions that the server has leased to this tab, the one shown included. */

/** @typedef {import("./types.js").Query} Query */

const AHEAD = 4;

export class Queue {
  /** @type {Query[]} */
  held = [];

  /** @param {import("./outbox.js").Outbox} outbox */
  constructor(outbox) {
    this.outbox = outbox;
  }

  /** Takes the questions from the server, without those that have unsent answers. @param {Query[]} queries */
  receive(queries) {
    const reopened = this.held.filter((query) => this.outbox.latest(query.id)?.item.verdict === "withdrawn");
    this.held = [...reopened, ...queries.filter((query) => !this.outbox.latest(query.id))];
  }

  /** @returns {Query | null} */
  get first() {
    return this.held[0] ?? null;
  }

  /** @param {number} id */
  find(id) {
    return this.held.find((query) => query.id === id) ?? null;
  }

  /** @param {Query} query */
  putFirst(query) {
    this.held = [query, ...this.held.filter((one) => one.id !== query.id)];
  }

  /** @param {number | null} id */
  remove(id) {
    this.held = this.held.filter((query) => query.id !== id);
  }

  /** Images of the next questions. */
  get images() {
    return this.held.slice(0, AHEAD).map((query) => query.image);
  }
}
