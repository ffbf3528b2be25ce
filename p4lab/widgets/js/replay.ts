// A recorded run on a page of its own. It takes the kernel's place: each widget is told what the kernel would say at
// the moment that the slider shows, and draws it as it would live.

import type { Model } from "./channel.ts";
import { button, make, segments, write } from "./dom.ts";
import formula from "./formula.ts";
import imageGrid from "./image_grid.ts";
import livePlot from "./live_plot.ts";
import panel from "./panel.ts";
import plane from "./plane.ts";
import space from "./space.ts";
import { player } from "./touch.ts";

const PASSES_MS = 9000; // a run at the usual speed
const QUICKEST_MS = 100, SLOWEST_MS = 700; // from one moment to the next
const ROW = 5, GRIDS = 8; // most pictures, and grids of images, in one
const GRID_WIDTH = 280, PAGE_WIDTH = 1200; // pixels
const SPEEDS = [0.5, 1, 2, 4], SPEED_TEXTS = ["½×", "1×", "2×", "4×"];
const KINDS: Record<string, typeof plane> = {
  Plane: plane, Space: space, ImageGrid: imageGrid, Formula: formula, ControlPanel: panel, LivePlot: livePlot,
};

/** A message, and which buffers travel with it. */
type Said = [message: object, buffers: number[]];
/** What a widget is told; see `p4lab.widgets.replay`. */
export interface Told { kind: string; place: string; states: Said[]; at: (number | null)[]; news: Said[][] }
interface Recording { steps: number[]; widgets: Told[]; buffers: DataView[] }
interface Story {
  lab: string; title: string; subtitle: string; run: string; config: string; note: string;
  facts: [heading: string, facts: [label: string, value: string][]][];
}

/** Bytes that stand in planes (all first bytes of some numbers, all second ones and so on), number by number. */
export function numberByNumber(planes: Uint8Array, width: number) {
  const bytes = new Uint8Array(planes.length), n = planes.length / width;
  for (let k = 0; k < planes.length; k++) bytes[(k % n) * width + Math.floor(k / n)] = planes[k];
  return bytes;
}

/** Take a recording apart: the length of its text, the text, and the buffers. */
export function unpacked(bytes: Uint8Array): Recording {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), length = view.getUint32(0, true);
  const { steps, widgets, buffers } = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = 4 + length;
  const views = (buffers as [size: number, width: number][]).map(([size, width]) => {
    at += size;
    return new DataView(numberByNumber(bytes.subarray(at - size, at), width).buffer);
  });
  return { steps, widgets, buffers: views };
}

/** Milliseconds from one moment to the next. */
export const rest = (moments: number, speed: number) => (
  Math.min(SLOWEST_MS, Math.max(QUICKEST_MS, PASSES_MS / Math.max(1, moments - 1))) / speed);

/**
 * The kernel's end of one widget: a model for its module, and `show`, which tells it a moment, or only what is new
 * since the moment before; false if there is nothing to be seen then.
 */
export function kernelOf(told: Told, buffers: DataView[], library: DataView, failed: (text: string) => void) {
  let hear: Parameters<Model["on"]>[1] = () => {}, moment = -1, state: number | null = null, frame = 0;

  function say([message, places]: Said) {
    frame += 1;
    const envelope = { frame, channel: ["replay", told.place] as [string, string] };
    hear({ ...structuredClone(message), ...envelope }, places.map((place) => buffers[place]));
  }

  const model: Model = {
    fixed: true,
    on(_, call) { hear = call; },
    send(message: { hello?: 1; library?: 1; error?: string }) {
      // As a kernel would, later. Nobody waits for acknowledgements.
      if (message.hello) queueMicrotask(() => { if (state !== null) say(told.states[state]); });
      if (message.library) queueMicrotask(() => hear({ library: 1 } as object, [library]));
      if (message.error) failed(message.error);
    },
  };

  function show(next: number) {
    const before = moment, now = told.at[next];
    if (now !== null && now !== state) {
      const follows = next === before + 1 && told.at[before] !== null && before >= 0;
      for (const said of follows ? told.news[next] : [told.states[now]]) say(said);
    }
    [moment, state] = [next, now ?? state];
    return now !== null;
  }

  return { model, show };
}

/** What the address asks for: `#play`, `#dark`, `#light`, or two of them with a comma. */
const asked = (word: string) => (globalThis.location?.hash ?? "").slice(1).split(",").includes(word);

