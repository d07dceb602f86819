/** The questions that the server has leased to this tab, the one shown included. */

/** @typedef {import("./types.js").Query} Query */

const AHEAD = 4; // the question shown and the next three

export class Queue {
  /** @type {Query[]} */
  held = [];
  /** Questions that come before all others. @type {number[]} */
  pinned = [];

  /** @param {import("./outbox.js").Outbox} outbox */
  constructor(outbox) {
    this.outbox = outbox;
  }

  /** Takes the questions from the server, without those that have unsent answers. @param {Query[]} queries */
  receive(queries) {
    const reopened = this.held.filter((query) => this.outbox.latest(query.id)?.item.verdict === "withdrawn");
    const open = queries.filter((query) => !this.outbox.latest(query.id));
    const first = (/** @type {Query} */ query) => this.pinned.includes(query.id);
    this.held = [...reopened, ...open.filter(first), ...open.filter((query) => !first(query))];
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

  /** Adds questions behind the others. @param {Query[]} queries */
  add(queries) {
    this.held = [...this.held, ...queries.filter((query) => !this.find(query.id))];
  }

  /** Removes those of these questions that are not among the next ones, and returns their ids. @param {Query[]} queries */
  spare(queries) {
    const spare = this.held.slice(AHEAD).filter((query) => queries.some((one) => one.id === query.id));
    for (const query of spare) this.remove(query.id);
    return spare.map((query) => query.id);
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
