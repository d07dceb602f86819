/**
 * The way to the server: answers go out, questions come in. Each answer is written to localStorage before the page moves on
 * and leaves it when the server has it on disk, so a closed tab or a dead server loses nothing. One request at a time; each
 * answer carries a key, so sending it twice saves it once. Only a reply of our own server that names an answer's key settles
 * that answer; after anything else it is kept and sent again, with growing pauses and in smaller requests.
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
const REMEMBERED = 400; // answers whose numbers are kept, to correct them by
const ADOPT_AFTER = 8000; // answers left behind by a closed tab; a living one sends its own sooner

export class Outbox {
  /** @type {Sending[]} */
  #waiting = [];
  /** What became of answers: their numbers, or null where they were not saved. @type {Record<string, {query: number, answer: number} | null>} */
  #fates = {};
  #busy = false;
  #wanted = false;
  #most = BATCH;
  #failures = 0;
  #timer = 0;
  #sequence = 0;
  /** The last problem that was told. @type {string | null} */
  #told = null;
  /** Answers for which the browser has no room. @type {Set<Sending>} */
  #unkept = new Set();
  /** Answers that did not get through alone: others go first. @type {Set<Sending>} */
  #aside = new Set();

  /**
   * @param {string} project @param {string} client
   * @param {{state: (state: any) => void, queries: (queries: any[]) => void, results: (pairs: {record: Sending, result: Result}[]) => void,
   *   status: (status: string, waiting: number) => void, problem: (sentence: string) => void}} heard
   */
  constructor(project, client, heard) {
    this.project = project;
    this.client = client;
    this.heard = heard;
    this.#learnFates();
    addEventListener("storage", (event) => event.key === `rarebox/${project}/saved` && this.#learnFates());
    addEventListener("online", () => this.wake());
    // Whoever comes next may have this tab's questions, unless answers to them are still on their way.
    addEventListener("pagehide", () => this.#waiting.length || lastWord("/api/leave", { client }));
    addEventListener("beforeunload", (event) => {
      if (this.#unkept.size) event.preventDefault();
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
    const record = {
      name,
      client: this.client,
      at,
      item: { ...item, key },
      image,
      base: base ?? `k${key}`,
      what,
      parent,
      fresh,
    };
    this.#waiting.push(record);
    if (!remember(name, record)) {
      this.#unkept.add(record);
      this.#tell("This browser has no room to keep answers. Leave the page open until it says “saved”.");
    }
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

  /** The numbers of an answer that was saved. @param {string} key */
  saved(key) {
    return this.#fates[key] ?? null;
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
      .map((name) => ({ ...recall(name), name }))
      .filter((record) => typeof record.item?.key === "string" && typeof record.client === "string" && mine(record));
    if (!found.length) return;
    this.#learnFates();
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
      const whole = Array.isArray(reply.queries) && (!batch.length || Array.isArray(reply.results));
      if (!whole || reply.state?.id !== this.project) throw new Offline("Another program answers.", true);
      const pairs = this.#receive(batch, reply.results ?? []);
      if (batch.length && !pairs.length) throw new Offline("The server said nothing of these answers.", true);
      this.#failures = 0;
      this.#told = null;
      this.#most = Math.min(BATCH, 2 * this.#most);
      if (own) this.heard.queries(reply.queries); // first: the boxes just saved are in there
      this.heard.state(reply.state);
      if (pairs.length) this.heard.results(pairs);
      this.#say(this.#waiting.length ? "saving" : "saved");
      return true;
    } catch (error) {
      if (own) this.#wanted = true;
      if (error instanceof Refused && this.#refused(batch, error)) return true;
      if (error instanceof SignedOut) {
        this.#say("signed-out");
        this.#timer = window.setTimeout(() => this.wake(), 15_000); // perhaps signed in again in another tab
      } else if (error instanceof Offline || error instanceof Refused) {
        if (error instanceof Refused) this.#tell(error.message);
        if (error instanceof Refused || error.reached) this.#goSmaller(batch);
        this.#say("offline");
        const pause = Math.min(15_000, 500 * 2 ** this.#failures++);
        this.#timer = window.setTimeout(() => this.wake(), pause);
      } else {
        throw error;
      }
      return false;
    }
  }

  /**
   * The oldest answers that can go together: of one tab, no question twice, and none that corrects one which is on its way.
   * @returns {Sending[]}
   */
  #batch() {
    const onTheWay = new Set(this.#waiting.map((record) => record.item.key));
    const batch = /** @type {Sending[]} */ ([]);
    const bases = new Set();
    for (const record of this.#waiting) {
      const base = this.baseOf(record.base);
      const later =
        this.#aside.has(record) ||
        bases.has(base) ||
        (record.parent !== null && onTheWay.has(record.parent)) ||
        (batch[0] && batch[0].client !== record.client);
      bases.add(base);
      if (!later) batch.push(record);
      if (batch.length === this.#most) break;
    }
    if (batch.length || !this.#aside.size) return batch;
    this.#aside.clear();
    return this.#batch();
  }

  /** Somebody answered who could not take it. Fewer at once may get through, and one of them must not hold up the others. @param {Sending[]} batch */
  #goSmaller(batch) {
    this.#most = Math.max(1, batch.length >> 1);
    if (batch.length === 1) this.#aside.add(batch[0]);
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
      this.#learnFates();
      remember(`${this.project}/saved`, this.#fates);
    }
    return pairs;
  }

  /** An answer's fate is known, and so is that of its corrections where there is nothing to correct. @param {Sending} record @param {Result} result @returns {{record: Sending, result: Result}[]} */
  #settle(record, result) {
    const { key, status, query, answer } = result;
    const saved = status === "saved" && query !== null && answer !== null;
    this.#fates[key] = saved ? { query, answer } : null;
    this.#drop(record);
    const corrections = saved ? [] : this.#waiting.filter((one) => one.parent === key);
    return [
      { record, result },
      ...corrections.flatMap((one) => this.#settle(one, refusal(one, "the answer that it changes was not saved."))),
    ];
  }

  /** The server has refused answers by their keys. @param {Sending[]} batch @param {Refused} error @returns {boolean} whether there were any of ours */
  #refused(batch, error) {
    const named = batch.filter((record) => error.keys.includes(record.item.key));
    const pairs = this.#receive(
      named,
      named.map((record) => refusal(record, error.message)),
    );
    if (pairs.length) this.heard.results(pairs);
    return pairs.length > 0;
  }

  /** What other tabs have learnt, too. */
  #learnFates() {
    const told = recall(`${this.project}/saved`, {});
    if (typeof told === "object") this.#fates = { ...told, ...this.#fates };
    const keys = Object.keys(this.#fates);
    for (const old of keys.slice(0, Math.max(0, keys.length - REMEMBERED))) delete this.#fates[old];
  }

  /** @param {Sending} record */
  #drop(record) {
    this.#waiting = this.#waiting.filter((one) => one !== record);
    this.#aside.delete(record);
    this.#unkept.delete(record);
    forget(record.name);
    for (const one of this.#unkept) if (remember(one.name, one)) this.#unkept.delete(one);
  }

  /** A problem, told once. @param {string} sentence */
  #tell(sentence) {
    if (this.#told !== sentence) this.heard.problem(sentence);
    this.#told = sentence;
  }

  /** @param {string} status */
  #say(status) {
    this.heard.status(this.#failures && status === "saving" ? "offline" : status, this.#waiting.length);
  }
}

/** @param {Sending} record @param {string} reason @returns {Result} */
const refusal = (record, reason) => ({
  key: record.item.key,
  status: "refused",
  query: null,
  answer: null,
  reason,
  current: null,
});
