/** A browser without a window and a server without a network, for the tests of the page. */

import { mock } from "node:test";

class FakeStorage {
  #kept = new Map();
  /** Characters that fit in; less than what is there refuses every write. */
  room = Infinity;

  get length() {
    return this.#kept.size;
  }

  key(i) {
    return [...this.#kept.keys()][i] ?? null;
  }

  getItem(name) {
    return this.#kept.get(name) ?? null;
  }

  setItem(name, text) {
    if (text.length > this.room) throw new Error("QuotaExceededError");
    this.#kept.set(name, text);
  }

  removeItem(name) {
    this.#kept.delete(name);
  }

  clear() {
    this.#kept.clear();
    this.room = Infinity;
  }
}

const listeners = new Map();
const listen = (type, listener) => listeners.set(type, [...(listeners.get(type) ?? []), listener]);

/** Dispatches an event to everybody who listens to the window or the document. */
export const dispatch = (type, event = {}) => listeners.get(type)?.forEach((listener) => listener(event));

Object.defineProperty(globalThis, "navigator", { value: { sendBeacon: () => true }, configurable: true });
class PointerEvent {
  constructor(screenX, screenY) {
    Object.assign(this, { screenX, screenY });
  }
}

Object.assign(globalThis, {
  PointerEvent,
  window: globalThis,
  localStorage: new FakeStorage(),
  sessionStorage: new FakeStorage(),
  addEventListener: listen,
  document: { hidden: false, addEventListener: listen },
});

/** Empties the browser and stops its clock. Call it before each test. */
export function freshBrowser() {
  mock.timers.reset();
  mock.timers.enable({ apis: ["setTimeout", "setInterval", "Date"], now: 1_000_000 });
  listeners.clear();
  localStorage.clear();
  sessionStorage.clear();
}

/** Lets all pending promises settle. */
export async function settled() {
  for (let i = 0; i < 20; i++) await new Promise((done) => setImmediate(done));
}

/** Advances the clock, then lets all promises settle. */
export async function after(milliseconds) {
  mock.timers.tick(milliseconds);
  await settled();
}

const json = (status, body) => new Response(JSON.stringify(body), { status });

/** The number of answers that the browser keeps. */
export const kept = () =>
  Array.from({ length: localStorage.length }, (_, i) => localStorage.key(i)).filter((name) => name.includes("/out/"))
    .length;

export const IMAGE = { id: 1, name: "1.jpg", width: 640, height: 480, url: "/api/images/1" };

/** A question about a box, or about the whole image without one. */
export const question = (id, box = [100, 100, 200, 200]) => ({
  ...{ id, cycle: 1, position: id, image: { ...IMAGE, id, name: `${id}.jpg` }, box, guess: box && 0, score: 0.5 },
  ...{ uncertainty: 0.5, reason: "", labels: [], others: [], complete: false, lease_seconds: 60 },
});

const CLASSES = ["fish", "ray", "shark"].map((name, label) => ({ label, name, merged_into: null, count: 0 }));

/** The server's contract: a key is saved once, and the current answer is changed only by a request that names it. */
export class FakeServer {
  up = true;
  /** Saves the next request and loses its reply. */
  losesReply = false;
  /** A proxy in between refuses more answers than this in one request. */
  most = Infinity;
  /** Keys that the server refuses. */
  refused = new Set();
  /** A reply given instead of the server's. @type {((answers: any[]) => Response) | null} */
  instead = null;
  requests = [];
  /** The process. */
  name = "server 1";
  /** Sessions of the store, the latest last. */
  sessions = ["s1"];
  /** All saved answers, oldest first. */
  saved = [];
  #results = new Map();
  #version = 0;

  constructor(...questions) {
    this.questions = questions;
    globalThis.fetch = (path, init) => this.#fetch(path, JSON.parse(init.body));
  }

  get state() {
    return {
      id: "p",
      server: this.name,
      session: this.sessions.at(-1),
      you: "anna",
      names: ["anna"],
      classes: CLASSES,
      version: ++this.#version,
    };
  }

  /** The verdicts of all saved answers, oldest first. */
  get verdicts() {
    return this.saved.map((one) => one.verdict);
  }

  /** The current answer to a question. */
  standing(query) {
    const last = this.saved.findLast((one) => one.query === query);
    return last?.verdict === "withdrawn" ? null : (last ?? null);
  }

  async #fetch(path, body) {
    const { answers = [] } = body;
    this.requests.push({ path, ...body, answers });
    if (!this.up) throw new TypeError("no network");
    if (this.instead) return this.instead(answers);
    if (answers.length > this.most) return new Response("<html>", { status: 413 });
    const keys = answers.map((one) => one.key).filter((key) => this.refused.has(key));
    if (keys.length) return json(422, { error: "wrong box", keys });
    const results = answers.map((one) => this.#save(one));
    if (this.losesReply) {
      this.losesReply = false;
      throw new TypeError("connection reset");
    }
    const outdated = body.session !== null && !this.sessions.includes(body.session);
    const queries = outdated ? [] : this.#open(body.want);
    return json(200, { results, queries, state: this.state, outdated });
  }

  #open(want) {
    const open = this.questions.filter((one) => !this.standing(one.id)).slice(0, want);
    return open.map((one) => ({ ...one, labels: this.#labels(one.image.id), complete: this.#complete(one.image.id) }));
  }

  #labels(image) {
    const queries = new Set(this.saved.filter((one) => one.image === image && !one.complete).map((one) => one.query));
    const standing = [...queries].map((query) => this.standing(query)).filter((one) => one !== null);
    return standing.flatMap(({ query, answer, by, boxes, labels }) =>
      boxes.map((box, i) => ({ query, answer, by, box, label: labels[i] })),
    );
  }

  #complete(image) {
    return this.saved.some((one) => one.image === image && one.complete && this.standing(one.query) === one);
  }

  #save(item) {
    const known = this.#results.get(item.key);
    if (known) return known;
    const query = item.query ?? 1000 + this.saved.length;
    if (item.session && !this.sessions.includes(item.session))
      return { key: item.key, status: "rolled_back", query, answer: null, reason: "restored", current: null };
    const current = this.standing(query);
    let result;
    if ((item.after ?? null) !== (current?.answer ?? null)) {
      result = { key: item.key, status: "conflict", query, answer: null, reason: null, current };
    } else {
      const answer = this.saved.length + 1;
      const image =
        item.image ?? [...this.saved, ...this.questions].find((one) => (one.query ?? one.id) === query).image;
      this.saved.push({ ...item, image: image.id ?? image, query, answer, by: "anna" });
      result = { key: item.key, status: "saved", query, answer, reason: null, current: null };
    }
    this.#results.set(item.key, result);
    return result;
  }
}
