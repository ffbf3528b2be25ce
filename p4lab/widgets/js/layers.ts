// What plane and space have in common: layers that are kept until they change, labels and a legend, points to drag.

import { approach, follow } from "./box.ts";
import { type Context, wiped } from "./canvas.ts";
import { caption, make } from "./dom.ts";
import { type Holds, handles, holds } from "./handles.ts";
import { type Box, decode, type Entry, type Layer, legendOf, type Numbers, type Parcel } from "./layer.ts";
import { type Colors, theme } from "./theme.ts";
import { widget } from "./widget.ts";

const NEAR = 11; // pixels from a mark within which it tells its label

/** What stays as it is; `home` is where one looks from at first, of a picture in space. */
export interface Look {
  dim: number; title: string; note: string; labels: string[]; equal: boolean; height: number; home: number[];
}
/** A layer that is null is as before. */
interface Message { view?: Look; labels?: string[]; layers: (Parcel | null)[]; bounds: number[] | null }
/** What there is to draw; `focus` is the movable point that has the keyboard. */
export interface State {
  look: Look; layers: Layer[]; bounds: number[] | null; box: Box; colors: Colors; focus: string | null;
  pointOf: Holds["pointOf"];
}
/** A place that tells its label. */
export interface Mark { x: number; y: number; text: string }

/** What differs between pictures; a `Sight` is how numbers are brought to one canvas and back. */
export interface Kind<Sight> {
  sight(width: number, height: number, state: State): Sight;
  /** Draw everything, and return the marks that tell their label. */
  draw(context: Context, sight: Sight, state: State): Mark[];
  /** Where a point is on the canvas, null if it cannot be seen. */
  locate(sight: Sight, point: Numbers): Numbers | null;
  /** Which point is there; in space, as deep as `point`. */
  at(sight: Sight, x: number, y: number, point: Numbers): number[];
  /** Add what else a canvas listens to. */
  enter?(canvas: HTMLCanvasElement, stage: HTMLElement, repaint: () => void): void;
  help?: string;
}

/** The mark nearest to a place, if one is near. */
export function nearest(marks: Mark[], x: number, y: number) {
  let best = NEAR, near: Mark | null = null;
  for (const mark of marks) {
    const distance = Math.hypot(mark.x - x, mark.y - y);
    if (distance <= best) [best, near] = [distance, mark];
  }
  return near;
}

const SVG = "http://www.w3.org/2000/svg";
const SAMPLES: Record<string, string> = {
  line: "M1 6H21", Arrow: "M1 6H16M15 2.5L21 6L15 9.5Z", dot: "M11 2.5A3.5 3.5 0 1 0 11.01 2.5Z",
  ring: "M11 2.5A3.5 3.5 0 1 0 11.01 2.5Z", cross: "M7.5 2.5L14.5 9.5M14.5 2.5L7.5 9.5",
  square: "M7.5 2.5H14.5V9.5H7.5Z", Surface: "M3 1H19V11H3Z",
};

function legendItem({ label, look, color, dashed, opacity }: Entry) {
  const item = make("span"), svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
  const attributes = {
    d: SAMPLES[look], stroke: color, "stroke-width": look === "Surface" ? 1 : 2, "fill-opacity": opacity,
    fill: ["line", "ring", "cross"].includes(look) ? "none" : color, "stroke-dasharray": dashed ? "5 3" : "none",
  };
  for (const [name, value] of Object.entries(attributes)) path.setAttribute(name, String(value));
  svg.setAttribute("viewBox", "0 0 22 12");
  svg.append(path);
  item.append(svg, label);
  return item;
}

/** A picture made of layers; `kindOf` is called once for each widget. */
export const layered = <Sight>(kindOf: () => Kind<Sight>) => widget("p4-drawing", (line, model) => {
  const kind = kindOf(), hands = holds((moved, point) => model.send({ moved, point }), line.repaint);
  let look: Look, layers: Layer[] = [], bounds: number[] | null = null;
  let goal: Box | null = null, box: Box, focus: string | null = null;

  /** Let the box follow the bounds or the data; returns whether it is still on its way. */
  function settle() {
    if (bounds) goal = Array.from({ length: look.dim }, (_, a) => (bounds as number[]).slice(2 * a, 2 * a + 2));
    else if (!goal || !hands.busy()) goal = follow(layers, goal, look);
    box ??= goal.map((side) => [...side]);
    return approach(box, goal);
  }

  function build(el: HTMLElement) {
    const figure = make("figure", "p4-picture"), canvas = make("canvas"), stage = make("div", "p4-stage");
    const tip = make("div", "p4-tip"), legend = make("div", "p4-legend"), { title, note, height } = look;
    let sight: Sight, marks: Mark[] = [], mouse: [number, number] | null = null, legendText = "", middle = 0;
    const describe = ({ labels }: Look) =>
      [title, note, labels.filter(Boolean).join(", "), kind.help].filter(Boolean).join(": ");
    figure.dataset.lmSuppressShortcuts = "true"; // arrow keys are ours, not the notebook's
    stage.style.height = `${height}px`;
    canvas.setAttribute("role", "img");
    tip.hidden = true;
    stage.append(canvas, tip);
    figure.append(...(title || note ? [caption(title, note)] : []), stage, legend);
    el.replaceChildren(figure);
    canvas.addEventListener("pointermove", (event) => point(event.offsetX, event.offsetY));
    canvas.addEventListener("pointerleave", () => { mouse = null; tip.hidden = true; });
    kind.enter?.(canvas, stage, line.repaint);
    const grips = handles(canvas, stage, hands, {
      locate: (p) => kind.locate(sight, p), at: (x, y, p) => kind.at(sight, x, y, p),
    }, (name) => { focus = name; line.repaint(); }, model.fixed);

    /** Show the label of the mark under the mouse. */
    function point(x: number, y: number) {
      mouse = [x, y];
      const mark = nearest(marks, x, y);
      tip.hidden = !mark;
      if (!mark) return;
      tip.textContent = mark.text;
      tip.dataset.side = mark.x > middle ? "left" : "right";
      tip.style.transform = `translate(${mark.x}px, ${mark.y}px)`;
    }

    function draw(state: State) {
      const { context, width, height } = wiped(canvas, stage);
      [sight, middle] = [kind.sight(width, height, state), width / 2];
      marks = kind.draw(context, sight, state);
      canvas.setAttribute("aria-label", describe(state.look));
      grips.place(state.layers, state.colors.color);
      if (mouse) point(...mouse);
      const entries = legendOf(state.layers, state.colors), text = JSON.stringify(entries);
      if (legendText !== text) legend.replaceChildren(...entries.map(legendItem));
      legendText = text;
    }

    return { draw, leave: grips.leave };
  }

  return {
    receive(message: Message, buffers) {
      if (message.view) [look, layers] = [message.view, []];
      if (look && message.labels) look = { ...look, labels: message.labels };
      // This page came in the middle of a conversation.
      if (!look || message.layers.some((layer, k) => !layer && !layers[k])) return line.again();
      layers = message.layers.map((layer, k) => (layer ? decode(layer, buffers, look.dim) : layers[k]));
      bounds = message.bounds;
    },
    ready: () => Boolean(look),
    build,
    paint(pages: ReturnType<typeof build>[]) {
      if (!pages.length) return;
      const moving = settle(), state = { look, layers, bounds, box, colors: theme(), focus, pointOf: hands.pointOf };
      for (const page of pages) page.draw(state);
      if (moving) line.repaint();
    },
    leave: (page: ReturnType<typeof build>) => page.leave(),
    stop: hands.stop,
  };
});
