// A page for tests: a clock that stands still, as much of a document as widgets use, and a kernel that listens.

import { mock } from "node:test";

class Node extends EventTarget {
  childNodes = [];
  parent = null;
  dataset = {};
  attributes = {};
  style = { setProperty(name, value) { this[name] = value; } };
  classes = new Set();
  clientWidth = 300;
  clientHeight = 200;
  offsetParent = {};
  #value = "";

  constructor(tag) {
    super();
    this.tag = tag;
    this.classList = { add: (...names) => { for (const name of names) this.classes.add(name); } };
  }

  get className() { return [...this.classes].join(" "); }
  set className(names) { this.classes = new Set(names.split(" ")); }
  get children() { return this.childNodes.filter((node) => node instanceof Node); }
  get textContent() { return this.childNodes.map((node) => node.textContent ?? node).join(""); }
  set textContent(text) { this.childNodes = text === "" ? [] : [String(text)]; }
  get isConnected() { return this === document.body || Boolean(this.parent?.isConnected); }
  get value() { return this.#value; }
  set value(value) { this.#value = this.type === "range" ? String(Math.min(Number(value), Number(this.max))) : value; }
  get valueAsNumber() { return Number(this.#value); }

  setAttribute(name, value) { this.attributes[name] = value; }
  getAttribute(name) { return this.attributes[name] ?? null; }
  append(...nodes) { this.childNodes.push(...nodes.map((node) => this.#adopt(node))); }
  prepend(...nodes) { this.childNodes.unshift(...nodes.map((node) => this.#adopt(node))); }
  replaceChildren(...nodes) { this.childNodes = []; this.append(...nodes); }
  remove() { this.parent.childNodes = this.parent.childNodes.filter((node) => node !== this); this.parent = null; }
  contains(node) { return node === this || this.children.some((child) => child.contains(node)); }
  matches(tag) { return this.tag === tag; }
  closest(tag) { return this.tag === tag ? this : this.parent?.closest(tag) ?? null; }
  focus() { document.activeElement = this; this.dispatchEvent(new Event("focus")); }
  blur() { document.activeElement = null; this.dispatchEvent(new Event("blur")); }
  click() { if (!this.disabled) this.dispatchEvent(new Event("click")); }
  getBoundingClientRect() { return { left: 0, top: 0 }; }
  setPointerCapture() {}

  /** All nodes of these tags, or (".name") of this class. */
  querySelectorAll(selector) {
    const one = (node, part) => (part[0] === "." ? node.classes.has(part.slice(1)) : node.tag === part);
    const fits = (node) => selector.split(", ").some((part) => one(node, part));
    return this.children.flatMap((node) => [...(fits(node) ? [node] : []), ...node.querySelectorAll(selector)]);
  }

  /** Let something happen to the node: an event with these properties. */
  hear(type, properties = {}) {
    const event = Object.assign(new Event(type, { cancelable: true }), properties);
    this.dispatchEvent(event);
    return event;
  }

  #adopt(node) {
    if (node instanceof Node) node.parent = this;
    return node;
  }
}

/** Begin a page on which time stands still; `wait` lets it pass, with all that is due. */
export function openPage() {
  let now = 1000;
  mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  mock.method(performance, "now", () => now);
  const body = new Node("body"), observers = new Set(), make = (tag) => new Node(tag);
  class Observer {
    constructor(call) { this.call = call; }
    observe() { observers.add(this); }
    disconnect() { observers.delete(this); }
  }
  Object.assign(globalThis, {
    document: Object.assign(new EventTarget(), {
      body, hidden: false, activeElement: null, createElement: make, createElementNS: (_, tag) => make(tag),
    }),
    window: globalThis,
    Option: function Option(text, value) { return Object.assign(make("option"), { textContent: text, value }); },
    ResizeObserver: Observer,
    MutationObserver: Observer,
    matchMedia: () => ({ matches: false }),
    requestAnimationFrame: (call) => setTimeout(call, 16),
    __p4labAcks: undefined,
  });
  async function wait(ms) {
    for (let t = 0; t < ms; t++) {
      now += 1;
      mock.timers.tick(1);
      for (let k = 0; k < 5; k++) await null; // what waited for a promise goes on
    }
  }
  return { body, wait, resize: () => { for (const observer of observers) observer.call(); } };
}

export function closePage() {
  mock.timers.reset();
  mock.restoreAll();
}

/** The kernel's end of a widget: what it was sent, and how it speaks. */
export function kernel(name = "one") {
  const sent = [];
  let hear, frame = 0;
  const model = { send: (message) => sent.push(message), on: (_, call) => { hear = call; } };
  return {
    model,
    sent,
    /** Send a message as it is. */
    say(message, ...arrays) { hear(message, arrays.map((array) => new DataView(array.buffer))); },
    /** Send the next frame. */
    show(message = {}, ...arrays) {
      frame += 1;
      this.say({ ...message, frame, ...(frame === 1 ? { channel: ["kernel", name] } : {}) }, ...arrays);
    },
    /** What was sent since this was asked last. */
    take: () => sent.splice(0),
  };
}
