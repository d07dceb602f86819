/** Requests to the server. Three things can go wrong, and each has its own error. */

/** No answer from the server: try again later. */
export class Offline extends Error {}
/** The server does not know this browser. */
export class SignedOut extends Error {}
/** The server said no, with a sentence for people. Asking again does not help. */
export class Refused extends Error {}

const PATIENCE = 20_000;

/** @param {string} path @returns {Promise<any>} */
export const get = (path) => request(path, { method: "GET" });

/** @param {string} path @param {object} [body] @returns {Promise<any>} */
export const post = (path, body = {}) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** The last word of a page that is going away. @param {string} path @param {object} body */
export const lastWord = (path, body) => navigator.sendBeacon(path, new Blob([JSON.stringify(body)], { type: "application/json" }));

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
    const response = await fetch(path, { ...init, credentials: "same-origin", cache: "no-store", signal: giveUp.signal });
    if (response.status === 401) throw new SignedOut();
    if (response.status >= 500 || response.status === 429) throw new Offline(`The server answered ${response.status}.`);
    if (!response.ok) {
      const refusal = await response.json().catch(() => null);
      throw new Refused(refusal?.error ?? `The server answered ${response.status}.`);
    }
    const reply = await read(response).catch(() => null);
    if (reply === null) throw new Offline("The answer was cut short.");
    return reply;
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