/** Light or dark: as the address says, or as the person's system has it, until they choose. */
function lighting() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const node = button("p4-button", "", "", () => set(document.body.dataset.jpThemeLight === "true"));
  function set(dark: boolean) {
    document.body.dataset.jpThemeLight = String(!dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    write(node, dark ? "☀ Light" : "☾ Dark");
  }
  set(asked("dark") || (system.matches && !asked("light")));
  system.addEventListener("change", () => set(system.matches));
  return node;
}

/** The bar with the slider; `show` hears each moment that is to be seen. */
export function timeline(steps: number[], show: (moment: number) => void) {
  const last = steps.length - 1, bar = make("div", "p4-replay-bar"), text = make("output", "p4-replay-step");
  const slider = Object.assign(make("input", "p4-slider"), { type: "range", min: "0", max: String(last), step: "1" });
  let speed = SPEEDS[1];
  const toggle = player(slider, (going) => write(play, going ? "❚❚ Pause" : "▶ Play"), () => rest(steps.length, speed));
  const play = button("p4-button", "▶ Play", "Play the run, or pause (Space)", toggle);
  const speeds = segments("Speed", SPEED_TEXTS, (place) => { speed = SPEEDS[place]; speeds.show(place); });

  function read() {
    const step = steps[slider.valueAsNumber].toLocaleString("en-US"), end = steps[last].toLocaleString("en-US");
    write(text, `step ${step} of ${end}`);
    slider.setAttribute("aria-valuetext", `step ${step} of ${end}`);
    slider.style.setProperty("--fill", `${(100 * slider.valueAsNumber) / Math.max(1, last)}%`);
    show(slider.valueAsNumber);
  }

  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Time");
  slider.setAttribute("aria-label", "Moment of the run");
  slider.addEventListener("input", read);
  play.dataset.look = "primary";
  play.disabled = slider.disabled = !last;
  slider.value = String(last);
  speeds.show(1);
  bar.append(play, slider, text, speeds.row);

  const move = (place: number) => {
    slider.dispatchEvent(new Event("pointerdown")); // a person takes over from the player
    slider.value = String(Math.max(0, Math.min(last, place)));
    read();
  };
  const KEYS: Record<string, () => void> = {
    " ": () => { if (last) toggle(); },
    ArrowLeft: () => move(slider.valueAsNumber - 1), ArrowRight: () => move(slider.valueAsNumber + 1),
    Home: () => move(0), End: () => move(last),
  };

  /** Play with the space bar, move with the arrow keys, wherever these have no other meaning. */
  function press(event: KeyboardEvent) {
    const tag = (event.target as Element | null)?.tagName?.toLowerCase() ?? "";
    const taken = event.key === " " ? ["button", "summary"] : ["canvas", "input"];
    const typing = tag === "input" && event.target !== slider;
    if (!KEYS[event.key] || typing || taken.includes(tag) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // the slider would stop the player
    KEYS[event.key]();
  }

  return { bar, read, press, play: () => { if (last) toggle(); } };
}

/** A field with the run's config, and a button that copies it. */
function configOf({ config }: Story) {
  const row = make("div", "p4-replay-config"), label = make("label", "", "Config");
  const field = Object.assign(make("input", "p4-text"), { type: "text", readOnly: true, value: config });
  const copy = button("p4-button", "Copy", "Copy the config: it can be pasted into the live lab", () => {
    field.select();
    // A page from a file may have no clipboard; the text is selected then.
    navigator.clipboard?.writeText(config).then(() => write(copy, "Copied"), () => {});
  });
  field.id = label.htmlFor = "p4-replay-config";
  row.append(label, field, copy);
  return row;
}

function factsOf({ facts, run }: Story, moments: number) {
  const box = make("div", "p4-replay-facts");
  box.append(...facts.map(([heading, pairs]) => {
    const section = make("section"), list = make("dl");
    list.append(...pairs.flatMap(([label, value]) => [make("dt", "", label), make("dd", "", value)]));
    section.append(make("h2", "", heading), list);
    return section;
  }));
  const about = `Recorded with p4lab: ${run}, ${moments} moment${moments === 1 ? "" : "s"}. ` +
    "Space plays, the arrow keys move through time.";
  box.append(make("p", "p4-replay-about", about));
  return box;
}

/** How many of some things stand in a row at most, so that the last row is no emptier than need be. */
export const balanced = (things: number, most = ROW) => (
  Math.max(1, Math.ceil(things / Math.max(1, Math.ceil(things / most)))));

/** What messages have that the layout goes by. */
interface Shape {
  layers?: ({ kind: string; label: string } | null)[]; panels?: { columns: number; shape: [number, number, number] }[];
}

/** The share of a row that a picture gets: more if it has a colour bar, or is in space. */
function share({ kind, states }: Told) {
  const layers = states.flatMap(([message]) => (message as Shape).layers ?? []);
  const barred = layers.some((layer) => layer?.kind === "Heatmap" && layer.label);
  return kind === "Space" ? "1.7fr" : barred ? "1.4fr" : "1fr";
}

/** The shares of grids of images that stand in a row: wide ones get more, and few of them no more than they need. */
function gridShares({ states }: Told) {
  const panels = (states.at(-1)?.[0] as Shape | undefined)?.panels ?? [];
  const shares = panels.map(({ columns, shape: [n, h, w] }) => (
    Math.min(4, Math.max(1, (columns * w) / Math.max(1, Math.ceil(n / columns) * h)))));
  const few = shares.reduce((sum, of) => sum + of * GRID_WIDTH, 0) < PAGE_WIDTH;
  return shares.map((of) => (few ? `${of * GRID_WIDTH}px` : `${of}fr`));
}

/** Let things stand in rows as full as can be; if they fit into one of a wide page, with these shares of it. */
function rowOf(el: HTMLElement, shares: string[], most: number, narrow = shares.length) {
  el.style.setProperty("--most", String(balanced(narrow, most)));
  if (shares.length <= most) el.style.setProperty("--row", shares.map((of) => `minmax(0, ${of})`).join(" ") || "1fr");
}

/** Build the page, and draw the last moment. */
function stage(story: Story, { steps, widgets, buffers }: Recording, library: DataView) {
  const root = make("main", `p4-lab p4-replay p4-${story.lab}`), head = make("header", "p4-replay-head");
  const fault = make("p", "p4-replay-fault"), title = make("div"), note = make("p", "p4-replay-note", story.note);
  const pictures = make("div", "p4-replay-pictures"), body = make("div", "p4-replay-body");
  const failed = (text: string) => { fault.hidden = false; write(fault, text); };
  fault.setAttribute("role", "alert");
  [fault.hidden, note.hidden] = [true, !story.note];
  title.append(make("h1", "", story.title), make("p", "p4-subtitle", story.subtitle));
  head.append(title, lighting());

  const parts = widgets.map((told) => {
    const el = make("div", `p4-replay-${told.kind.toLowerCase()}${told.place.startsWith("board") ? " p4-board" : ""}`);
    el.dataset.place = told.place;
    return { el, told, ...kernelOf(told, buffers, library, failed) };
  });
  const at = (place: RegExp) => parts.map(({ el }) => el).filter((el) => place.test(el.dataset.place ?? ""));
  pictures.append(...at(/^picture /));
  const { bar, read, press, play } = timeline(steps, (moment) => {
    for (const { el, show } of parts) el.hidden = !show(moment);
  });
  const cells = widgets.filter((told) => (
    ["Plane", "Space", "Formula"].includes(told.kind) || (told.kind === "ImageGrid" && gridShares(told).length === 1)));
  // Equations have a row of their own where there is little room.
  rowOf(pictures, cells.map(share), ROW, cells.filter(({ kind }) => kind !== "Formula").length);
  for (const { el, told } of parts) if (told.kind === "ImageGrid") rowOf(el, gridShares(told), GRIDS);
  root.dataset.beside = String(pictures.childElementCount === 1);
  body.append(...at(/^board /), ...(pictures.childElementCount ? [pictures] : []), ...at(/^curves$/));
  root.append(head, ...at(/^numbers$/), bar, fault, note, body, configOf(story), factsOf(story, steps.length));
  document.body.append(root);
  document.addEventListener("keydown", press, { capture: true });
  read();
  for (const { el, model, told } of parts) {
    const module = KINDS[told.kind]();
    module.initialize({ model });
    module.render({ el });
  }
  if (asked("play")) play();
}

async function bytesOf(name: string) {
  const text = document.getElementById(`p4-${name}`)?.textContent ?? "";
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

async function inflated(name: string) {
  const stream = new Blob([await bytesOf(name)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export default async function start() {
  try {
    const story = JSON.parse(new TextDecoder().decode(await inflated("story")));
    const library = new DataView((await bytesOf("library")).buffer);
    stage(story, unpacked(await inflated("recording")), library);
  } catch (error) {
    const text = `This page could not be built: ${error}. It needs a browser that is not older than 2023.`;
    document.body.append(Object.assign(make("p", "p4-replay-fault", text), { role: "alert" }));
    throw error;
  }
}

// A page that holds a recording begins by itself.
if (typeof document !== "undefined" && document.getElementById?.("p4-recording")) start();
