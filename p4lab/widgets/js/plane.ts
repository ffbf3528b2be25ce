// Pictures in the plane: a heat map, lines and marks on axes, over each other in the order in which they came.

import { type Context, crisp, letters, pixels, rim, smoothly, strokes, words, writeTicks } from "./canvas.ts";
import { BAR_SPACE, type Frame, frameOf, locate, pointAt, scaled } from "./frame.ts";
import { type Arrow, type Heatmap, kept, type Path, type Points, type Text } from "./layer.ts";
import { layered, type Mark } from "./layers.ts";
import { decades, room, ticks } from "./numbers.ts";
import { SHADES, scaleOf, shades } from "./ramp.ts";
import type { Colors } from "./theme.ts";

const BAR = 10, LABEL_ROOM = 60;

type Scaled = Heatmap | (Path & { values: Float32Array });
const scale = kept((layer: Scaled) => scaleOf(layer));

const image = kept((layer: Heatmap, dark: boolean) => {
  const [h, w] = layer.valuesShape, table = shades(layer.colors, dark), { shade } = scale(layer);
  return pixels(w, h, (i, j) => table[shade(layer.values[(h - 1 - i) * w + j])]);
});

type Draw<Of> = (context: Context, layer: Of, frame: Frame, colors: Colors, marks: Mark[]) => void;

const heatmap: Draw<Heatmap> = (context, layer, { X, Y }, { dark }) => {
  const [x0, x1, y0, y1] = layer.extent, area = { x: X(x0), y: Y(y1), w: X(x1) - X(x0), h: Y(y0) - Y(y1) };
  smoothly(context, image(layer, dark), area);
};

const path: Draw<Path> = (context, layer, { X, Y }, colors) => {
  const { points, values } = layer, n = points.length / 2;
  context.lineWidth = layer.width;
  context.lineJoin = "round";
  context.lineCap = layer.dashed ? "butt" : "round";
  context.setLineDash(layer.dashed ? [6, 5] : []);
  if (values) {
    const table = shades("values", colors.dark), { shade } = scale(layer as Scaled);
    for (let i = 1; i < n; i++) {
      const color = table[shade(values[i])], [x0, y0, x1, y1] = points.subarray(2 * i - 2, 2 * i + 2);
      if (!color || Number.isNaN(x0 + y0 + x1 + y1)) continue;
      strokes(context, [[[X(x0), Y(y0)], [X(x1), Y(y1)]]], `rgb(${color})`, layer.width);
    }
    return;
  }
  context.strokeStyle = colors.color(layer.color);
  context.beginPath();
  let open = false;
  for (let i = 0; i < n; i++) {
    const [x, y] = [points[2 * i], points[2 * i + 1]];
    const there = !Number.isNaN(x + y);
    if (there && open) context.lineTo(X(x), Y(y));
    else if (there) context.moveTo(X(x), Y(y));
    else if (open && layer.closed) context.closePath();
    open = there;
  }
  if (open && layer.closed) context.closePath();
  if (layer.fill) {
    [context.fillStyle, context.globalAlpha] = [context.strokeStyle, layer.fill];
    context.fill();
    context.globalAlpha = 1;
  }
  if (layer.width) context.stroke();
};

function mark(context: Context, shape: Points["shape"], x: number, y: number, r: number) {
  context.beginPath();
  if (shape === "square") context.rect(x - r, y - r, 2 * r, 2 * r);
  else if (shape === "cross") {
    context.moveTo(x - r, y - r);
    context.lineTo(x + r, y + r);
    context.moveTo(x + r, y - r);
    context.lineTo(x - r, y + r);
  } else context.arc(x, y, r, 0, 2 * Math.PI);
}

const points: Draw<Points> = (context, layer, { X, Y, inside }, colors, marks) => {
  const { points: flat, shape, size, fade, labels } = layer, n = flat.length / 2;
  const color = colors.color(layer.color), filled = shape === "dot" || shape === "square";
  context.lineCap = "round";
  [context.lineWidth, context.strokeStyle, context.fillStyle] = filled ? [1.5, colors.paper, color] : [2, color, color];
  for (let i = 0; i < n; i++) {
    const x = X(flat[2 * i]), y = Y(flat[2 * i + 1]);
    if (Number.isNaN(x + y)) continue;
    context.globalAlpha = fade && n > 1 ? 0.12 + 0.88 * (i / (n - 1)) ** 1.5 : 1;
    mark(context, shape, x, y, size / 2);
    context.stroke();
    if (filled) context.fill();
    if (labels.length && inside(x, y)) marks.push({ x, y, text: labels[i] });
  }
  context.globalAlpha = 1;
};

