/**
 * The line to the server: answers go out, questions come in. Each answer is written to localStorage before the page moves on
 * and leaves it when the server has it on disk, so a closed tab or a dead server loses nothing. One request at a time, in
 * order; each answer carries a key, so sending it twice saves it once.
 */

import { lastWord, Offline, post, Refused, SignedOut } from "./api.js";
import { forget, names, recall, remember, uuid } from "./local.js";

/** @typedef {import("./types.js").Item} Item */
/** @typedef {import("./types.js").Result} Result */

/**
 * What is kept of an answer until the server has it. `parent`: the key of the answer that this one corrects, where its number
 * is not known yet; `fresh`: it answers the reopened question of that parent anew.
 * @typedef {{name: string, client: string, at: number, item: Item, image: number, base: string, what: string,
 *   parent: string | null, fresh: boolean}} Sending
 */

const WANT = 4; // the question shown and three to come
const BATCH = 50;
const ADOPT_AFTER = 8000; // answers left behind by a closed tab; a living one sends its own sooner

export class Line {
  /** @type {Sending[]} */
  #waiting = [];
  /** @type {Record<string, {query: number, answer: number}>} */
  #saved;
  #busy = false;
  #wanted = false;
  #oneByOne = false;
  #failures = 0;
  #timer = 0;
  #sequence = 0;
  #kept = true;

