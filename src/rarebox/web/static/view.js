/**
 * Shows a picture with its marks, zooms and pans it, and reports which boxes were selected, drawn or changed. It does not know
 * about questions. Screen = image × scale + shift. Boxes are drawn in screen pixels, so that lines are thin at every zoom.
 */

import { area, clamp, contains, handlePoint, HANDLES, moved, resized, tidy, withContext } from "./boxes.js";
import { colour, ink } from "./colours.js";
import { el, percent, setText, svg } from "./dom.js";

/** @typedef {import("./types.js").Box} Box */
/** @typedef {import("./types.js").Mark} Mark */
/** @typedef {import("./boxes.js").Handle} Handle */

/**
 * The elements of a mark.
 * @typedef {{group: SVGGElement, casing: SVGRectElement, line: SVGRectElement, name: HTMLElement, text: HTMLElement,
 *   score: HTMLElement}} Drawn
 */

/**
 * A drag of one pointer or a pinch of two. `at` is its start on the screen, (x, y) on the image.
 * @typedef {{at: {x: number, y: number}, x: number, y: number, dragged: boolean, touch: boolean}} Start
 * @typedef {Start & ({type: "pan"} | {type: "draw", again: boolean} | {type: "move", mark: Mark, box: Box}
 *   | {type: "resize", mark: Mark, box: Box, handle: Handle})} Drag
 * @typedef {{type: "pinch", distance: number, x: number, y: number}} Pinch
 */

const CLICK = 4; // screen pixels that a pointer may move without dragging
const REACH = { mouse: 12, pen: 16, touch: 24 }; // distance in screen pixels at which a handle can be grabbed
const ZOOM = { most: 40, fit: 12, step: 1.25 };

/**
 * @typedef {object} Handlers  What the view reports.
 * @property {(id: string | null) => void} select
 * @property {(box: Box, again: boolean) => void} draw           a new box; again: it replaces the active one
 * @property {(id: string, box: Box, phase: "start" | "move" | "end") => void} change
 * @property {() => boolean} panning                             is the space bar held?
 * @property {() => void} panned
 */

export class View {
  /** "auto" drags the active box or draws outside it; "draw" and "redraw" draw with the next drag. @type {"auto" | "draw" | "redraw"} */
  mode = "auto";
  /** Does one finger draw (whole images) or pan (boxes)? */
  fingerDraws = false;
  /** @type {Mark[]} */
  #marks = [];
  /** @type {string | null} */
  #active = null;
  /** @type {string | null} */
  #hovered = null;
  #size = { width: 1, height: 1 };
  #scale = 1;
  #x = 0;
  #y = 0;
  /** @type {"box" | "image" | "free"} */
  #fitted = "image";
  /** @type {Box | null} */
  #focus = null;
  /** The elements of the marks that are drawn. @type {Map<string, Drawn>} */
  #drawn = new Map();
  /** @type {Map<number, {x: number, y: number}>} */
  #pointers = new Map();
  /** @type {Drag | Pinch | null} */
  #gesture = null;
  #frame = 0;

