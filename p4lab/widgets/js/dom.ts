// Elements of the page.

const CONTROLS = new Set(["button", "input", "select"]);

export function make<Tag extends keyof HTMLElementTagNameMap>(tag: Tag, className = "", text?: string) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  // Keys are for the control that has the focus: arrows would fold the notebook's cells, Enter would edit them.
  if (CONTROLS.has(tag)) node.dataset.lmSuppressShortcuts = "true";
  return node;
}

/** Write a text, unless it stands there already: the page's layout is computed anew for every text that is written. */
export function write(node: Node, text: string) {
  if (node.textContent !== String(text)) node.textContent = text;
}

/** A button: what it says, also when the pointer rests on it, and what a click does. */
export function button(className: string, text: string, title: string, press: () => void) {
  const node = make("button", className, text);
  node.type = "button";
  if (title) node.title = title;
  node.addEventListener("click", press);
  return node;
}

/** A row of buttons of which one is pressed: `choose` hears which one a click is for, `show` presses one. */
export function segments(label: string, texts: string[], choose: (place: number) => void, titles: string[] = []) {
  const row = make("div", "p4-segments");
  const buttons = texts.map((text, k) => button("", text, titles[k], () => choose(k)));
  row.setAttribute("role", "group");
  row.setAttribute("aria-label", label);
  row.append(...buttons);
  const press = (node: Element, pressed: boolean) => node.setAttribute("aria-pressed", String(pressed));
  const show = (place: number) => { for (const node of buttons) press(node, node === buttons[place]); };
  return { row, show };
}

/** The nodes of a text: what stands between asterisks is emphasized. */
export const emphasized = (text: string) => text.split("*").map((part, k) => make(k % 2 ? "em" : "span", "", part));

/** A dot in the colour of what it stands before. */
export function chip(color: string) {
  const node = make("i", "p4-chip");
  node.style.background = color;
  return node;
}

/** The heading of a figure: its title, and a few words after it. */
export function caption(title: string, note = "") {
  const node = make("figcaption");
  node.append(make("b", "", title), make("span", "", note));
  return node;
}

/** Whether the person has asked for a page on which nothing moves by itself. */
export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
