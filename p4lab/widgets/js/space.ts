// Pictures in space, on a flat canvas: everything is cut into quads and short pieces, which are drawn from far to near.

import { type Context, letters, strokes, words } from "./canvas.ts";
import { make } from "./dom.ts";
import { type Dots, kept, type Line, type Numbers, type Surface } from "./layer.ts";
import { layered, type Mark, type State } from "./layers.ts";
import { type Tick, ticks } from "./numbers.ts";
import { Camera, type Eye, normalsOf, outside, Pieces, project, projectAll, unproject } from "./projection.ts";
import type { Colors } from "./theme.ts";

const STEP = Math.PI / 36; // one press of an arrow key
const TURN = 0.0085; // radians per pixel
const MESH = 26; // lines on a surface, at most, each way
const SEAM = 0.3; // pixels
const TONES = 32; // shades of a surface
const LIGHT = [-0.36, 0.48, 0.8]; // right, up, towards the eye
const AXES = [0, 1, 2];

type List = Pieces<Context>;
type Hidden = (i: number) => boolean;

const normals = kept((layer: Surface, unit: string) => (
  normalsOf(layer.vertices, layer.verticesShape, unit.split(" ").map(Number))));

/** A colour as [r, g, b], whatever CSS calls it. */
const codes = new Map<string, number[]>();
function rgb(color: string) {
  if (!codes.has(color)) {
    const context = new OffscreenCanvas(1, 1).getContext("2d") as OffscreenCanvasRenderingContext2D;
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    codes.set(color, [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)]);
  }
  return codes.get(color) as number[];
}

/** The shades of a surface, from turned away to facing the light. */
function tones(layer: Surface, colors: Colors) {
  const base = rgb(colors.color(layer.color)), [dark, bright] = colors.dark ? [0.35, 0.12] : [0.55, 0.38];
  return Array.from({ length: TONES }, (_, t) => {
    const s = t / (TONES - 1), shine = bright * Math.max(0, s - 0.55) / 0.45;
    const grey = dark + (1 - dark) * Math.min(1, 1.35 * s);
    return `rgba(${base.map((c) => Math.round(grey * c + (255 - grey * c) * shine))},${layer.opacity})`;
  });
}

function quads(layer: Surface, eye: Eye, colors: Colors, list: List) {
  const [rows, cols] = layer.verticesShape, { x, y, depth } = projectAll(layer.vertices, eye);
  const normal = normals(layer, eye.unit.join(" ")), palette = tones(layer, colors);
  const light = AXES.map((k) => LIGHT[0] * eye.right[k] + LIGHT[1] * eye.up[k] + LIGHT[2] * eye.towards[k]);
  const { opacity } = layer;
  const mesh = colors.dark ? `rgba(255,255,255,${0.16 * opacity + 0.03})` : `rgba(0,0,0,${0.2 * opacity + 0.04})`;
  const stride = Math.ceil(Math.max(rows, cols) / MESH);
  for (let i = 0, q = 0; i < rows - 1; i++) {
    for (let j = 0; j < cols - 1; j++, q += 3) {
      const a = i * cols + j, c = a + cols, middle = (depth[a] + depth[a + 1] + depth[c] + depth[c + 1]) / 4;
      if (Number.isNaN(middle)) continue;
      const lit = Math.abs(normal[q] * light[0] + normal[q + 1] * light[1] + normal[q + 2] * light[2]);
      const tone = palette[Math.min(TONES - 1, Math.floor(lit * TONES))];
      const ends = [...(i % stride ? [] : [a + 1]), ...(j % stride ? [] : [c])];
      list.push(middle, (context) => {
        context.fillStyle = tone;
        context.beginPath();
        // A little larger than it is: no light seams between neighbours.
        const mx = (x[a] + x[c + 1]) / 2, my = (y[a] + y[c + 1]) / 2;
        for (const k of [a, a + 1, c + 1, c]) {
          context.lineTo(x[k] + SEAM * Math.sign(x[k] - mx), y[k] + SEAM * Math.sign(y[k] - my));
        }
        context.fill();
        if (ends.length) strokes(context, ends.map((k) => [[x[a], y[a]], [x[k], y[k]]]), mesh, 0.6);
      });
    }
  }
}

