// Pictures in the plane: a heat map, lines and marks on axes, over each other in the order in which they came.

const RAMPS = {
  loss: {
    light: ["#ffffff", "#eaf1f8", "#cfdfee", "#aac6e0", "#82a9ce", "#5b8ab8", "#3c6a9a"],
    dark: ["#0f1318", "#142433", "#1a3650", "#23496c", "#305f89", "#4478a5", "#5f94c0"],
  },
  diverging: {
    light: ["#1d4f91", "#5b8fc9", "#b3cfe8", "#fafafa", "#f3c0a8", "#d97a5b", "#a5301f"],
    dark: ["#8ec1ff", "#4a86cf", "#22466f", "#14171c", "#6e3226", "#cd664a", "#ffab8c"],
  },
  values: {
    light: ["#43308f", "#2f62b0", "#1f8f9c", "#2fa866", "#9aa41c", "#e08a12", "#c8341c"],
    dark: ["#8d7bff", "#5b9cf5", "#3fc6d0", "#5fdc94", "#cfdc55", "#ffb347", "#ff6a55"],
  },
};
const SHADES = 256, BAR = 10, BAR_SPACE = 76, LABEL_ROOM = 60;
const tables = new Map();

/** 256 colours, as [r, g, b]. */
function shades(name, dark) {
  const key = `${name} ${dark}`;
  if (!tables.has(key)) {
    const stops = RAMPS[name][dark ? "dark" : "light"].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
    tables.set(key, Array.from({ length: SHADES }, (_, s) => {
      const t = (s / (SHADES - 1)) * (stops.length - 1), i = Math.min(Math.floor(t), stops.length - 2);
      return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (t - i)));
    }));
  }
  return tables.get(key);
}

