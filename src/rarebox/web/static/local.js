/** Stores JSON in localStorage (all tabs) or sessionStorage (this tab). */

/** @param {string} name @param {any} [otherwise] */
export function recall(name, otherwise = null, storage = localStorage) {
  try {
    const text = storage.getItem(`rarebox/${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise;
  }
}

/** Stores a value. Returns false if the browser refuses: storage full, or forbidden in private windows. @param {string} name @param {any} value */
export function remember(name, value, storage = localStorage) {
  try {
    storage.setItem(`rarebox/${name}`, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

/** @param {string} name */
export function forget(name, storage = localStorage) {
  try {
    storage.removeItem(`rarebox/${name}`);
  } catch {
    // Nothing was stored.
  }
}

/** The stored names with a prefix, sorted. @param {string} prefix */
export function names(prefix) {
  const found = [];
  try {
    for (let i = 0; i < localStorage.length; i++) {
      const name = localStorage.key(i) ?? "";
      if (name.startsWith(`rarebox/${prefix}`)) found.push(name.slice("rarebox/".length));
    }
  } catch {
    return [];
  }
  return found.sort();
}

/** A random identifier. (crypto.randomUUID is missing on plain http from another machine.) */
export function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}

/**
 * The identifier of this tab. It survives a reload, but a duplicated tab must not share it, so it is stored only while the page
 * is unloaded.
 */
export function tabId() {
  const id = recall("tab", null, sessionStorage) ?? uuid();
  forget("tab", sessionStorage);
  addEventListener("pagehide", () => remember("tab", id, sessionStorage));
  addEventListener("pageshow", () => forget("tab", sessionStorage));
  return id;
}
