/** Requests to the server. Three things can go wrong, and each has its own error. */

/** No reply from the server. Try again later. `reached`: something replied, such as a proxy or another program. */
export class Offline extends Error {
  /** @param {string} sentence @param {boolean} [reached] */
  constructor(sentence, reached = false) {
    super(sentence);
    this.reached = reached;
  }
}
/** The server does not know this browser. */
export class SignedOut extends Error {}
/** The server refused the request and gave the reason. `keys`: the refused answers, which must not be sent again. */
export class Refused extends Error {
  /** @param {string} sentence @param {string[]} keys */
  constructor(sentence, keys) {
    super(sentence);
    this.keys = keys;
  }
}

const TIMEOUT = 20_000;

/** @type {Record<string, string>} */
const projectHeader = {};

/** Names the project in all later requests, so that the server of another project refuses them. @param {string} project */
export const setProject = (project) => void (projectHeader["Rarebox-Project"] = project);

/** @param {string} path @returns {Promise<any>} */
export const get = (path) => request(path, { method: "GET" });

/** @param {string} path @param {object} [body] @returns {Promise<any>} */
export const post = (path, body = {}) =>
  request(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** Sends a message from a page that is being closed. @param {string} path @param {object} body */
export const sendOnClose = (path, body) =>
  navigator.sendBeacon(path, new Blob([JSON.stringify(body)], { type: "application/json" }));

/** Fetches a file and its name. @param {string} path @returns {Promise<{content: Blob, name: string | null}>} */
export const getFile = (path) =>
  request(path, { method: "GET" }, async (response) => ({
    content: await response.blob(),
    name: /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") ?? "")?.[1] ?? null,
  }));

/** @param {string} path @param {RequestInit} init @param {(response: Response) => Promise<any>} [read] */
async function request(path, init, read = (response) => response.json()) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(), TIMEOUT);
  try {
    const headers = { ...init.headers, ...projectHeader };
    const response = await fetch(path, {
      ...init,
      headers,
      redirect: "error",
      credentials: "same-origin",
      cache: "no-store",
      signal: abort.signal,
    });
    if (response.ok) {
      const reply = await read(response).catch(() => null);
      if (reply === null) throw new Offline("The reply was cut short.", true);
      return reply;
    }
    const refusal = await response.json().catch(() => null);
    const ours = typeof refusal?.error === "string";
    if (!ours || response.status >= 500 || response.status === 429)
      throw new Offline(`The server replied with status ${response.status}.`, true);
    if (response.status === 401) throw new SignedOut();
    throw new Refused(refusal.error, Array.isArray(refusal.keys) ? refusal.keys : []);
  } catch (error) {
    if (error instanceof SignedOut || error instanceof Refused || error instanceof Offline) throw error;
    throw new Offline("The server does not respond.");
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Listens for events from the server. Reconnects when the connection breaks, and disconnects while the tab is hidden for more
 * than a minute: a browser allows six connections to one server, across all tabs.
 * @param {{state: (state: import("./types.js").State) => void, queries: () => void, opened: () => void, broken: () => void}} handlers
 */
export function listen(handlers) {
  /** @type {EventSource | null} */
  let source = null;
  let timer = 0;
  const open = () => {
    clearTimeout(timer);
    if (source && source.readyState !== EventSource.CLOSED) return;
    source = new EventSource("/api/events");
    source.addEventListener("open", () => handlers.opened());
    source.addEventListener("state", (event) => handlers.state(JSON.parse(event.data)));
    source.addEventListener("queries", () => handlers.queries());
    source.addEventListener("error", () => {
      handlers.broken();
      if (source?.readyState === EventSource.CLOSED) timer = window.setTimeout(open, 3000);
    });
  };
  const disconnect = () => {
    source?.close();
    source = null;
  };
  open();
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) timer = window.setTimeout(disconnect, 60_000);
    else open();
  });
  return { again: () => (disconnect(), open()) };
}
