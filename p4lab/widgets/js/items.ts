// What stands in a panel.

import { button, chip, emphasized, make, segments, write } from "./dom.ts";
import { nearest, onCommit, patient, player, throttled } from "./touch.ts";

type Choice = string | number | boolean | null;
type Card = [title: string, text: string, canBeSetUp: boolean];
/** A control or a readout, as `p4lab.widgets.Item`. */
export interface Item {
  kind: keyof Values; name: string; label: string; unit: string; help: string; choices: Choice[]; texts: string[];
  live: boolean; look: string; color: string;
}
interface Row { color: string; cells: string[]; active?: boolean }
interface Run extends Row { number: number; name: string; origin: string }

/** What the kernel shows on items, by kind. */
interface Values {
  title: unknown;
  tabs: string;
  button: { label?: string; look?: string } | null;
  badge: string;
  readout: string | { value: string; unit?: string };
  message: { text: string; level: string };
  slider: number;
  choice: Choice;
  segments: Choice;
  toggle: boolean;
  number: number;
  text: string;
  upload: unknown;
  cards: unknown;
  scrubber: { moments: number[]; shown: number | null };
  table: { label: string; columns: string[]; help: string[]; rows: Row[] };
  runs: { columns: string[]; rows: Run[] };
}

/** `tell` reports to the kernel what a person chose. */
type Tell = (value: unknown) => void;
/** Makes the nodes of an item, and returns what shows a value. */
export type Maker<Value> = (
  item: Item, box: HTMLElement, tell: Tell, upload: (file: ArrayBuffer) => void) => (value: Value) => void;

let serial = 0;

/** Write label and flag before a control, with room for its value, which is returned. */
function labelled({ label: text, help, live }: Item, box: HTMLElement, control: HTMLElement) {
  const label = make("label", "p4-label", text), value = make("output", "p4-setting");
  control.id = label.htmlFor = `p4-control-${serial++}`;
  box.title = help;
  box.append(label, make("span", "p4-flag", live ? "" : "at reset"), value, control);
  return value;
}

/** A field that the kernel does not write into while a person does. */
function field(item: Item, box: HTMLElement, input: HTMLInputElement, commit: () => void) {
  labelled(item, box, input);
  onCommit(input, commit);
  return (value: unknown) => { if (document.activeElement !== input) input.value = String(value ?? ""); };
}

/** A control that tells each change at once, and that the kernel does not move for a second after that. */
function setting<Of>(item: Item, box: HTMLElement, control: HTMLElement, tell: () => void, show: (value: Of) => void) {
  const patience = patient(1000, show);
  labelled(item, box, control);
  control.addEventListener("change", () => { patience.touched(); tell(); });
  return patience.show;
}

/** What the places of a slider stand for; `find` tells where a value stands, and the last place. */
interface Places<Of> { value(place: number): unknown; text(place: number): string; find(value: Of): [number, number] }

/** A range input that is followed live, and that the kernel moves when nobody has touched it for some milliseconds. */
function range<Value>(item: Item, box: HTMLElement, tell: Tell, ms: number, { value, text, find }: Places<Value>) {
  const input = Object.assign(make("input", "p4-slider"), { type: "range", min: "0", max: "0", step: "1" });
  const out = labelled(item, box, input), moved = throttled(() => tell(value(input.valueAsNumber)));
  function read() {
    write(out, text(input.valueAsNumber));
    input.setAttribute("aria-valuetext", String(out.textContent));
    input.style.setProperty("--fill", `${(100 * input.valueAsNumber) / Math.max(1, Number(input.max))}%`);
  }
  const patience = patient(ms, (now: Value) => {
    const [place, last] = find(now);
    [input.max, input.value] = [String(last), String(place)];
    read();
  });
  input.addEventListener("input", () => { patience.touched(); read(); moved(); });
  return { input, show: patience.show };
}

function line(tag: "th" | "td", texts: string[], className = "") {
  const tr = make("tr");
  tr.append(...texts.map((text) => make(text ? tag : "td", className, text))); // a heading that says nothing is none
  return tr;
}