  /**
   * @param {string} project @param {string} client
   * @param {{state: (state: any) => void, queries: (queries: any[]) => void, results: (pairs: {record: Sending, result: Result}[]) => void,
   *   status: (status: string, waiting: number) => void, problem: (sentence: string) => void}} heard
   */
  constructor(project, client, heard) {
    this.project = project;
    this.client = client;
    this.heard = heard;
    this.#saved = recall(`${project}/saved`, {});
    addEventListener("online", () => this.wake());
    // Whoever comes next may have this tab's questions, unless answers to them are still on their way.
    addEventListener("pagehide", () => this.#waiting.length || lastWord("/api/leave", { client }));
    addEventListener("beforeunload", (event) => {
      if (!this.#kept && this.#waiting.length) event.preventDefault();
    });
  }

  /** Sends what was left behind, of this tab at once, and asks for questions. */
  open() {
    this.#adopt((record) => record.client === this.client);
    setInterval(() => this.#adopt((record) => Date.now() - record.at > ADOPT_AFTER), ADOPT_AFTER);
    this.ask();
  }

  /**
   * Keeps an answer and sends it as soon as can be.
   * @param {Omit<Item, "key">} item
   * @param {{image: number, base?: string, what: string, parent?: string | null, fresh?: boolean}} about
   * @returns {string} its key
   */
  send(item, { image, base, what, parent = null, fresh = false }) {
    const key = uuid();
    const at = Date.now();
    const name = `${this.project}/out/${at}-${String(this.#sequence++).padStart(6, "0")}-${key}`;
    const record = { name, client: this.client, at, item: { ...item, key }, image, base: base ?? `k${key}`, what, parent, fresh };
    this.#kept = remember(name, record) && this.#kept;
    this.#waiting.push(record);
    this.#say("saving");
    this.wake();
    return key;
  }

  /** Ask for questions. */
  ask() {
    this.#wanted = true;
    this.wake();
  }

  /** Try now, whatever the waiting time says. */
  wake() {
    clearTimeout(this.#timer);
    this.#run();
  }

  /** Answers on their way, oldest first. @returns {readonly Sending[]} */
  get waiting() {
    return this.#waiting;
  }

  /** The latest answer to a question that is still on its way. @param {number} query */
  latest(query) {
    return this.#waiting.findLast((record) => record.base === `q${query}`) ?? null;
  }

  /** What the server made of an answer. @param {string} key */
  saved(key) {
    return this.#saved[key] ?? null;
  }

  /** Once the server has a box drawn here, it goes by the number of its question. @param {string} base */
  baseOf(base) {
    const saved = base.startsWith("k") ? this.saved(base.slice(1)) : null;
    return saved ? `q${saved.query}` : base;
  }

  /** @param {(record: Sending) => boolean} mine */
  #adopt(mine) {
    const known = new Set(this.#waiting.map((record) => record.name));
    const found = names(`${this.project}/out/`)
      .filter((name) => !known.has(name))
      .map((name) => recall(name))
      .filter((record) => record && mine(record));
    if (!found.length) return;
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

  /** One request. @returns {Promise<boolean>} whether to go on at once */
  async #exchange() {
    const batch = this.#batch();
    if (!batch.length && !this.#wanted) return false;
    const client = batch[0]?.client ?? this.client;
    const own = client === this.client;
    if (own) this.#wanted = false;
    try {
      if (batch.length) this.#say("saving");
      const body = { client, want: own ? WANT : 0 };
      const reply = batch.length
        ? await post("/api/answers", { ...body, answers: batch.map((record) => this.#outgoing(record)) })
        : await post("/api/next", body);
      this.#failures = 0;
      this.#oneByOne = false;
      const pairs = this.#receive(batch, reply.results ?? []);
      if (own) this.heard.queries(reply.queries); // first: the boxes just saved are in there
      this.heard.state(reply.state);
      if (pairs.length) this.heard.results(pairs);
      this.#say(this.#waiting.length ? "saving" : "saved");
      return true;
    } catch (error) {
      if (error instanceof Refused) return this.#refused(batch, error.message);
      if (own) this.#wanted = true;
      if (error instanceof SignedOut) {
        this.#say("signed-out");
        this.#timer = window.setTimeout(() => this.wake(), 15_000); // perhaps signed in again in another tab
      } else if (error instanceof Offline) {
        this.#say("offline");
        const pause = Math.min(15_000, 500 * 2 ** this.#failures++);
        this.#timer = window.setTimeout(() => this.wake(), pause);
      } else {
        throw error;
      }
      return false;
    }
  }

  /** The oldest answers that can go together: of one tab, no question twice, every parent saved. @returns {Sending[]} */
  #batch() {
    /** @type {Sending[]} */
    const batch = [];
    const bases = new Set();
    for (const record of this.#waiting) {
      const blocked = record.parent !== null && !this.saved(record.parent);
      if (blocked || bases.has(this.baseOf(record.base)) || (batch[0] && batch[0].client !== record.client)) break;
      bases.add(this.baseOf(record.base));
      batch.push(record);
      if (batch.length === (this.#oneByOne ? 1 : BATCH)) break;
    }
    if (!batch.length && this.#waiting.length) {
      // Its parent was refused, so there is nothing to correct any more.
      this.#drop(this.#waiting[0]);
      return this.#batch();
    }
    return batch;
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
      const result = results.find((one) => one.key === record.item.key);
      if (!result) continue;
      if (result.status === "saved" && result.query !== null && result.answer !== null) {
        this.#saved[result.key] = { query: result.query, answer: result.answer };
      }
      this.#drop(record);
      pairs.push({ record, result });
    }
    const keys = Object.keys(this.#saved);
    for (const old of keys.slice(0, Math.max(0, keys.length - 400))) delete this.#saved[old];
    if (pairs.length) remember(`${this.project}/saved`, this.#saved);
    return pairs;
  }

  /** The whole request was refused: find the answer at fault, so that the others are saved. @param {Sending[]} batch @param {string} sentence */
  #refused(batch, sentence) {
    if (batch.length > 1) {
      this.#oneByOne = true;
      return true;
    }
    if (batch.length === 1) {
      this.#drop(batch[0]);
      const result = /** @type {Result} */ ({ key: batch[0].item.key, status: "refused", query: null, answer: null, reason: sentence, current: null });
      this.heard.results([{ record: batch[0], result }]);
    } else {
      this.heard.problem(sentence);
    }
    this.#say(this.#waiting.length ? "saving" : "saved");
    return this.#waiting.length > 0;
  }

  /** @param {Sending} record */
  #drop(record) {
    this.#waiting = this.#waiting.filter((one) => one !== record);
    forget(record.name);
  }

  /** @param {string} status */
  #say(status) {
    this.heard.status(this.#failures && status === "saving" ? "offline" : status, this.#waiting.length);
  }
}