/** How the values of a layer become shades: the ends of the scale, and value -> 0..255 (-1 for NaN). */
function scaleOf(layer) {
  if (layer.scale) return layer.scale;
  const { values, log } = layer, given = { low: layer.low, high: layer.high };
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (!Number.isFinite(v) || (log && v <= 0)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  low = given.low ?? (low <= high ? low : log ? 0.1 : 0);
  high = given.high ?? Math.max(high, low);
  if (!(high > low)) high = log ? 10 * low : low + 1;
  const warp = log ? Math.log10 : (v) => v, from = warp(low), to = warp(high);
  const share = (v) => (warp(v) - from) / (to - from);
  const shade = (v) => (Number.isNaN(v) ? -1 : Math.round((SHADES - 1) * Math.min(1, Math.max(0, log && v <= 0 ? 0 : share(v)))));
  layer.scale = { low, high, share, shade };
  return layer.scale;
}

function heatmap(context, layer, { X, Y }, { dark }) {
  if (layer.image?.dark !== dark) {
    const [h, w] = layer.valuesShape, colors = shades(layer.colors, dark), { shade } = scaleOf(layer);
    const canvas = new OffscreenCanvas(Math.max(1, w), Math.max(1, h)), image = new ImageData(canvas.width, canvas.height);
    for (let i = 0; i < h; i++) {
      for (let j = 0; j < w; j++) {
        const level = shade(layer.values[i * w + j]), at = 4 * ((h - 1 - i) * w + j);
        if (level >= 0) image.data.set([...colors[level], 255], at);
      }
    }
    canvas.getContext("2d").putImageData(image, 0, 0);
    layer.image = { canvas, dark };
  }
  const [x0, x1, y0, y1] = layer.extent;
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(layer.image.canvas, X(x0), Y(y1), X(x1) - X(x0), Y(y0) - Y(y1));
}

function path(context, layer, { X, Y }, colors) {
  const { points, values } = layer, n = points.length / 2;
  context.lineWidth = layer.width;
  context.lineJoin = context.lineCap = "round";
  context.setLineDash(layer.dashed ? [6, 5] : []);
  if (layer.dashed) context.lineCap = "butt";
  if (values) {
    const palette = shades("values", colors.dark), { shade } = scaleOf(layer);
    for (let i = 1; i < n; i++) {
      const level = shade(values[i]), piece = points.subarray(2 * i - 2, 2 * i + 2);
      if (level < 0 || piece.some(Number.isNaN)) continue;
      context.strokeStyle = `rgb(${palette[level]})`;
      context.beginPath();
      context.moveTo(X(piece[0]), Y(piece[1]));
      context.lineTo(X(piece[2]), Y(piece[3]));
      context.stroke();
    }
    return;
  }
  context.strokeStyle = colors.color(layer.color);
  context.beginPath();
  let open = false;
  for (let i = 0; i < n; i++) {
    const [x, y] = [points[2 * i], points[2 * i + 1]];
    const there = !Number.isNaN(x + y);
    if (there) open ? context.lineTo(X(x), Y(y)) : context.moveTo(X(x), Y(y));
    else if (open && layer.closed) context.closePath();
    open = there;
  }
  if (open && layer.closed) context.closePath();
  context.stroke();
}

function mark(context, shape, x, y, r) {
  context.beginPath();
  if (shape === "square") context.rect(x - r, y - r, 2 * r, 2 * r);
  else if (shape === "cross") {
    context.moveTo(x - r, y - r);
    context.lineTo(x + r, y + r);
    context.moveTo(x + r, y - r);
    context.lineTo(x - r, y + r);
  } else context.arc(x, y, r, 0, 2 * Math.PI);
}

function points(context, layer, { X, Y, inside }, colors, marks) {
  const { points: flat, shape, size, fade, labels } = layer, n = flat.length / 2;
  const color = colors.color(layer.color), filled = shape === "dot" || shape === "square";
  context.lineCap = "round";
  for (let i = 0; i < n; i++) {
    const x = X(flat[2 * i]), y = Y(flat[2 * i + 1]);
    if (Number.isNaN(x + y)) continue;
    context.globalAlpha = fade && n > 1 ? 0.12 + 0.88 * (i / (n - 1)) ** 1.5 : 1;
    mark(context, shape, x, y, size / 2);
    if (filled) {
      [context.lineWidth, context.strokeStyle, context.fillStyle] = [1.5, colors.paper, color];
      context.stroke();
      context.fill();
    } else {
      [context.lineWidth, context.strokeStyle] = [2, color];
      context.stroke();
    }
    if (labels.length && inside(x, y)) marks.push({ x, y, text: labels[i] });
  }
  context.globalAlpha = 1;
}

function arrow(context, layer, { X, Y }, colors) {
  const [x0, y0, x1, y1] = [X(layer.start[0]), Y(layer.start[1]), X(layer.end[0]), Y(layer.end[1])];
  const length = Math.hypot(x1 - x0, y1 - y0);
  if (!(length > 0.5)) return;
  const head = Math.min(5 + 2.2 * layer.width, length), [dx, dy] = [(x1 - x0) / length, (y1 - y0) / length], side = 0.42 * head;
  [context.strokeStyle, context.fillStyle] = [colors.color(layer.color), colors.color(layer.color)];
  [context.lineWidth, context.lineCap] = [layer.width, "butt"];
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
}

const KINDS = {
  Heatmap: heatmap,
  Path: path,
  Points: points,
  Arrow: arrow,
  Text: (context, layer, { X, Y }, colors) => words(context, layer.text, X(layer.point[0]), Y(layer.point[1]), layer.color, layer.side, colors),
  Handle: () => {},
};

/** Where the frame stands on the canvas, and what turns numbers into pixels. */
function frameOf({ width, height }, { view, bounds, box, layers }, bars) {
  const [xLabel, yLabel] = view.labels;
  const left = 40 + (yLabel ? 18 : 0), top = 8, right = 10 + bars * BAR_SPACE, bottom = 22 + (xLabel ? 18 : 0);
  let [w, h] = [Math.max(20, width - left - right), Math.max(20, height - top - bottom)];
  let [[x0, x1], [y0, y1]] = box;
  const y = top;
  let x = left;
  if (view.equal && (bounds || framing(layers))) { // exactly what was asked for: the frame gets its shape
    const unit = Math.min(w / (x1 - x0), h / (y1 - y0));
    const [fw, fh] = [unit * (x1 - x0), unit * (y1 - y0)];
    [x, w, h] = [x + (w - fw) / 2, fw, fh];
  } else if (view.equal) { // all of the canvas: the shorter side shows more
    const unit = Math.min(w / (x1 - x0), h / (y1 - y0)), [cx, cy] = [(x0 + x1) / 2, (y0 + y1) / 2];
    [x0, x1, y0, y1] = [cx - w / unit / 2, cx + w / unit / 2, cy - h / unit / 2, cy + h / unit / 2];
  }
  return {
    x, y, w, h, x0, x1, y0, y1,
    X: (v) => x + (w * (v - x0)) / (x1 - x0),
    Y: (v) => y + h - (h * (v - y0)) / (y1 - y0),
    inside: (px, py) => px >= x - 1 && px <= x + w + 1 && py >= y - 1 && py <= y + h + 1,
  };
}

const crisp = (v) => Math.round(v - 0.5) + 0.5;

function lines(context, segments, color) {
  [context.strokeStyle, context.lineWidth] = [color, 1];
  context.setLineDash([]);
  context.beginPath();
  for (const [x0, y0, x1, y1] of segments) {
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
  }
  context.stroke();
}

function axes(context, frame, labels, colors) {
  const { x, y, w, h, X, Y } = frame;
  const across = ticks(frame.x0, frame.x1, Math.max(2, Math.min(6, w / 40))), up = ticks(frame.y0, frame.y1, Math.max(2, Math.min(6, h / 40)));
  const vertical = (v) => [crisp(X(v)), y, crisp(X(v)), y + h], horizontal = (v) => [x, crisp(Y(v)), x + w, crisp(Y(v))];
  lines(context, [...across.map(({ value }) => vertical(value)), ...up.map(({ value }) => horizontal(value))], colors.grid);
  const zero = [...across.filter((t) => !t.value).map(() => vertical(0)), ...up.filter((t) => !t.value).map(() => horizontal(0))];
  lines(context, zero, colors.line);
  [context.font, context.fillStyle, context.textBaseline] = [`11px ${colors.font}`, colors.soft, "middle"];
  context.textAlign = "center";
  for (const { value, text } of across) context.fillText(text, X(value), y + h + 12);
  context.textAlign = "right";
  for (const { value, text } of up) context.fillText(text, x - 6, Y(value));
  [context.font, context.textAlign] = [`12px ${colors.font}`, "center"];
  context.fillText(labels[0], x + w / 2, y + h + 30);
  turned(context, labels[1], x - 46, y + h / 2, -1);
}

function turned(context, text, x, y, sign) {
  context.save();
  context.translate(x, y);
  context.rotate((sign * Math.PI) / 2);
  context.fillText(text, 0, 0);
  context.restore();
}

function colorBar(context, layer, x, { y, h }, colors) {
  const { low, high, share } = scaleOf(layer), palette = shades(layer.values && layer.kind === "Path" ? "values" : layer.colors, colors.dark);
  const fill = context.createLinearGradient(0, y + h, 0, y);
  for (let k = 0; k <= 16; k++) fill.addColorStop(k / 16, `rgb(${palette[Math.round((k / 16) * (SHADES - 1))]})`);
  context.fillStyle = fill;
  context.fillRect(x, y, BAR, h);
  [context.strokeStyle, context.lineWidth] = [colors.line, 1];
  context.strokeRect(crisp(x), crisp(y), BAR, Math.round(h));
  [context.font, context.fillStyle, context.textAlign, context.textBaseline] = [`11px ${colors.font}`, colors.soft, "left", "middle"];
  const written = layer.log ? decades(low, high) : ticks(low, high, Math.max(2, Math.min(5, h / 55)));
  for (const { value, text } of written) context.fillText(text, x + BAR + 5, y + h - h * share(value));
  [context.font, context.textAlign] = [`12px ${colors.font}`, "center"];
  turned(context, layer.label, x + BAR + 44, y + h / 2, 1);
}

/** Powers of ten in a range, or round values if there are fewer than two. */
function decades(low, high) {
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-6), Math.floor(Math.log10(high) + 1e-6)];
  if (to <= from) return ticks(low, high, 4);
  const every = Math.ceil((to - from + 1) / 6);
  const powers = Array.from({ length: to - from + 1 }, (_, k) => from + k).filter((k) => (k - from) % every === 0);
  return powers.map((k) => ({ value: 10 ** k, text: Math.abs(k) <= 2 ? String(Number((10 ** k).toPrecision(1))) : `1e${k}`.replace("-", "−") }));
}

