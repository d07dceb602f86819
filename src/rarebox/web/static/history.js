/** Undo and redo of the actions that this tab has sent. The history survives a reload. */

import { recall, remember } from "./local.js";
import { draws } from "./steps.js";

/** @typedef {import("./steps.js").Entry} Entry */
/** @typedef {import("./steps.js").Step} Step */
/** @typedef {Entry & {key: string, at: number}} Done  key: the latest answer it refers to; at: time in milliseconds */

const LENGTH = 40;
const KEPT = 20; // entries that survive a reload

export class History {
  /** @type {Done[]} */
  #past = [];
  /** @type {Done[]} */
  #future = [];

  /** @param {import("./outbox.js").Outbox} outbox @param {() => number} lap milliseconds that the person spent on the action */
  constructor(outbox, lap) {
    this.outbox = outbox;
    this.lap = lap;
    const past = recall(`${outbox.project}/history`, [], sessionStorage);
    this.#past = Array.isArray(past) ? past : [];
  }

  /** The action that undo takes back next. */
  get last() {
    return this.#past.at(-1) ?? null;
  }

  /** The action that redo repeats next. */
  get next() {
    return this.#future.at(-1) ?? null;
  }

  /** The questions that undo would show next. */
  get recent() {
    return this.#past.slice(-2).flatMap((entry) => entry.query ?? []);
  }

  /**
   * Sends an action.
   * @param {Entry} entry @param {string | null} [parent] key of an unsent answer that it corrects
   * @param {number} [milliseconds] spent on it @returns {string} its key
   */
  add(entry, parent = null, milliseconds = this.lap()) {
    const key = this.#send(entry.forth, entry, parent, milliseconds);
    const base = entry.base || `k${key}`;
    // Redoing it corrects the answer that undo left, so it must refer to that answer.
    const forth = { ...entry.forth, refer: parent !== null || Boolean(entry.forth.item.after) };
    this.#past.push({ ...entry, key, base, forth, at: Date.now() });
    this.#refer(base, key);
    this.#past = this.#past.slice(-LENGTH);
    this.#future = [];
    this.#keep();
    return key;
  }

  /** Undoes the last action. */
  undo() {
    return this.#move(this.#past, this.#future, "back");
  }

  /** Redoes the last undone action. */
  redo() {
    return this.#move(this.#future, this.#past, "forth");
  }

  /** Drops an action that the server did not save, and returns it. @param {string} key */
  drop(key) {
    const dropped = [...this.#past, ...this.#future].find((entry) => entry.key === key);
    this.#past = this.#past.filter((entry) => entry.key !== key);
    this.#future = this.#future.filter((entry) => entry.key !== key);
    this.#keep();
    return dropped;
  }

  /** Was this box drawn here? @param {string} base */
  drew(base) {
    return this.#past.some((entry) => draws(entry.forth) && this.#same(entry.base, base));
  }

  /** @param {Done[]} from @param {Done[]} to @param {"back" | "forth"} direction */
  #move(from, to, direction) {
    const entry = from.pop();
    if (!entry) return null;
    this.#do(entry[direction], entry);
    to.push(entry);
    this.#keep();
    return entry;
  }

  /** @param {Step} step @param {Done} entry */
  #do(step, entry) {
    const before = this.outbox.baseOf(entry.base);
    entry.key = this.#send(step, { ...entry, base: draws(step) ? "" : entry.base }, step.refer ? entry.key : null);
    entry.at = Date.now();
    if (draws(step)) {
      // To the server, a box that is drawn again is a new box. All entries on the old one now refer to the new one.
      for (const one of [entry, ...this.#past, ...this.#future]) {
        if (this.outbox.baseOf(one.base) === before) one.base = `k${entry.key}`;
      }
    }
    this.#refer(entry.base, entry.key);
  }

  /** All entries on one answer refer to its latest correction. @param {string} base @param {string} key */
  #refer(base, key) {
    for (const entry of [...this.#past, ...this.#future]) if (this.#same(entry.base, base)) entry.key = key;
  }

  /** @param {string} a @param {string} b */
  #same(a, b) {
    return this.outbox.baseOf(a) === this.outbox.baseOf(b);
  }

  /** @param {Step} step @param {Entry} entry @param {string | null} parent */
  #send(step, { image, base, what }, parent, milliseconds = this.lap()) {
    const item = { after: null, ...step.item, milliseconds };
    return this.outbox.send(item, { image, base: base || undefined, what, parent, fresh: step.fresh });
  }

  #keep() {
    remember(`${this.outbox.project}/history`, this.#past.slice(-KEPT), sessionStorage);
  }
}
