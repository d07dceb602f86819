/**
 * Exchanges answers and questions with the server. Each answer is written to localStorage before the page moves on and removed
 * when the server has it on disk, so a closed tab or a stopped server loses nothing. Each answer has a key, so that the server
 * saves it once even if it is sent twice. Only a reply of our own server that names an answer's key settles that answer. After any
 * other reply, the answer is kept and sent again, after growing pauses and in smaller requests.
 */

import { sendOnClose, Offline, post, Refused, SignedOut } from "./api.js";
import { forget, names, recall, remember, uuid } from "./local.js";

/** @typedef {import("./types.js").Item} Item */
/** @typedef {import("./types.js").Query} Query */
/** @typedef {import("./types.js").Result} Result */
/** @typedef {import("./types.js").State} State */

/**
 * An unsent answer. `parent`: the key of the answer it corrects, if that was sent from here; `fresh`: it answers the reopened
 * question of its parent; `aside`: an earlier request was refused, because the store was older than the answer.
 * @typedef {{name: string, client: string, at: number, item: Item, image: number, base: string, what: string,
 *   parent: string | null, fresh: boolean, aside?: boolean}} Sending
 */

const WANT = 4; // the question shown and the next three
const BATCH = 50;
const REMEMBERED = 400; // outcomes kept, so that saved answers can be corrected
const ADOPT_AFTER = 8000; // milliseconds; an open tab sends its own answers sooner

export class Outbox {
  /** @type {Sending[]} */
  #waiting = [];
  /** The numbers of saved answers by key, or null if they were not saved. @type {Record<string, {query: number, answer: number} | null>} */
  #outcomes = {};
  #busy = false;
  #wanted = false;
  #batchSize = BATCH;
  #failures = 0;
  #timer = 0;
  #sequence = 0;
  /** The session of the store in which this tab saw the numbers of images, questions, answers and classes. @type {string | null} */
  #session;
  /** The process that served it. @type {string | null} */
  #server = null;
  /** May this tab show numbers of its session? */
  #shows = false;
  /** The last problem reported. @type {string | null} */
  #problem = null;
  /** Answers that did not fit into localStorage. @type {Set<Sending>} */
  #unstored = new Set();
  /** Answers whose own request failed. Others are sent first. @type {Set<Sending>} */
  #deferred = new Set();