export default () => layered({
  draw(context, view, state) {
    const { layers, colors } = state, marks = [];
    const scaled = layers.filter((layer) => layer.values && layer.label);
    const frame = (view.frame = frameOf(view, state, scaled.length));
    axes(context, frame, state.view.labels, colors);
    context.save();
    context.beginPath();
    context.rect(frame.x, frame.y, frame.w, frame.h);
    context.clip();
    for (const layer of layers) {
      context.setLineDash([]);
      KINDS[layer.kind](context, layer, frame, colors, marks);
    }
    for (const layer of layers) {
      if (layer.kind !== "Handle" || !layer.label) continue;
      const [px, py] = state.pointOf(layer), left = frame.X(px) - frame.x;
      // Away from the middle, where most of the picture is, unless there is no room.
      const side = (left < frame.w / 2 && left > LABEL_ROOM) || left > frame.w - LABEL_ROOM ? "left" : "right";
      words(context, ` ${layer.label} `, frame.X(px), frame.Y(py), layer.color, side, colors);
    }
    context.restore();
    context.setLineDash([]);
    [context.strokeStyle, context.lineWidth] = [colors.line, 1];
    context.strokeRect(crisp(frame.x), crisp(frame.y), Math.round(frame.w), Math.round(frame.h));
    scaled.forEach((layer, k) => colorBar(context, layer, frame.x + frame.w + 12 + k * BAR_SPACE, frame, colors));
    return marks;
  },
  locate({ frame }, [px, py]) {
    const spot = [frame.X(px), frame.Y(py)];
    return frame.inside(...spot) ? spot : null;
  },
  at({ frame }, x, y) {
    const [u, v] = [(x - frame.x) / frame.w, (frame.y + frame.h - y) / frame.h].map((t) => Math.min(1, Math.max(0, t)));
    return [frame.x0 + u * (frame.x1 - frame.x0), frame.y0 + v * (frame.y1 - frame.y0)];
  },
});