  /** @param {HTMLElement} stage @param {(mark: Mark) => string} nameOf @param {Handlers} handlers */
  constructor(stage, nameOf, handlers) {
    this.stage = stage;
    this.nameOf = nameOf;
    this.handlers = handlers;
    this.picture = el("div", { class: "picture" });
    this.boxes = svg("g");
    this.rubber = svg("rect", { class: "rubber", visibility: "hidden" });
    this.guides = svg("path", { class: "guides", d: "" });
    this.handles = svg(
      "g",
      { class: "handles" },
      ...HANDLES.map((name) => svg("rect", { class: "handle", "data-handle": name, width: 9, height: 9, rx: 2 })),
    );
    this.overlay = svg(
      "svg",
      { class: "overlay", "data-testid": "overlay", "aria-hidden": "true" },
      this.guides,
      this.boxes,
      this.handles,
      this.rubber,
    );
    this.names = el("div", { class: "names", "aria-hidden": "true" });
    stage.append(this.picture, this.overlay, this.names);
    this.#listen();
    new ResizeObserver(() => this.#refit()).observe(stage);
  }

  /** Shows another picture. @param {HTMLImageElement | null} img @param {{width: number, height: number}} size */
  show(img, size) {
    this.#size = { width: size.width, height: size.height };
    this.#gesture = null;
    if (img) {
      img.className = "photo";
      img.alt = "";
      img.draggable = false;
      img.style.width = `${size.width}px`; // the served picture may be smaller than the original
      img.style.height = `${size.height}px`;
      if (img.parentNode !== this.picture) this.picture.replaceChildren(img);
    } else {
      this.picture.replaceChildren();
    }
    this.#soon();
  }

  /** @param {Mark[]} marks @param {string | null} active */
  render(marks, active) {
    this.#marks = marks;
    this.#active = active;
    this.#soon();
  }

  /** @param {Box | null} box the box to show; null: the whole image */
  focus(box) {
    this.#focus = box;
    this.#fitted = box ? "box" : "image";
    this.#refit();
  }

  /** Switches between the box and the image; without a box, between the image and its full width. @param {Box | null} box */
  toggleFit(box) {
    this.#focus = box;
    if (box) {
      this.#fitted = this.#fitted === "box" ? "image" : "box";
    } else if (this.#fitted === "image") {
      const { clientWidth, clientHeight } = this.stage;
      [this.#x, this.#y, this.#fitted] = [0, 0, "free"];
      this.#scale = Math.min(Math.max(clientWidth / this.#size.width, clientHeight / this.#size.height), ZOOM.fit);
    } else {
      this.#fitted = "image";
    }
    this.#refit();
  }

  /** @param {number} factor @param {number} [cx] @param {number} [cy] screen point that stays */
  zoom(factor, cx = this.stage.clientWidth / 2, cy = this.stage.clientHeight / 2) {
    const least = Math.min(this.#wholeScale() * 0.5, 1);
    const next = clamp(this.#scale * factor, least, Math.max(ZOOM.most, this.#wholeScale()));
    this.#x = cx - ((cx - this.#x) * next) / this.#scale;
    this.#y = cy - ((cy - this.#y) * next) / this.#scale;
    this.#scale = next;
    this.#fitted = "free";
    this.#keepVisible();
    this.#soon();
  }

  /** Moves the picture if the box is not visible. @param {Box} box */
  reveal(box) {
    const [x1, y1, x2, y2] = this.#toScreen(box);
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (x1 >= 0 && y1 >= 0 && x2 <= width && y2 <= height && Math.max(x2 - x1, y2 - y1) > 14) return;
    this.focus(box);
  }

  /* ---- coordinates ---- */

  #wholeScale() {
    const { clientWidth, clientHeight } = this.stage;
    return Math.min((clientWidth - 16) / this.#size.width, (clientHeight - 16) / this.#size.height);
  }

  #refit() {
    const { clientWidth, clientHeight } = this.stage;
    if (!clientWidth || !clientHeight) return;
    if (this.#fitted === "box" && this.#focus) {
      const [x1, y1, x2, y2] = withContext(this.#focus, this.#size);
      const whole = this.#wholeScale();
      this.#scale = clamp(
        Math.min(clientWidth / (x2 - x1), clientHeight / (y2 - y1)),
        whole,
        Math.max(ZOOM.fit, whole),
      );
      this.#x = clientWidth / 2 - (this.#scale * (x1 + x2)) / 2;
      this.#y = clientHeight / 2 - (this.#scale * (y1 + y2)) / 2;
    } else if (this.#fitted === "image") {
      this.#scale = Math.min(this.#wholeScale(), ZOOM.fit);
    }
    this.#keepVisible();
    this.#soon();
  }

  /** Limits the empty space around the picture. */
  #keepVisible() {
    const { clientWidth, clientHeight } = this.stage;
    const width = this.#size.width * this.#scale;
    const height = this.#size.height * this.#scale;
    const slack = this.#fitted === "free" ? 80 : 0;
    this.#x = width <= clientWidth ? (clientWidth - width) / 2 : clamp(this.#x, clientWidth - width - slack, slack);
    this.#y =
      height <= clientHeight ? (clientHeight - height) / 2 : clamp(this.#y, clientHeight - height - slack, slack);
  }

  /** @param {number} x @param {number} y @returns {[number, number]} */
  #toImage(x, y) {
    return [(x - this.#x) / this.#scale, (y - this.#y) / this.#scale];
  }

  /** @param {Box} box @returns {Box} */
  #toScreen([x1, y1, x2, y2]) {
    return [
      x1 * this.#scale + this.#x,
      y1 * this.#scale + this.#y,
      x2 * this.#scale + this.#x,
      y2 * this.#scale + this.#y,
    ];
  }

  /* ---- drawing ---- */

  #soon() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#paint());
  }

  #paint() {
    this.#frame = 0;
    this.picture.style.transform = `translate(${this.#x}px, ${this.#y}px) scale(${this.#scale})`;
    this.picture.classList.toggle("pixels", this.#scale >= 8);
    const gone = new Set(this.#drawn.keys());
    for (const mark of this.#marks) {
      gone.delete(mark.id);
      const drawn = this.#drawn.get(mark.id) ?? this.#add(mark);
      const active = mark.id === this.#active;
      const [x1, y1, x2, y2] = this.#toScreen(mark.box);
      drawn.group.setAttribute(
        "class",
        `mark ${mark.kind}${active ? " active" : ""}${mark.id === this.#hovered ? " hovered" : ""}`,
      );
      for (const rect of [drawn.casing, drawn.line]) set(rect, { x: x1, y: y1, width: x2 - x1, height: y2 - y1 });
      drawn.line.style.stroke = colour(mark.label);

      this.#paintName(mark, drawn);
    }
    for (const id of gone) {
      this.#drawn.get(id)?.group.remove();
      this.#drawn.get(id)?.name.remove();
      this.#drawn.delete(id);
    }
    this.#paintHandles();
  }

  /** Places the name of a mark above its box, else below it, else inside. @param {Mark} mark @param {Drawn} drawn */
  #paintName(mark, { name, text, score }) {
    const { clientWidth, clientHeight } = this.stage;
    const [x1, y1, x2, y2] = this.#toScreen(mark.box);
    const active = mark.id === this.#active;
    const large = active || mark.kind === "asked";
    const crowded = this.#marks.length > 60;
    const named = large || mark.id === this.#hovered || (!crowded && x2 - x1 > 34);
    const visible = x2 > 0 && y2 > 0 && x1 < clientWidth && y1 < clientHeight;
    name.hidden = !named || !visible;
    if (name.hidden) return;
    const words = this.nameOf(mark);
    setText(text, words);
    setText(score, large && typeof mark.score === "number" ? percent(mark.score) : "");
    name.className = `name ${mark.kind}${active ? " active" : ""}`;
    name.style.background = colour(mark.label);
    name.style.color = ink;
    const height = large ? 24 : 17;
    const above = y1 - height - 3;
    const below = y2 + 3;
    const top = above >= 0 ? above : below + height <= clientHeight ? below : Math.max(y1, 0) + 3;
    const most = large ? Math.min(340, clientWidth - 12) : Math.max(x2 - x1, 44);
    name.style.maxWidth = `${most}px`;
    const left = large ? clamp(x1 - 1, 4, clientWidth - Math.min(most, 28 + 8.5 * words.length)) : Math.max(x1 - 1, 2);
    name.style.transform = `translate(${left}px, ${top}px)`;
  }

  /** @param {Mark} mark */
  #add(mark) {
    const casing = svg("rect", { class: "casing" });
    const line = svg("rect", { class: "line" });
    const group = svg("g", { "data-testid": `mark-${mark.kind}`, "data-mark": mark.id }, casing, line);
    const [text, score] = [el("span"), el("b")];
    const name = el("div", { class: "name" }, text, score);
    this.boxes.append(group);
    this.names.append(name);
    const drawn = { group, casing, line, name, text, score };
    this.#drawn.set(mark.id, drawn);
    return drawn;
  }

  #paintHandles() {
    const mark = this.#editable();
    this.handles.setAttribute("visibility", mark ? "visible" : "hidden");
    if (!mark) return;
    const box = this.#toScreen(mark.box);
    const small = Math.min(box[2] - box[0], box[3] - box[1]) < 36;
    for (const rect of this.handles.children) {
      const name = /** @type {Handle} */ (rect.getAttribute("data-handle"));
      const [x, y] = handlePoint(box, name);
      set(rect, { x: x - 4.5, y: y - 4.5, visibility: small && name.length === 1 ? "hidden" : "inherit" });
    }
    const active = this.#drawn.get(mark.id);
    if (active && this.boxes.lastChild !== active.group) this.boxes.append(active.group); // on top of the others
  }

