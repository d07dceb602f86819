/** Loads and decodes pictures ahead, so that the next question is shown without delay. */

/** @typedef {import("./types.js").Image} Image */
/** @typedef {{img: HTMLImageElement, status: "loading" | "ready" | "failed", ready: Promise<boolean>}} Picture */

export class Pictures {
  /** @type {Map<number, Picture>} */
  #kept = new Map();

  /** @param {Image} image @returns {Picture} */
  load(image) {
    return this.#kept.get(image.id) ?? this.#fetch(image);
  }

  /** Loads a picture again if it failed. @param {Image} image @returns {Picture} */
  again(image) {
    const kept = this.#kept.get(image.id);
    return kept && kept.status !== "failed" ? kept : this.#fetch(image);
  }

  /** @param {Image} image @returns {Picture} */
  #fetch(image) {
    const img = new Image();
    img.src = image.url;
    /** @type {Picture} */
    const picture = { img, status: "loading", ready: Promise.resolve(false) };
    picture.ready = img.decode().then(
      () => ((picture.status = "ready"), true),
      () => ((picture.status = "failed"), false),
    );
    this.#kept.set(image.id, picture);
    return picture;
  }

  /** Loads these pictures and releases all others. @param {Image[]} images */
  keep(images) {
    const wanted = new Set(images.map((image) => image.id));
    for (const id of this.#kept.keys()) if (!wanted.has(id)) this.#kept.delete(id);
    for (const image of images) if (!this.#kept.has(image.id)) this.load(image);
  }
}