  /**
   * @param {string} project @param {string} client
   * @param {{state: (state: State) => void, queries: (queries: Query[], offer: import("./types.js").Offer | null) => void, results: (pairs: {record: Sending, result: Result}[]) => void,
   *   status: (status: string, waiting: number) => void, problem: (sentence: string) => void}} handlers
   */
  constructor(project, client, handlers) {
    this.project = project;
    this.client = client;
    this.handlers = handlers;
    this.#session = recall(`${project}/session`, null, sessionStorage);
    this.#shows = this.#session !== null;
    this.#session ??= recall(`${project}/session`);
    this.#loadOutcomes();
    addEventListener("storage", (event) => event.key === `rarebox/${project}/saved` && this.#loadOutcomes());
    addEventListener("online", () => this.wake());
    // Releases this tab's questions, unless answers to them are unsent.
    addEventListener("pagehide", () => this.#waiting.length || sendOnClose("/api/leave", { client }));
    addEventListener("beforeunload", (event) => {
      if (this.#unstored.size) event.preventDefault();
    });
  }

  /** Sends answers left by an earlier page, those of closed tabs after a delay, and asks for questions. */
  open() {
    this.#adopt((record) => record.client === this.client);
    setInterval(() => this.#adopt(isLeft), ADOPT_AFTER);
    this.ask();
  }

  /**
   * Stores an answer and sends it as soon as possible.
   * @param {Omit<Item, "key">} item
   * @param {{image: number, base?: string, what: string, parent?: string | null, fresh?: boolean}} about
   * @returns {string} its key
   */
  send(item, { image, base, what, parent = null, fresh = false }) {
    const key = uuid();
    const at = Date.now();
    const name = `${this.project}/out/${at}-${String(this.#sequence++).padStart(6, "0")}-${key}`;
    const record = {
      name,
      client: this.client,
      at,
      item: { ...item, key, session: this.#session },
      image,
      base: base ?? `k${key}`,
      what,
      parent,
      fresh,
    };
    this.#waiting.push(record);
    if (!remember(name, record)) {
      this.#unstored.add(record);
      this.#reportProblem("This browser has no room left to store answers. Keep this page open until it says “saved”.");
    }
    this.#report("saving");
    this.wake();
    return key;
  }

  /** Asks for questions. */
  ask() {
    this.#wanted = true;
    this.wake();
  }

  /** Sends now, without waiting for the pause to end. */
  wake() {
    clearTimeout(this.#timer);
    this.#run();
  }

  /** Leases boxes of one class that can be checked at once; none if there are too few. @returns {Promise<{queries: Query[], problem?: string}>} */
  async grid() {
    try {
      const reply = await post("/api/grid", { client: this.client, session: this.#session });
      if (reply.state?.id !== this.project || !Array.isArray(reply.queries))
        throw new Offline("Another program replied.", true);
      if (reply.outdated) this.#forgetNumbers();
      else this.#join(reply.state);
      return { queries: reply.queries };
    } catch (error) {
      return { queries: [], problem: error instanceof Error ? error.message : String(error) };
    }
  }

  /** Gives questions back. If that fails, this tab keeps them. @param {number[]} queries */
  async release(queries) {
    if (queries.length) await post("/api/release", { client: this.client, queries }).catch(() => null);
    this.ask();
  }

  /** Unsent answers, oldest first. @returns {readonly Sending[]} */
  get waiting() {
    return this.#waiting;
  }

  /** The latest unsent answer to a question. @param {number} query */
  latest(query) {
    return this.#waiting.findLast((record) => record.base === `q${query}`) ?? null;
  }

  /** The numbers of a saved answer. @param {string} key */
  saved(key) {
    return this.#outcomes[key] ?? null;
  }

  /** The current name of an answer: a box drawn here is named after its question once the server has saved it. @param {string} base */
  baseOf(base) {
    const saved = base.startsWith("k") ? this.saved(base.slice(1)) : null;
    return saved ? `q${saved.query}` : base;
  }

  /** @param {(record: Sending) => boolean} mine */
  #adopt(mine) {
    const known = new Set(this.#waiting.map((record) => record.name));
    const found = names(`${this.project}/out/`)
      .filter((name) => !known.has(name))
      .map((name) => ({ ...recall(name), name }))
      .filter((record) => typeof record.item?.key === "string" && typeof record.client === "string" && mine(record));
    if (!found.length) return;
    this.#loadOutcomes();
    this.#waiting = [...this.#waiting, ...found].sort((a, b) => (a.name < b.name ? -1 : 1));
    this.wake();
  }

  async #run() {
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (this.#waiting.length || this.#wanted) {
        if (!(await this.#exchange())) break;
      }
    } finally {
      this.#busy = false;
    }
  }

  /** Sends one request. @returns {Promise<boolean>} whether to send the next one immediately */
  async #exchange() {
    const batch = this.#batch();
    if (!batch.length && !this.#wanted) return false;
    const client = batch[0]?.client ?? this.client;
    const own = client === this.client;
    if (own) this.#wanted = false;
    try {
      if (batch.length) this.#report("saving");
      const body = { client, want: own ? WANT : 0, session: this.#session };
      const reply = batch.length
        ? await post("/api/answers", { ...body, answers: batch.map((record) => this.#outgoing(record)) })
        : await post("/api/next", body);
      const whole = Array.isArray(reply.queries) && (!batch.length || Array.isArray(reply.results));
      if (!whole || reply.state?.id !== this.project) throw new Offline("Another program replied.", true);
      const pairs = this.#receive(batch, reply.results ?? []);
      if (batch.length && !pairs.length) throw new Offline("The server did not report on these answers.", true);
      this.#failures = 0;
      this.#problem = null;
      this.#batchSize = Math.min(BATCH, 2 * this.#batchSize);
      if (own) this.handlers.queries(reply.queries, reply.grid ?? null); // first, because they include the boxes just saved
      this.handlers.state(reply.state);
      if (pairs.length) this.handlers.results(pairs);
      this.#report(this.#waiting.length ? "saving" : "saved");
      if (reply.outdated) this.#forgetNumbers();
      else this.#join(reply.state);
      return true;
    } catch (error) {
      if (own) this.#wanted = true;
      if (error instanceof Refused && this.#refused(batch, error)) return true;
      if (error instanceof SignedOut) {
        this.#report("signed-out");
        this.#timer = window.setTimeout(() => this.wake(), 15_000); // the person may sign in again in another tab
      } else if (error instanceof Offline || error instanceof Refused) {
        if (error instanceof Refused) this.#reportProblem(error.message);
        if (error instanceof Refused || error.reached) this.#shrink(batch);
        this.#report("offline");
        const pause = Math.min(15_000, 500 * 2 ** this.#failures++);
        this.#timer = window.setTimeout(() => this.wake(), pause);
      } else {
        throw error;
      }
      return false;
    }
  }

  /** Takes the session of a new state. After a restart of the server, the next exchange shows whether it goes on. @param {State} state */
  hear(state) {
    if (state.server === this.#server) this.#join(state);
    else if (this.#server !== null) this.ask();
  }

  /** @param {State} state */
  #join({ server, session }) {
    if (server !== this.#server) this.#takeBack();
    this.#shows = true;
    this.#server = server;
    this.#session = session;
    remember(`${this.project}/session`, session, sessionStorage);
    remember(`${this.project}/session`, session);
  }

  /** The store was restored from a backup: numbers that the browser has kept may mean something else now. */
  #forgetNumbers() {
    const { project } = this;
    for (const name of [
      `${project}/saved`,
      `${project}/session`,
      ...names(`${project}/draft/`),
      ...names(`${project}/edit/`),
    ])
      forget(name);
    for (const name of [`${project}/session`, `${project}/history`]) forget(name, sessionStorage);
    this.#outcomes = {};
    this.#server = null;
    if (this.#shows) this.#reportProblem("The labels were restored from a backup. Reload this page.");
    else [this.#session, this.#wanted] = [null, true];
  }

  /**
   * The oldest answers that can be sent together: of one tab, at most one per question, and no corrections of unsent answers.
   * @returns {Sending[]}
   */
  #batch() {
    const unsent = new Set(this.#waiting.map((record) => record.item.key));
    const batch = /** @type {Sending[]} */ ([]);
    const bases = new Set();
    for (const record of this.#waiting) {
      const base = this.baseOf(record.base);
      const later =
        this.#deferred.has(record) ||
        bases.has(base) ||
        (record.parent !== null && unsent.has(record.parent)) ||
        (batch[0] && batch[0].client !== record.client);
      bases.add(base);
      if (!later) batch.push(record);
      if (batch.length === this.#batchSize) break;
    }
    if (batch.length || !this.#deferred.size) return batch;
    this.#deferred.clear();
    return this.#batch();
  }

  /** Halves the batch after a failed request, and defers an answer that failed alone, so that it does not block the others. @param {Sending[]} batch */
  #shrink(batch) {
    this.#batchSize = Math.max(1, batch.length >> 1);
    if (batch.length === 1) this.#deferred.add(batch[0]);
  }

  /** @param {Sending} record */
  #outgoing(record) {
    const parent = record.parent === null ? null : this.saved(record.parent);
    if (!parent) return record.item;
    return { ...record.item, query: parent.query, after: record.fresh ? null : parent.answer };
  }

  /** @param {Sending[]} batch @param {Result[]} results */
  #receive(batch, results) {
    const pairs = [];
    for (const record of batch) {
      const result = results.find((one) => one?.key === record.item.key);
      if (result) pairs.push(...this.#settle(record, result));
    }
    if (pairs.length) {
      this.#loadOutcomes();
      remember(`${this.project}/saved`, this.#outcomes);
    }
    return pairs;
  }

  /** Records the outcome of an answer. If it was not saved, its corrections are refused too. @param {Sending} record @param {Result} result @returns {{record: Sending, result: Result}[]} */
  #settle(record, result) {
    const { key, status, query, answer } = result;
    const saved = status === "saved" && query !== null && answer !== null;
    this.#outcomes[key] = saved ? { query, answer } : null;
    this.#drop(record);
    if (status === "rolled_back") remember(record.name.replace("/out/", "/aside/"), { ...record, aside: true });
    const corrections = saved ? [] : this.#waiting.filter((one) => one.parent === key);
    const reason = "the answer that it changes was not saved.";
    const theirs = status === "rolled_back" ? status : "refused";
    return [
      { record, result },
      ...corrections.flatMap((one) => this.#settle(one, { ...refusal(one, reason), status: theirs })),
    ];
  }

  /** Sends the answers again that an older store could not take. Another store may be served now. */
  #takeBack() {
    for (const name of names(`${this.project}/aside/`)) {
      if (remember(name.replace("/aside/", "/out/"), recall(name))) forget(name);
    }
    this.#adopt((record) => record.aside === true);
  }

  /** Settles the answers that the server refused by key. @param {Sending[]} batch @param {Refused} error @returns {boolean} whether there were any of ours */
  #refused(batch, error) {
    const named = batch.filter((record) => error.keys.includes(record.item.key));
    const pairs = this.#receive(
      named,
      named.map((record) => refusal(record, error.message)),
    );
    if (pairs.length) this.handlers.results(pairs);
    return pairs.length > 0;
  }

  /** Adds the outcomes that other tabs have stored. */
  #loadOutcomes() {
    const stored = recall(`${this.project}/saved`, {});
    if (typeof stored === "object") this.#outcomes = { ...stored, ...this.#outcomes };
    const keys = Object.keys(this.#outcomes);
    for (const old of keys.slice(0, Math.max(0, keys.length - REMEMBERED))) delete this.#outcomes[old];
  }

  /** @param {Sending} record */
  #drop(record) {
    this.#waiting = this.#waiting.filter((one) => one !== record);
    this.#deferred.delete(record);
    this.#unstored.delete(record);
    forget(record.name);
    for (const one of this.#unstored) if (remember(one.name, one)) this.#unstored.delete(one);
  }

  /** Reports a problem once. @param {string} sentence */
  #reportProblem(sentence) {
    if (this.#problem !== sentence) this.handlers.problem(sentence);
    this.#problem = sentence;
  }

  /** @param {string} status */
  #report(status) {
    this.handlers.status(this.#failures && status === "saving" ? "offline" : status, this.#waiting.length);
  }
}

/** Has a closed tab left this answer? The clock may have been ahead when it was given. @param {Sending} record */
const isLeft = ({ at }) => Math.abs(Date.now() - at) > ADOPT_AFTER;

/** @param {Sending} record @param {string} reason @returns {Result} */
const refusal = (record, reason) => ({
  key: record.item.key,
  status: "refused",
  query: null,
  answer: null,
  reason,
  current: null,
});
