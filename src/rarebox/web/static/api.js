/** Requests to the server. Three things can go wrong, and each has its own error. */

/** No answer that can be the server's: try again later. `reached`: somebody did answer, a proxy or another program perhaps. */
export class Offline extends Error {
  /** @param {string} sentence @param {boolean} [reached] */
  constructor(sentence, reached = false) {
    super(sentence);
    this.reached = reached;
  }
}
/** The server does not know this browser. */
export class SignedOut extends Error {}
/** The server said no, with a sentence for people, and to which answers: to those asking again does not help. */
export class Refused extends Error {
  /** @param {string} sentence @param {string[]} keys */
  constructor(sentence, keys) {
    super(sentence);
    this.keys = keys;
  }
}

const PATIENCE = 20_000;

/** @type {Record<string, string>} */
const about = {};

/** From now on every request says which project it is meant for; a server of another one refuses it. @param {string} project */
export const isFor = (project) => void (about["Rarebox-Project"] = project);

/** @param {string} path @returns {Promise<any>} */
export const get = (path) => request(path, { method: "GET" });

/** @param {string} path @param {object} [body] @returns {Promise<any>} */
export const post = (path, body = {}) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** The last word of a page that is going away. @param {string} path @param {object} body */
export const lastWord = (path, body) =>
  navigator.sendBeacon(path, new Blob([JSON.stringify(body)], { type: "application/json" }));

/** A file with the name that the server gives it. @param {string} path @returns {Promise<{content: Blob, name: string | null}>} */
export const getFile = (path) =>
  request(path, { method: "GET" }, async (response) => ({
    content: await response.blob(),
    name: /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? null,
  }));

/** @param {string} path @param {RequestInit} init @param {(response: Response) => Promise<any>} [read] */
async function request(path, init, read = (response) => response.json()) {
  const giveUp = new AbortController();
  const timer = setTimeout(() => giveUp.abort(), PATIENCE);
  try {
    const headers = { ...init.headers, ...about };
    const response = await fetch(path, {
      ...init,
      headers,
      redirect: "error",
      credentials: "same-origin",
      cache: "no-store",
      signal: giveUp.signal,
    });
    if (response.ok) {
      const reply = await read(response).catch(() => null);
      if (reply === null) throw new Offline("The answer was cut short.", true);
      return reply;
    }
    const refusal = await response.json().catch(() => null);
    const ours = typeof refusal?.error === "string";
    if (!ours || response.status >= 500 || response.status === 429)
      throw new Offline(`The server answered ${response.status}.`, true);
    if (response.status === 401) throw new SignedOut();
    throw new Refused(refusal.error, Array.isArray(refusal.keys) ? refusal.keys : []);
  } catch (error) {
    if (error instanceof SignedOut || error instanceof Refused || error instanceof Offline) throw error;
    throw new Offline("The server does not answer.");
  } finally {
    clearTimeout(timer);
  }
}

/**
 * News from the server as they happen. The connection is opened again when it breaks, and rests while the tab is hidden for
 * long (a browser allows six connections to one server, all tabs together).
 * @param {{state: (state: any) => void, queries: () => void, opened: () => void, broken: () => void}} heard
 */
export function listen(heard) {
  /** @type {EventSource | null} */
  let source = null;
  let timer = 0;
  const open = () => {
    clearTimeout(timer);
    if (source && source.readyState !== EventSource.CLOSED) return;
    source = new EventSource("/api/events");
    source.addEventListener("open", () => heard.opened());
    source.addEventListener("state", (event) => heard.state(JSON.parse(event.data)));
    source.addEventListener("queries", () => heard.queries());
    source.addEventListener("error", () => {
      heard.broken();
      if (source?.readyState === EventSource.CLOSED) timer = window.setTimeout(open, 3000);
    });
  };
  const rest = () => {
    source?.close();
    source = null;
  };
  open();
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(rest, 60_000);
    else open();
  });
  return { again: () => (rest(), open()) };
}