function pieces(layer: Line, eye: Eye, colors: Colors, list: List, hidden: Hidden) {
  const { x, y, depth } = projectAll(layer.points, eye), color = colors.color(layer.color), lift = 0.03 * eye.radius;
  let walked = 0;
  for (let i = 1; i < x.length; i++) {
    const offset = walked, middle = (depth[i - 1] + depth[i]) / 2;
    if (Number.isNaN(middle) || hidden(i - 1) || hidden(i)) continue;
    walked += Math.hypot(x[i] - x[i - 1], y[i] - y[i - 1]);
    list.push(middle + lift, (context) => {
      context.lineCap = layer.dashed ? "butt" : "round";
      context.setLineDash(layer.dashed ? [6, 5] : []);
      context.lineDashOffset = offset;
      strokes(context, [[[x[i - 1], y[i - 1]], [x[i], y[i]]]], color, layer.width);
      context.setLineDash([]);
    });
  }
}

function dots(layer: Dots, eye: Eye, colors: Colors, list: List, hidden: Hidden, marks: Mark[]) {
  const { x, y, depth } = projectAll(layer.points, eye), color = colors.color(layer.color), lift = 0.05 * eye.radius;
  for (let i = 0; i < x.length; i++) {
    if (Number.isNaN(depth[i]) || hidden(i)) continue;
    list.push(depth[i] + lift, (context) => {
      context.beginPath();
      context.arc(x[i], y[i], layer.size / 2, 0, 2 * Math.PI);
      [context.fillStyle, context.strokeStyle, context.lineWidth] = [color, colors.paper, 1.5];
      context.stroke();
      context.fill();
    });
    if (layer.labels.length) marks.push({ x: x[i], y: y[i], text: layer.labels[i] });
  }
}

/** Which end of each axis is far from the eye: 0 or 1. */
const farEnds = (eye: Eye) => AXES.map((a) => (eye.towards[a] > 0 ? 0 : 1));

/** The three far walls with their grid, and ticks and names along the rim. */
function walls(context: Context, eye: Eye, { look, colors }: State) {
  const { box } = eye, far = farEnds(eye), rimTicks = box.map(([low, high]) => ticks(low, high, 4));
  const at = (fixed: Record<number, number>) => project(eye, AXES.map((a) => fixed[a]));
  const grid: Numbers[][] = [], frame = new Map<string, Numbers[]>(); // each edge of the walls once
  for (const wall of AXES) {
    const [a, b] = AXES.filter((k) => k !== wall), fixed = { [wall]: box[wall][far[wall]] };
    for (const [along, across] of [[a, b], [b, a]]) {
      const ends = (value: number) => box[across].map((end) => ({ ...fixed, [along]: value, [across]: end }));
      for (const { value } of rimTicks[along]) grid.push(ends(value).map(at));
      for (const value of box[along]) frame.set(JSON.stringify(ends(value)), ends(value).map(at));
    }
  }
  strokes(context, grid, colors.grid);
  strokes(context, [...frame.values()], colors.line);
  const spots: number[][] = [];
  for (const axis of [2, 0, 1]) {
    labelEdge(context, edgeOf(axis, far, box, at), rimTicks[axis], look.labels[axis], eye, colors, spots);
  }
}

interface Edge { place(value: number): Numbers; middle: Numbers }

/** The rim's edge that carries an axis: near on one of the other axes, far on the other, most to the left or lowest. */
function edgeOf(axis: number, far: number[], box: number[][], at: (fixed: Record<number, number>) => Numbers): Edge {
  const [a, b] = AXES.filter((k) => k !== axis);
  const candidates = [[1 - far[a], far[b]], [far[a], 1 - far[b]]].map(([i, j]) => {
    const place = (value: number) => at({ [axis]: value, [a]: box[a][i], [b]: box[b][j] });
    return { place, middle: place((box[axis][0] + box[axis][1]) / 2) };
  });
  const score = ({ middle: [x, y] }: Edge) => (axis === 2 ? -x : y);
  return candidates.sort((p, q) => score(q) - score(p))[0];
}

