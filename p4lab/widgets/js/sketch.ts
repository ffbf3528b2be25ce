// A square to paint on.

import { type Area, type Context, pixels, rim, smoothly, wiped, words, writeTicks } from "./canvas.ts";
import { typed } from "./channel.ts";
import { button, caption, make, segments } from "./dom.ts";
import { Ink } from "./ink.ts";
import { clamp, room, ticks } from "./numbers.ts";
import { ramp } from "./ramp.ts";
import { type Colors, theme } from "./theme.ts";
import { widget } from "./widget.ts";

const BRUSHES = [0.035, 0.065, 0.12]; // radius as a share of the side
const [PAINT, ERASE] = [0, 1];
const KEYS: Record<string, number[]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 22; // as a plane with an axis title
const HELP = "Arrow keys move the brush, Space paints, Shift and arrows paint along, Delete rubs out, "
  + "Control Z takes back.";

interface Look { size: number; levels: number; title: string; note: string; extent: number[] }

export default widget("p4-drawing p4-sketch", (line, model) => {
  let look: Look, ink: Ink, tool = PAINT, brush = 1;

  const tell = (why: string) => model.send({ drawn: why }, undefined, [ink.whole().buffer]);

  function changed() {
    tell("stroke");
    line.repaint();
  }

  function tools() {
    const kind = segments("Tool", ["Paint", "Erase"], (k) => { tool = k; line.repaint(); },
      ["Add to the density", "Take away from it"]);
    const size = segments("Brush size", ["S", "M", "L"], (k) => { brush = k; line.repaint(); },
      ["Fine brush", "Medium brush", "Broad brush"]);
    const act = (name: string, text: string, title: string, press: () => void, look = "plain") => {
      const node = button("p4-button p4-small", text, title, press);
      Object.assign(node.dataset, { name, look });
      return node;
    };
    const undo = act("undo", "Undo", "Take the last stroke back (Ctrl+Z)", () => { if (ink.undo()) changed(); });
    const clear = act("clear", "Clear", "Wipe the canvas", () => { if (ink.clear()) changed(); });
    const copy = act("copy", "Copy truth", "Put the density that is trained on onto the canvas, to change it",
      () => model.send({ copy: 1 }));
    const use = act("use", "Train on this", "Start over with this drawing as the density",
      () => tell("use"), "primary");
    const bar = make("div", "p4-sketch-tools");
    bar.append(kind.row, size.row, undo, clear, copy, use);
    function show(empty: boolean) {
      kind.show(tool);
      size.show(brush);
      undo.disabled = !ink.past.length;
      clear.disabled = use.disabled = empty;
    }
    return { bar, show };
  }

  function build(el: HTMLElement) {
    const figure = make("figure", "p4-picture"), body = make("div", "p4-sketch-body"), stage = make("div", "p4-stage");
    const canvas = Object.assign(make("canvas"), { tabIndex: 0, title: HELP }), { bar, show } = tools();
    // Where the brush is, by keys and by mouse, and where a stroke has come to: shares of the side.
    let spot = [0.5, 0.5], mouse: number[] | null = null, last: number[] | null = null, keys = false;
    let area: Area = { x: LEFT, y: TOP, w: 1, h: 1 };

    figure.dataset.lmSuppressShortcuts = "true";
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${look.title}. ${HELP}`);
    stage.append(canvas);
    body.append(stage, bar);
    figure.append(caption(look.title, look.note), body);
    el.replaceChildren(figure);

    const place = ({ offsetX, offsetY }: MouseEvent) => (
      [(offsetX - area.x) / area.w, (area.y + area.h - offsetY) / area.h].map((t) => clamp(t)));
    const rubs = (event: PointerEvent) => tool === ERASE || event.buttons === 2;

    function stroke(from: number[], to: number[], rubbing: boolean) {
      ink.stroke(from, to, BRUSHES[brush], rubbing);
      line.repaint();
    }

    function keyStroke(from: number[], rubbing: boolean) {
      ink.remember();
      stroke(from, spot, rubbing);
      changed();
    }

    /** Do what a key is for; returns whether it is for anything. */
    function press({ key, ctrlKey, metaKey, altKey, shiftKey }: KeyboardEvent) {
      const step = KEYS[key], length = 1 / ink.size, before = spot;
      if ((ctrlKey || metaKey) && key.toLowerCase() === "z") {
        if (ink.undo()) changed();
      } else if (ctrlKey || metaKey || altKey) return false;
      else if (step) {
        spot = before.map((t, a) => clamp(t + length * step[a], length / 2, 1 - length / 2));
        if (shiftKey) keyStroke(before, tool === ERASE);
      } else if ([" ", "Delete", "Backspace"].includes(key)) keyStroke(spot, key !== " " || tool === ERASE);
      else return false;
      return true;
    }

    canvas.addEventListener("pointerdown", (event) => {
      if (event.button === 1) return;
      canvas.setPointerCapture(event.pointerId);
      ink.remember();
      keys = false;
      last = place(event);
      stroke(last, last, rubs(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      mouse = place(event);
      if (!last) return line.repaint();
      stroke(last, mouse, rubs(event));
      last = mouse;
    });
    canvas.addEventListener("lostpointercapture", () => {
      if (last) changed();
      last = null;
    });
    canvas.addEventListener("pointerleave", () => { mouse = null; line.repaint(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("blur", () => { keys = false; line.repaint(); });
    canvas.addEventListener("keydown", (event) => {
      if (!press(event)) return;
      keys = true;
      event.preventDefault();
      event.stopPropagation();
      line.repaint();
    });

    function ring(context: Context, [u, v]: number[], color: string, dashed: boolean) {
      const { x, y, w } = area;
      context.beginPath();
      context.arc(x + u * w, y + (1 - v) * w, Math.max(3, 1.3 * BRUSHES[brush] * w), 0, 2 * Math.PI);
      [context.strokeStyle, context.lineWidth] = [color, 1.5];
      context.setLineDash(dashed ? [4, 3] : []);
      context.stroke();
      context.setLineDash([]);
    }

    return function draw(colors: Colors) {
      const { context, width, height } = wiped(canvas, stage), { cells, size, levels } = ink, empty = ink.isEmpty();
      const side = Math.max(20, Math.min(width - LEFT - RIGHT, height - TOP - BOTTOM)), { x, y } = area;
      const [x0, x1, y0, y1] = look.extent, shade = ramp("loss", colors.dark);
      area = { x, y, w: side, h: side };
      context.save();
      context.beginPath();
      context.rect(x, y, side, side);
      context.clip();
      smoothly(context, pixels(size, size, (i, j) => shade(cells[i * size + j] / levels)), area);
      if (empty && !last) words(context, "Paint here", x + side / 2, y + side / 2, colors.soft, "center", colors);
      if (mouse) ring(context, mouse, colors.color(tool === ERASE ? "red" : "orange"), false);
      if (keys) ring(context, spot, colors.color("orange"), true);
      context.restore();
      rim(context, { x, y, w: side - 1, h: side - 1 }, colors.line);
      const X = (v: number) => x + (side * (v - x0)) / (x1 - x0);
      const Y = (v: number) => y + side - (side * (v - y0)) / (y1 - y0);
      writeTicks(context, { ...area, X, Y }, ticks(x0, x1, room(side)), ticks(y0, y1, room(side)), colors);
      show(empty);
      canvas.dataset.empty = String(empty);
    };
  }

  return {
    receive(message: { view?: Look }, buffers) {
      look = message.view ?? look;
      if (!look) return line.again();
      if (!buffers.length) return;
      const cells = typed(buffers[0], "u1");
      if (ink) ink.replace(cells);
      else ink = new Ink(look.size, look.levels, cells);
    },
    ready: () => Boolean(look && ink),
    build,
    paint(pages: ReturnType<typeof build>[]) {
      const colors = theme();
      for (const draw of pages) draw(colors);
    },
  };
});