  #editable() {
    const mark = this.#marks.find((one) => one.id === this.#active);
    return mark && mark.kind !== "other" ? mark : null;
  }

  /* ---- pointers ---- */

  #listen() {
    const stage = this.stage;
    stage.addEventListener("pointerdown", (event) => this.#down(event));
    stage.addEventListener("pointermove", (event) => this.#move(event));
    stage.addEventListener("pointerup", (event) => this.#up(event));
    stage.addEventListener("pointercancel", (event) => this.#up(event, true));
    stage.addEventListener("pointerleave", () => this.#hover(null, null));
    // Otherwise a browser may treat a quick tap after a drag as the end of a scroll and drop its click.
    stage.addEventListener("touchstart", (event) => this.#own(event) && event.preventDefault(), { passive: false });
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("auxclick", (event) => event.preventDefault());
    stage.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
        const { x, y } = this.#at(event);
        this.zoom(Math.exp(-clamp(event.deltaY * lines, -240, 240) * (event.ctrlKey ? 0.01 : 0.002)), x, y);
      },
      { passive: false },
    );
  }

  /** Is the event on the picture, not on a button over it? @param {Event} event */
  #own(event) {
    return !(/** @type {HTMLElement} */ (event.target).closest("button, .waiting"));
  }

  /** @param {MouseEvent} event */
  #at(event) {
    const frame = this.stage.getBoundingClientRect();
    return { x: event.clientX - frame.left, y: event.clientY - frame.top };
  }

  /** @param {PointerEvent} event */
  #down(event) {
    if (!this.#own(event)) return;
    this.stage.focus({ preventScroll: true });
    const at = this.#at(event);
    this.#pointers.set(event.pointerId, at);
    this.stage.setPointerCapture(event.pointerId);
    event.preventDefault();
    if (this.#pointers.size === 2) return this.#startPinch();
    if (this.#pointers.size > 2) return;

    const [x, y] = this.#toImage(at.x, at.y);
    const base = { at, x, y, dragged: false, touch: event.pointerType === "touch" };
    if (event.button === 1 || (event.button === 0 && this.handlers.panning())) {
      this.#gesture = { ...base, type: "pan" };
    } else if (event.button === 0) {
      const mark = this.#editable();
      const handle = mark ? this.#handleAt(mark, at, event.pointerType) : null;
      if (this.mode === "redraw" || (event.shiftKey && this.mode === "auto"))
        this.#gesture = { ...base, type: "draw", again: true };
      else if (this.mode === "draw") this.#gesture = { ...base, type: "draw", again: false };
      else if (mark && handle) this.#gesture = { ...base, type: "resize", mark, handle, box: mark.box };
      else if (mark && contains(mark.box, x, y)) this.#gesture = { ...base, type: "move", mark, box: mark.box };
      else if (base.touch && !this.fingerDraws) this.#gesture = { ...base, type: "pan" };
      else this.#gesture = { ...base, type: "draw", again: false };
    }
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const at = this.#at(event);
    const before = this.#pointers.get(event.pointerId);
    if (!before) return this.#hover(at, event);
    this.#pointers.set(event.pointerId, at);
    const gesture = this.#gesture;
    if (!gesture) return;
    if (gesture.type === "pinch") return this.#pinch(gesture);
    if (!gesture.dragged) {
      if (Math.hypot(at.x - gesture.at.x, at.y - gesture.at.y) < CLICK * (gesture.touch ? 2 : 1)) return;
      gesture.dragged = true;
      if (gesture.type === "resize" || gesture.type === "move")
        this.handlers.change(gesture.mark.id, gesture.box, "start");
      if (gesture.type === "pan") this.handlers.panned();
    }
    const [x, y] = this.#toImage(at.x, at.y);
    if (gesture.type === "pan") {
      this.#x += at.x - before.x;
      this.#y += at.y - before.y;
      this.#fitted = "free";
      this.#keepVisible();
      this.#soon();
    } else if (gesture.type === "move") {
      this.handlers.change(gesture.mark.id, moved(gesture.box, x - gesture.x, y - gesture.y, this.#size), "move");
    } else if (gesture.type === "resize") {
      const [hx, hy] = handlePoint(gesture.box, gesture.handle); // no jump if the handle is grabbed off its centre
      this.handlers.change(
        gesture.mark.id,
        resized(gesture.box, gesture.handle, hx + x - gesture.x, hy + y - gesture.y, this.#size),
        "move",
      );
    } else if (gesture.type === "draw") {
      const [x1, y1, x2, y2] = this.#toScreen(tidy([gesture.x, gesture.y, x, y], this.#size));
      set(this.rubber, { x: x1, y: y1, width: x2 - x1, height: y2 - y1, visibility: "visible" });
    }
  }

  /** @param {PointerEvent} event @param {boolean} [cancelled] */
  #up(event, cancelled = false) {
    if (!this.#pointers.delete(event.pointerId)) return;
    const gesture = this.#gesture;
    if (!gesture) return;
    if (gesture.type === "pinch") {
      if (this.#pointers.size === 0) this.#gesture = null;
      return;
    }
    this.#gesture = null;
    this.rubber.setAttribute("visibility", "hidden");
    const at = this.#at(event);
    const [x, y] = this.#toImage(at.x, at.y);
    if (!gesture.dragged) {
      if (!cancelled && event.button === 0 && gesture.type !== "resize") this.#click(x, y);
      return;
    }
    if (gesture.type === "move" || gesture.type === "resize") {
      const mark = this.#marks.find((one) => one.id === gesture.mark.id);
      this.handlers.change(gesture.mark.id, cancelled ? gesture.box : (mark?.box ?? gesture.box), "end");
    } else if (gesture.type === "draw" && !cancelled) {
      const wide = Math.abs(at.x - gesture.at.x) >= CLICK && Math.abs(at.y - gesture.at.y) >= CLICK;
      if (wide) this.handlers.draw(tidy([gesture.x, gesture.y, x, y], this.#size), gesture.again);
    }
  }

  #startPinch() {
    const gesture = this.#gesture;
    if ((gesture?.type === "move" || gesture?.type === "resize") && gesture.dragged)
      this.handlers.change(gesture.mark.id, gesture.box, "end");
    this.rubber.setAttribute("visibility", "hidden");
    const [a, b] = [...this.#pointers.values()];
    this.#gesture = {
      type: "pinch",
      distance: Math.hypot(a.x - b.x, a.y - b.y),
      x: (a.x + b.x) / 2,
      y: (a.y + b.y) / 2,
    };
  }

  /** @param {Pinch} gesture */
  #pinch(gesture) {
    const [a, b] = [...this.#pointers.values()];
    if (!b) return;
    const distance = Math.max(10, Math.hypot(a.x - b.x, a.y - b.y));
    const [x, y] = [(a.x + b.x) / 2, (a.y + b.y) / 2];
    this.#x += x - gesture.x;
    this.#y += y - gesture.y;
    this.zoom(distance / gesture.distance, x, y);
    Object.assign(gesture, { distance, x, y });
  }

  /** Selects the smallest box at a point; repeated clicks select the boxes below it. @param {number} x @param {number} y */
  #click(x, y) {
    const here = this.#marks
      .filter((mark) => contains(mark.box, x, y, 3 / this.#scale))
      .sort((a, b) => area(a.box) - area(b.box));
    if (!here.length) return this.handlers.select(null);
    const now = here.findIndex((mark) => mark.id === this.#active);
    this.handlers.select(here[(now + 1) % here.length].id);
  }

  /** @param {Mark} mark @param {{x: number, y: number}} at @param {string} pointer @returns {Handle | null} */
  #handleAt(mark, at, pointer) {
    const box = this.#toScreen(mark.box);
    const reach = REACH[/** @type {keyof typeof REACH} */ (pointer)] ?? REACH.mouse;
    const small = Math.min(box[2] - box[0], box[3] - box[1]) < 36;
    // The centre of a small box must stay free for moving it.
    const inside = contains(box, at.x, at.y, 0);
    const room = Math.min(reach, Math.max(3, Math.min(box[2] - box[0], box[3] - box[1]) / 4));
    let nearest = null;
    let least = Infinity;
    for (const name of HANDLES) {
      if (small && name.length === 1) continue;
      const [x, y] = handlePoint(box, name);
      const distance = Math.hypot(at.x - x, at.y - y);
      if (distance <= (inside ? room : reach) && distance < least) [nearest, least] = [name, distance];
    }
    return nearest;
  }

  /** Sets the cursor to what a drag would do. @param {{x: number, y: number} | null} at @param {PointerEvent | null} event */
  #hover(at, event) {
    let cursor = "crosshair";
    let hovered = null;
    let guides = "";
    if (at && event) {
      const [x, y] = this.#toImage(at.x, at.y);
      const mark = this.#editable();
      const handle = mark && this.mode === "auto" ? this.#handleAt(mark, at, "mouse") : null;
      if (this.handlers.panning()) cursor = "grab";
      else if (handle)
        cursor = `${{ nw: "nwse", se: "nwse", ne: "nesw", sw: "nesw", n: "ns", s: "ns", e: "ew", w: "ew" }[handle]}-resize`;
      else if (mark && this.mode === "auto" && contains(mark.box, x, y) && !event.shiftKey) cursor = "move";
      hovered =
        this.#marks.filter((one) => contains(one.box, x, y)).sort((a, b) => area(a.box) - area(b.box))[0]?.id ?? null;
      const drawing = this.mode !== "auto" || (this.fingerDraws && cursor === "crosshair");
      if (drawing) guides = `M0 ${at.y}H${this.stage.clientWidth}M${at.x} 0V${this.stage.clientHeight}`;
    }
    this.stage.style.cursor = cursor;
    this.guides.setAttribute("d", guides);
    if (hovered !== this.#hovered) {
      this.#hovered = hovered;
      this.#soon();
    }
  }
}

/** @param {Element} node @param {Record<string, number | string>} values */
function set(node, values) {
  for (const [name, value] of Object.entries(values))
    node.setAttribute(name, String(typeof value === "number" ? Math.round(value * 10) / 10 : value));
}