/** Write ticks and name along an edge, away from the middle of the picture; `spots` are those that have a text. */
function labelEdge(
  context: Context, { place, middle }: Edge, rimTicks: Tick[], label: string, { x, y, width }: Eye, colors: Colors,
  spots: number[][],
) {
  const [first, last] = [place(rimTicks[0].value), place(rimTicks[rimTicks.length - 1].value)];
  const length = Math.hypot(last[0] - first[0], last[1] - first[1]);
  if (length < 24) return; // seen end on
  let normal = [(last[1] - first[1]) / length, (first[0] - last[0]) / length];
  if (normal[0] * (middle[0] - x) + normal[1] * (middle[1] - y) < 0) normal = normal.map((v) => -v);
  const write = (text: string, [px, py]: Numbers, away: number) => {
    const half = context.measureText(text).width / 2, top = py + normal[1] * away;
    const left = Math.max(half + 2, Math.min(width - half - 2, px + normal[0] * (away + half)));
    if (spots.some((spot) => Math.abs(spot[0] - left) < spot[2] + half + 3 && Math.abs(spot[1] - top) < 13)) return;
    spots.push([left, top, half]);
    context.fillText(text, left, top);
  };
  letters(context, `italic 13px ${colors.font}`, colors.text, "center");
  const widest = Math.max(...rimTicks.map(({ text }) => context.measureText(text).width));
  write(label, middle, 20 + widest * Math.abs(normal[0]));
  letters(context, `11px ${colors.font}`, colors.soft, "center");
  for (const { value, text } of rimTicks) write(text, place(value), 11);
}

/** Where a grip that is held stands: its shadow on the far walls. */
function shadow(context: Context, eye: Eye, point: number[], colors: Colors) {
  const far = farEnds(eye).map((end, a) => eye.box[a][end]), spot = project(eye, point);
  const feet = AXES.map((a) => project(eye, point.map((v, b) => (a === b ? far[a] : v))));
  context.setLineDash([3, 3]);
  strokes(context, feet.map((foot) => [spot, foot]), colors.soft);
  context.setLineDash([]);
  context.fillStyle = colors.soft;
  for (const [x, y] of feet) context.fillRect(x - 2, y - 2, 4, 4);
}

export default layered<Eye>(() => {
  const camera = new Camera();
  let home: number[] | null = null;

  function draw(context: Context, eye: Eye, state: State) {
    const { layers, colors, bounds } = state, marks: Mark[] = [], list: List = new Pieces();
    [context.lineJoin, context.lineCap] = ["round", "round"];
    walls(context, eye, state);
    for (const layer of layers) {
      if (layer.kind === "Surface") quads(layer, eye, colors, list);
      if (layer.kind === "Line") pieces(layer, eye, colors, list, outside(layer.points, bounds));
      if (layer.kind === "Dots") dots(layer, eye, colors, list, outside(layer.points, bounds), marks);
    }
    list.paint(context, eye.radius);
    for (const layer of layers) {
      if (layer.kind !== "Grip") continue;
      const point = Array.from(state.pointOf(layer)), [x, y] = project(eye, point);
      if (state.focus === layer.name) shadow(context, eye, point, colors);
      words(context, ` ${layer.label}`, x, y, layer.color, "right", colors);
    }
    return marks;
  }

  const KEYS: Record<string, () => void> = {
    ArrowLeft: () => camera.turn(-STEP, 0), ArrowRight: () => camera.turn(STEP, 0),
    ArrowUp: () => camera.turn(0, STEP), ArrowDown: () => camera.turn(0, -STEP),
    "+": () => camera.zoom(1.15), "-": () => camera.zoom(1 / 1.15), Home: () => camera.home(home as number[]),
  };

  /** Turn by dragging and with the arrow keys, zoom with the wheel where that takes nothing from the page. */
  function enter(canvas: HTMLCanvasElement, stage: HTMLElement, repaint: () => void) {
    let last: number[] | null = null;
    canvas.tabIndex = 0;
    stage.append(make("span", "p4-hint-turn", "drag: turn · Ctrl + wheel: zoom · double click: back"));
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      last = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
      canvas.dataset.turning = "true";
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      camera.turn(-TURN * (event.clientX - last[0]), TURN * (event.clientY - last[1]));
      last = [event.clientX, event.clientY];
      repaint();
    });
    canvas.addEventListener("lostpointercapture", () => { last = null; delete canvas.dataset.turning; });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey && document.activeElement !== canvas) return;
      event.preventDefault();
      camera.zoom(Math.exp(-0.0015 * (event.deltaY || event.deltaX)));
      repaint();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => { KEYS.Home(); repaint(); });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") canvas.blur();
      if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      KEYS[event.key]();
      repaint();
    });
  }

  return {
    sight(width, height, { look, box }) {
      if (!home) camera.home(look.home);
      home = look.home;
      return camera.eye(width, height, box, look.equal);
    },
    draw,
    enter,
    help: "drag or use the arrow keys to turn, plus and minus to zoom, Home for the first view",
    locate: (eye, point) => project(eye, point).slice(0, 2),
    at: (eye, x, y, point) => unproject(eye, x, y, project(eye, point)[2]),
  };
});