const arrow: Draw<Arrow> = (context, layer, { X, Y }, colors) => {
  const [x0, y0, x1, y1] = [X(layer.start[0]), Y(layer.start[1]), X(layer.end[0]), Y(layer.end[1])];
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (!(length > 0.5)) return;
  const head = Math.min(5 + 2.2 * layer.width, length), [dx, dy] = [(x1 - x0) / length, (y1 - y0) / length];
  const side = 0.42 * head, color = colors.color(layer.color);
  [context.strokeStyle, context.fillStyle, context.lineWidth, context.lineCap] = [color, color, layer.width, "butt"];
  context.setLineDash(layer.dashed ? [5, 4] : []);
  context.beginPath();
  context.moveTo(x0, y0);
  context.lineTo(x1 - 0.8 * head * dx, y1 - 0.8 * head * dy);
  context.stroke();
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x1 - head * dx - side * dy, y1 - head * dy + side * dx);
  context.lineTo(x1 - head * dx + side * dy, y1 - head * dy - side * dx);
  context.fill();
};

function axes(context: Context, frame: Frame, labels: string[], colors: Colors) {
  const { x, y, w, h, X, Y } = frame;
  const across = ticks(frame.x0, frame.x1, room(w)), up = ticks(frame.y0, frame.y1, room(h));
  const vertical = (v: number) => [[crisp(X(v)), y], [crisp(X(v)), y + h]];
  const horizontal = (v: number) => [[x, crisp(Y(v))], [x + w, crisp(Y(v))]];
  const lines = (which: (value: number) => boolean) => [
    ...across.filter((t) => which(t.value)).map((t) => vertical(t.value)),
    ...up.filter((t) => which(t.value)).map((t) => horizontal(t.value)),
  ];
  strokes(context, lines(() => true), colors.grid);
  strokes(context, lines((value) => value === 0), colors.line);
  writeTicks(context, frame, across, up, colors);
  letters(context, `12px ${colors.font}`, colors.soft, "center");
  context.fillText(labels[0], x + w / 2, y + h + 30);
  turned(context, labels[1], x - 46, y + h / 2, -1);
}

function turned(context: Context, text: string, x: number, y: number, sign: number) {
  context.save();
  context.translate(x, y);
  context.rotate((sign * Math.PI) / 2);
  context.fillText(text, 0, 0);
  context.restore();
}

function colorBar(context: Context, layer: Scaled, x: number, { y, h }: Frame, colors: Colors) {
  const { low, high, share } = scale(layer), name = layer.kind === "Heatmap" ? layer.colors : "values";
  const fill = context.createLinearGradient(0, y + h, 0, y), table = shades(name, colors.dark);
  for (let k = 0; k <= 16; k++) fill.addColorStop(k / 16, `rgb(${table[Math.round((k / 16) * (SHADES - 1))]})`);
  context.fillStyle = fill;
  context.fillRect(x, y, BAR, h);
  rim(context, { x, y, w: BAR, h }, colors.line);
  letters(context, `11px ${colors.font}`, colors.soft, "left");
  const values = layer.kind === "Heatmap" && layer.log ? decades(low, high) : ticks(low, high, room(h, 55, 5));
  for (const { value, text } of values) context.fillText(text, x + BAR + 5, y + h - h * share(value));
  [context.font, context.textAlign] = [`12px ${colors.font}`, "center"];
  turned(context, layer.label, x + BAR + 44, y + h / 2, 1);
}

const text: Draw<Text> = (context, { text, point, color, side }, { X, Y }, colors) => {
  words(context, text, X(point[0]), Y(point[1]), color, side, colors);
};

const DRAWS: Record<string, Draw<never>> = { Heatmap: heatmap, Path: path, Points: points, Arrow: arrow, Text: text };

export default layered<Frame>(() => ({
  sight: frameOf,
  locate,
  at: pointAt,
  draw(context, frame, { layers, look, colors, pointOf }) {
    const marks: Mark[] = [];
    axes(context, frame, look.labels, colors);
    context.save();
    context.beginPath();
    context.rect(frame.x, frame.y, frame.w, frame.h);
    context.clip();
    for (const layer of layers) {
      context.setLineDash([]);
      DRAWS[layer.kind]?.(context, layer as never, frame, colors, marks);
    }
    for (const layer of layers) {
      if (layer.kind !== "Handle" || !layer.label) continue;
      const [px, py] = pointOf(layer), left = frame.X(px) - frame.x;
      // Away from the middle, where most of the picture is, unless there is no room.
      const side = (left < frame.w / 2 && left > LABEL_ROOM) || left > frame.w - LABEL_ROOM ? "left" : "right";
      words(context, ` ${layer.label} `, frame.X(px), frame.Y(py), layer.color, side, colors);
    }
    context.restore();
    context.setLineDash([]);
    rim(context, frame, colors.line);
    scaled(layers).forEach((layer, k) => {
      colorBar(context, layer as Scaled, frame.x + frame.w + 12 + k * BAR_SPACE, frame, colors);
    });
    return marks;
  },
}));