/** A row of the table of runs, with what can be done to a run. */
function runRow(run: Run, tell: Tell) {
  const tr = line("td", run.cells, "p4-cell"), first = make("td", "p4-run-name"), last = make("td", "p4-run-actions");
  const name = Object.assign(make("input", "p4-text"), { value: run.name });
  name.setAttribute("aria-label", `Name of ${run.name}`);
  onCommit(name, () => tell({ action: "rename", number: run.number, name: name.value }));
  const act = (text: string, action: string, help: string) => {
    const node = button("p4-button p4-small", text, help, () => tell({ action, number: run.number }));
    node.setAttribute("aria-label", `${help}: ${run.name}`);
    return node;
  };
  if (run.active) last.append(make("span", "p4-flag", "active"));
  else last.append(act("Go on", "select", "Make this the active run"), act("✕", "remove", "Remove this run"));
  first.append(chip(run.color), name, make("span", "p4-origin", run.origin));
  tr.prepend(first);
  tr.append(last);
  tr.dataset.active = String(run.active);
  return tr;
}

export const MAKERS: { [Kind in keyof Values]: Maker<Values[Kind]> } = {
  title(item, box) {
    box.append(make("h2", "p4-title", item.label), make("p", "p4-subtitle", item.help));
    return () => {};
  },
  tabs(item, box, tell) {
    const place = item.name.replace("page:", ""), strip = make("div", "p4-tab-strip");
    const nodes = item.texts.map((text, k) => button("p4-tab", text, "", () => choose(k)));
    strip.append(...nodes);
    strip.setAttribute("role", "tablist");
    strip.setAttribute("aria-label", item.label);
    for (const node of nodes) node.setAttribute("role", "tab");
    strip.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const next = (nodes.findIndex((node) => node.ariaSelected === "true") + step + nodes.length) % nodes.length;
      nodes[next].focus();
      choose(next);
    });
    let waits = 0;
    box.append(strip);
    /** Which page is seen is said on the lab, by its number: the sheet hides the others. */
    function turn(page: number) {
      nodes.forEach((node, k) => {
        node.setAttribute("aria-selected", String(k === page));
        node.tabIndex = k === page ? 0 : -1;
      });
      const lab = box.closest<HTMLElement>(".p4-lab");
      if (lab) lab.dataset[place] = String(page);
      else if (waits++ < 100) setTimeout(() => turn(page), 100); // the page is still being put together
    }
    const patience = patient<string>(1000, (page) => turn(item.choices.indexOf(page)));
    function choose(page: number) {
      patience.touched();
      turn(page);
      tell(item.choices[page]);
    }
    return patience.show;
  },
  button(item, box, tell) {
    const node = button("p4-button", item.label, item.help, () => tell(true));
    node.dataset.look = item.look;
    box.append(node);
    return (value) => {
      if (value?.label) write(node, value.label);
      if (value?.look) node.dataset.look = value.look;
    };
  },
  badge(_, box) {
    const badge = make("span", "p4-badge");
    badge.setAttribute("role", "status");
    box.append(badge);
    return (value) => {
      write(badge, value);
      badge.dataset.state = value;
    };
  },
  readout(item, box) {
    const number = make("b", "p4-value", "–"), unit = make("span", "p4-unit", item.unit);
    box.title = item.help;
    box.append(make("span", "p4-name", item.label), number, unit);
    return (value) => {
      const now = typeof value === "object" ? value : { value };
      write(number, now.value);
      if (now.unit !== undefined) write(unit, now.unit);
    };
  },
  message(_, box) {
    const text = make("span", "p4-message");
    text.setAttribute("role", "alert");
    box.append(text);
    return (value) => {
      write(text, value.text);
      text.title = value.text;
      text.dataset.level = value.level;
    };
  },
  slider(item, box, tell) {
    const choices = item.choices as number[], last = choices.length - 1, unit = item.unit && ` ${item.unit}`;
    const { input, show } = range<number>(item, box, tell, 1000, {
      value: (place) => choices[place],
      text: (place) => item.texts[place] + unit,
      find: (value) => [nearest(choices, value), last],
    });
    input.max = String(last);
    if (item.look === "play") {
      const toggle = player(input, (going) => write(play, going ? "❚❚ Stop" : "▶ Play"));
      const play = button("p4-button p4-play", "▶ Play", "", toggle);
      box.append(play);
    }
    return show;
  },
  choice(item, box, tell) {
    const select = make("select", "p4-select");
    select.append(...item.texts.map((text, i) => new Option(text, String(i))));
    const show = (value: Choice) => { select.value = String(item.choices.indexOf(value)); };
    return setting(item, box, select, () => tell(item.choices[Number(select.value)]), show);
  },
  segments(item, box, tell) {
    const { row, show } = segments(item.label, item.texts, (place) => tell(item.choices[place]));
    labelled(item, box, row);
    return (value) => show(item.choices.indexOf(value));
  },
  toggle(item, box, tell) {
    const input = Object.assign(make("input", "p4-toggle"), { type: "checkbox" });
    input.setAttribute("role", "switch");
    return setting(item, box, input, () => tell(input.checked), (value: boolean) => { input.checked = value; });
  },
  number(item, box, tell) {
    const input = Object.assign(make("input", "p4-number"), { type: "number", min: "0", step: "1" });
    return field(item, box, input, () => tell(input.valueAsNumber));
  },
  text(item, box, tell) {
    const input = Object.assign(make("input", "p4-text"), { type: "text", spellcheck: false, autocomplete: "off" });
    const show = field(item, box, input, () => tell(input.value)), copy = button("p4-button", "Copy", "", () => {
      input.select();
      // Without https there is no clipboard; the text is selected then.
      navigator.clipboard?.writeText(input.value).then(() => {
        copy.textContent = "Copied";
        setTimeout(() => { copy.textContent = "Copy"; }, 1200);
      }, () => {});
    });
    if (item.look === "copy") box.append(copy);
    return show;
  },
  cards(item, box, tell) {
    const cards = item.choices as unknown as Card[];
    const title = make("h4", "p4-card-title"), text = make("p", "p4-card-text");
    const place = make("span", "p4-soft"), pager = make("div", "p4-pager");
    const set = button("p4-button", "Set it up", "Set what this needs; Reset starts over", () => tell(at));
    let at = 0;
    function turn(to: number) {
      at = (to + cards.length) % cards.length;
      title.textContent = cards[at][0];
      text.replaceChildren(...emphasized(cards[at][1]));
      place.textContent = `${at + 1} of ${cards.length}`;
      set.hidden = !cards[at][2];
    }
    pager.append(button("p4-button p4-small", "‹", "The one before", () => turn(at - 1)), place,
      button("p4-button p4-small", "›", "The next one", () => turn(at + 1)));
    const card = make("div", "p4-card");
    card.setAttribute("aria-live", "polite");
    card.append(title, text, set);
    box.append(pager, card);
    turn(0);
    return () => {};
  },
  upload(item, box, _, upload) {
    const attributes = { type: "file", accept: item.choices.join(), hidden: true };
    const input = Object.assign(make("input", "p4-file"), attributes);
    input.addEventListener("change", async () => {
      if (input.files?.length) upload(await input.files[0].arrayBuffer());
      input.value = "";
    });
    box.append(button("p4-button", item.label, item.help, () => input.click()), input);
    return () => {};
  },
  scrubber(item, box, tell) {
    let moments: number[] = [];
    const { input, show } = range<Values["scrubber"]>(item, box, tell, 400, {
      value: (place) => moments[place] ?? null, // the place after the last moment is the present
      text: (place) => (place in moments ? `step ${moments[place].toLocaleString("en-US")}` : "now"),
      find({ moments: steps, shown }) {
        moments = steps;
        return [shown === null ? steps.length : steps.indexOf(shown), steps.length];
      },
    });
    input.classList.add("p4-scrubber");
    return show;
  },
  table(item, box) {
    const table = make("table", "p4-runs-table p4-table");
    const title = make("caption", "", item.label), body = make("tbody");
    table.append(title, body);
    box.append(table);
    return (value) => {
      const head = line("th", value.columns), rows = value.rows.map((row) => {
        const tr = line("td", row.cells);
        tr.children[0].prepend(chip(row.color));
        tr.dataset.active = String(row.active ?? false);
        return tr;
      });
      value.help.forEach((text, i) => { (head.children[i] as HTMLElement).title = text; });
      title.textContent = value.label;
      body.replaceChildren(head, ...rows);
    };
  },
  runs(_, box, tell) {
    const table = make("table", "p4-runs-table");
    box.append(table);
    let before = "", shape = "";
    return (value) => {
      const text = JSON.stringify(value), focus = document.activeElement;
      if (text === before || (table.contains(focus) && focus?.matches("input"))) return;
      before = text;
      const now = JSON.stringify([value.columns, value.rows.map((run) => ({ ...run, cells: 0 }))]);
      if (now === shape) { // new numbers in the same table: no new layout for them
        const cells = table.querySelectorAll(".p4-cell");
        value.rows.flatMap((run) => run.cells).forEach((cell, i) => { write(cells[i], cell); });
        return;
      }
      shape = now;
      table.replaceChildren(line("th", ["run", ...value.columns, ""]), ...value.rows.map((run) => runRow(run, tell)));
    };
  },
};
