// Pictures in space, on a flat canvas: everything is cut into quads and short pieces, which are drawn from far to near.

const DISTANCE = 3.6; // of the eye, in half diagonals of the box
const MARGIN = 36; // pixels for ticks and names
const STEP = Math.PI / 36; // one press of an arrow key
const TURN = 0.0085; // radians per pixel
const MESH = 26; // lines on a surface, at most, each way
const SEAM = 0.3; // pixels
const TONES = 32; // shades of a surface
const BITS = 2 ** 21; // the place of a piece in the list, below its depth in one sortable number
const LIGHT = [-0.36, 0.48, 0.8]; // right, up, towards the eye

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

/** The eye's axes (right, up, towards the eye), and how the box is brought to the canvas. */
function projection(view, { box, view: { equal } }, camera) {
  const half = box.map(([low, high]) => (high - low) / 2), centre = box.map(([low, high]) => (low + high) / 2);
  const unit = equal ? Array(3).fill(Math.max(...half)) : half;
  const size = half.map((h, a) => h / unit[a]), radius = Math.hypot(...size);
  const [cy, sy, cp, sp] = [Math.cos(camera.yaw), Math.sin(camera.yaw), Math.cos(camera.pitch), Math.sin(camera.pitch)];
  const right = [-sy, cy, 0], up = [-sp * cy, -sp * sy, cp], eye = [cp * cy, cp * sy, sp];
  const far = DISTANCE * radius, focus = (0.52 * camera.zoom * (Math.min(view.width, view.height) - MARGIN)) / radius;
  const flat = (p) => {
    const n = [0, 1, 2].map((a) => (p[a] - centre[a]) / unit[a]), depth = dot(n, eye), k = (focus * far) / (far - depth);
    return [k * dot(n, right), -k * dot(n, up), depth];
  };
  // The near half of the box looks larger: what is in the middle of the canvas is the middle of its outline.
  const corners = [...Array(8).keys()].map((c) => flat(box.map((side, a) => side[(c >> a) & 1])));
  const middle = (i) => (Math.min(...corners.map((c) => c[i])) + Math.max(...corners.map((c) => c[i]))) / 2;
  const [x, y] = [view.width / 2 - middle(0), view.height / 2 - middle(1)];
  const project = (p) => {
    const [a, b, depth] = flat(p);
    return [x + a, y + b, depth];
  };
  const unproject = (px, py, depth) => {
    const k = (focus * far) / (far - depth), [a, b] = [(px - x) / k, (y - py) / k];
    return [0, 1, 2].map((i) => centre[i] + unit[i] * (a * right[i] + b * up[i] + depth * eye[i]));
  };
  return { centre, unit, radius, right, up, eye, far, focus, x, y, width: view.width, project, unproject };
}

/** Project n points into columns x, y and depth; NaN stays NaN. */
function projectAll(flat, { centre, unit, right, up, eye, far, focus, x, y }) {
  const n = flat.length / 3, out = { x: new Float32Array(n), y: new Float32Array(n), depth: new Float32Array(n) };
  for (let i = 0, j = 0; i < n; i++, j += 3) {
    const a = (flat[j] - centre[0]) / unit[0], b = (flat[j + 1] - centre[1]) / unit[1], c = (flat[j + 2] - centre[2]) / unit[2];
    const depth = a * eye[0] + b * eye[1] + c * eye[2], k = (focus * far) / (far - depth);
    out.x[i] = x + k * (a * right[0] + b * right[1] + c * right[2]);
    out.y[i] = y - k * (a * up[0] + b * up[1] + c * up[2]);
    out.depth[i] = depth;
  }
  return out;
}

/** The unit normals of a surface's quads in the box's units (NaN for a hole), kept until surface or box change. */
function normalsOf(layer, { unit }) {
  const key = unit.join();
  if (layer.normals?.key === key) return layer.normals.flat;
  const [rows, cols] = layer.verticesShape, v = layer.vertices, flat = new Float32Array(3 * Math.max(0, (rows - 1) * (cols - 1)));
  for (let i = 0, q = 0; i < rows - 1; i++) {
    for (let j = 0; j < cols - 1; j++, q += 3) {
      const a = 3 * (i * cols + j), b = a + 3, c = a + 3 * cols, d = c + 3;
      const s = [0, 1, 2].map((k) => (v[d + k] - v[a + k]) / unit[k]), t = [0, 1, 2].map((k) => (v[c + k] - v[b + k]) / unit[k]);
      const n = [s[1] * t[2] - s[2] * t[1], s[2] * t[0] - s[0] * t[2], s[0] * t[1] - s[1] * t[0]], length = Math.hypot(...n) || 1;
      flat.set(n.map((k) => k / length), q);
    }
  }
  layer.normals = { key, flat };
  return flat;
}

/** A colour as [r, g, b], whatever CSS calls it. */
const parsed = new Map();
function rgb(color) {
  if (!parsed.has(color)) {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    parsed.set(color, [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)]);
  }
  return parsed.get(color);
}

/** The shades of a surface, from turned away to facing the light. */
function tones(layer, colors) {
  const base = rgb(colors.color(layer.color)), [dark, bright] = colors.dark ? [0.35, 0.12] : [0.55, 0.38];
  return Array.from({ length: TONES }, (_, t) => {
    const s = t / (TONES - 1), grey = dark + (1 - dark) * Math.min(1, 1.35 * s), shine = bright * Math.max(0, s - 0.55) / 0.45;
    return `rgba(${base.map((c) => Math.round(grey * c + (255 - grey * c) * shine))},${layer.opacity})`;
  });
}

function quads(layer, eye, colors, pieces) {
  const [rows, cols] = layer.verticesShape, { x, y, depth } = projectAll(layer.vertices, eye), normals = normalsOf(layer, eye);
  const light = [0, 1, 2].map((k) => LIGHT[0] * eye.right[k] + LIGHT[1] * eye.up[k] + LIGHT[2] * eye.eye[k]), palette = tones(layer, colors);
  const mesh = colors.dark ? `rgba(255,255,255,${0.16 * layer.opacity + 0.03})` : `rgba(0,0,0,${0.2 * layer.opacity + 0.04})`;
  const stride = Math.ceil(Math.max(rows, cols) / MESH);
  for (let i = 0, q = 0; i < rows - 1; i++) {
    for (let j = 0; j < cols - 1; j++, q += 3) {
      const a = i * cols + j, c = a + cols, middle = (depth[a] + depth[a + 1] + depth[c] + depth[c + 1]) / 4;
      if (Number.isNaN(middle)) continue;
      const lit = Math.abs(normals[q] * light[0] + normals[q + 1] * light[1] + normals[q + 2] * light[2]);
      const tone = palette[Math.min(TONES - 1, Math.floor(lit * TONES))];
      const ruled = i % stride === 0 || j % stride === 0;
      pieces.push(middle, (context) => {
        context.fillStyle = tone;
        context.strokeStyle = mesh;
        context.lineWidth = 0.6;
        context.beginPath();
        // A little larger than it is: no light seams between neighbours.
        const mx = (x[a] + x[c + 1]) / 2, my = (y[a] + y[c + 1]) / 2;
        for (const k of [a, a + 1, c + 1, c]) context.lineTo(x[k] + SEAM * Math.sign(x[k] - mx), y[k] + SEAM * Math.sign(y[k] - my));
        context.fill();
        if (!ruled) return;
        context.beginPath();
        if (i % stride === 0) { context.moveTo(x[a], y[a]); context.lineTo(x[a + 1], y[a + 1]); }
        if (j % stride === 0) { context.moveTo(x[a], y[a]); context.lineTo(x[c], y[c]); }
        context.stroke();
      });
    }
  }
}

function pieces(layer, eye, colors, list, hidden) {
  const { x, y, depth } = projectAll(layer.points, eye), color = colors.color(layer.color), lift = 0.03 * eye.radius;
  let walked = 0;
  for (let i = 1; i < x.length; i++) {
    const offset = walked, middle = (depth[i - 1] + depth[i]) / 2;
    if (Number.isNaN(middle) || hidden(i - 1) || hidden(i)) continue;
    walked += Math.hypot(x[i] - x[i - 1], y[i] - y[i - 1]);
    list.push(middle + lift, (context) => {
      [context.strokeStyle, context.lineWidth, context.lineCap] = [color, layer.width, layer.dashed ? "butt" : "round"];
      if (layer.dashed) {
        context.setLineDash([6, 5]);
        context.lineDashOffset = offset;
      }
      context.beginPath();
      context.moveTo(x[i - 1], y[i - 1]);
      context.lineTo(x[i], y[i]);
      context.stroke();
      if (layer.dashed) context.setLineDash([]);
    });
  }
}

function dots(layer, eye, colors, list, hidden, marks) {
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

/** Which points of a layer lie outside of the box that was asked for. */
function outside({ points }, bounds) {
  if (!bounds) return () => false;
  const slack = [0, 2, 4].map((k) => 1e-5 * (bounds[k + 1] - bounds[k]));
  return (i) => [0, 1, 2].some((a) => points[3 * i + a] < bounds[2 * a] - slack[a] || points[3 * i + a] > bounds[2 * a + 1] + slack[a]);
}

function stroke(context, corners, color) {
  [context.strokeStyle, context.lineWidth] = [color, 1];
  context.beginPath();
  for (const [a, b] of corners) {
    context.moveTo(a[0], a[1]);
    context.lineTo(b[0], b[1]);
  }
  context.stroke();
}

/** The three far walls with their grid, and ticks and names along the rim. */
function walls(context, eye, { box, view, colors }) {
  const far = [0, 1, 2].map((a) => (eye.eye[a] > 0 ? 0 : 1));
  const rounded = box.map(([low, high]) => ticks(low, high, 4));
  const at = (fixed) => eye.project([0, 1, 2].map((a) => fixed[a]));
  const grid = [], frame = new Map(); // each edge of the walls once
  for (const wall of [0, 1, 2]) {
    const [a, b] = [0, 1, 2].filter((k) => k !== wall), fixed = { [wall]: box[wall][far[wall]] };
    for (const [along, across] of [[a, b], [b, a]]) {
      const ends = (value) => box[across].map((end) => ({ ...fixed, [along]: value, [across]: end }));
      for (const { value } of rounded[along]) grid.push(ends(value).map(at));
      for (const value of box[along]) frame.set(JSON.stringify(ends(value)), ends(value).map(at));
    }
  }
  stroke(context, grid, colors.grid);
  stroke(context, [...frame.values()], colors.line);
  const written = [];
  for (const axis of [2, 0, 1]) labelEdge(context, edgeOf(axis, far, box, at), rounded[axis], view.labels[axis], eye, colors, written);
}

/** The rim's edge that carries an axis: near on one of the other axes and far on the other, most to the left or lowest. */
function edgeOf(axis, far, box, at) {
  const [a, b] = [0, 1, 2].filter((k) => k !== axis);
  const candidates = [[1 - far[a], far[b]], [far[a], 1 - far[b]]].map(([i, j]) => {
    const place = (value) => at({ [axis]: value, [a]: box[a][i], [b]: box[b][j] });
    return { place, middle: place((box[axis][0] + box[axis][1]) / 2) };
  });
  const score = ({ middle: [x, y] }) => (axis === 2 ? -x : y);
  return candidates.sort((p, q) => score(q) - score(p))[0];
}

/** Write ticks and name along an edge, away from the middle of the picture; `written` are the places taken. */
function labelEdge(context, { place, middle }, rounded, label, { x, y, width }, colors, written) {
  const [first, last] = [place(rounded[0].value), place(rounded.at(-1).value)];
  const length = Math.hypot(last[0] - first[0], last[1] - first[1]);
  if (length < 24) return; // seen end on
  let normal = [(last[1] - first[1]) / length, (first[0] - last[0]) / length];
  if (normal[0] * (middle[0] - x) + normal[1] * (middle[1] - y) < 0) normal = normal.map((v) => -v);
  const write = (text, [px, py], away) => {
    const half = context.measureText(text).width / 2;
    const left = Math.max(half + 2, Math.min(width - half - 2, px + normal[0] * (away + half))), top = py + normal[1] * away;
    if (written.some((spot) => Math.abs(spot[0] - left) < spot[2] + half + 3 && Math.abs(spot[1] - top) < 13)) return;
    written.push([left, top, half]);
    context.fillText(text, left, top);
  };
  [context.textAlign, context.textBaseline] = ["center", "middle"];
  [context.font, context.fillStyle] = [`italic 13px ${colors.font}`, colors.text];
  const widest = Math.max(...rounded.map(({ text }) => context.measureText(text).width));
  write(label, middle, 20 + widest * Math.abs(normal[0]));
  [context.font, context.fillStyle] = [`11px ${colors.font}`, colors.soft];
  for (const { value, text } of rounded) write(text, place(value), 11);
}

/** Where a grip that is held stands: its shadow on the far walls. */
function shadow(context, eye, point, { box, colors }) {
  const feet = [0, 1, 2].map((a) => eye.project(point.map((v, b) => (a === b ? box[a][eye.eye[a] > 0 ? 0 : 1] : v)))), spot = eye.project(point);
  context.setLineDash([3, 3]);
  stroke(context, feet.map((foot) => [spot, foot]), colors.soft);
  context.setLineDash([]);
  context.fillStyle = colors.soft;
  for (const [x, y] of feet) context.fillRect(x - 2, y - 2, 4, 4);
}

class Pieces {
  depths = [];
  draws = [];

  push(depth, draw) {
    this.depths.push(depth);
    this.draws.push(draw);
  }

  /** Draw all from far to near: depth and place share one number, so that a plain numeric sort does it. */
  paint(context, radius) {
    const keys = Float64Array.from(this.depths, (depth, i) => Math.floor((depth / radius + 8) * 2 ** 24) * BITS + i).sort();
    for (const key of keys) this.draws[key % BITS](context);
  }
}

export default () => {
  let camera = null;
  const home = ([yaw, pitch]) => ({ yaw: (yaw * Math.PI) / 180, pitch: (pitch * Math.PI) / 180, zoom: 1 });
  const turn = (yaw, pitch) => {
    camera.yaw += yaw;
    camera.pitch = Math.max(-1.5, Math.min(1.5, camera.pitch + pitch));
  };
  const zoom = (factor) => { camera.zoom = Math.max(0.4, Math.min(8, camera.zoom * factor)); };

  function draw(context, view, state) {
    const { layers, colors, bounds } = state, marks = [], list = new Pieces();
    camera ??= home(state.view.home);
    view.home = state.view.home;
    const eye = (view.eye = projection(view, state, camera));
    [context.lineJoin, context.lineCap] = ["round", "round"];
    walls(context, eye, state);
    for (const layer of layers) {
      if (layer.kind === "Surface") quads(layer, eye, colors, list);
      if (layer.kind === "Line") pieces(layer, eye, colors, list, outside(layer, bounds));
      if (layer.kind === "Dots") dots(layer, eye, colors, list, outside(layer, bounds), marks);
    }
    list.paint(context, eye.radius);
    for (const layer of layers) {
      if (layer.kind !== "Grip") continue;
      const point = Array.from(state.pointOf(layer)), [x, y] = eye.project(point);
      if (state.focus === layer.name) shadow(context, eye, point, state);
      words(context, ` ${layer.label}`, x, y, layer.color, "right", colors);
    }
    return marks;
  }

  const KEYS = {
    ArrowLeft: () => turn(-STEP, 0), ArrowRight: () => turn(STEP, 0), ArrowUp: () => turn(0, STEP), ArrowDown: () => turn(0, -STEP),
    "+": () => zoom(1.15), "-": () => zoom(1 / 1.15), Home: (view) => { camera = home(view.home); },
  };

  /** Turn by dragging and with the arrow keys, zoom with the wheel where that takes nothing from the page. */
  function enter(view, repaint) {
    const { canvas } = view;
    let last = null;
    canvas.tabIndex = 0;
    view.stage.append(make("span", "p4-hint-turn", "drag: turn · Ctrl + wheel: zoom · double click: back"));
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      last = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
      canvas.dataset.turning = true;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      turn(-TURN * (event.clientX - last[0]), TURN * (event.clientY - last[1]));
      last = [event.clientX, event.clientY];
      repaint();
    });
    canvas.addEventListener("lostpointercapture", () => { last = null; delete canvas.dataset.turning; });
    canvas.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.shiftKey && document.activeElement !== canvas) return;
      event.preventDefault();
      zoom(Math.exp(-0.0015 * (event.deltaY || event.deltaX)));
      repaint();
    }, { passive: false });
    canvas.addEventListener("dblclick", () => { camera = home(view.home); repaint(); });
    canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") canvas.blur();
      if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      KEYS[event.key](view);
      repaint();
    });
  }

  return layered({
    draw,
    enter,
    help: "drag or use the arrow keys to turn, plus and minus to zoom, Home for the first view",
    locate: ({ eye }, point) => eye.project(Array.from(point)).slice(0, 2),
    at: ({ eye }, x, y, point) => eye.unproject(x, y, eye.project(Array.from(point))[2]),
  });
};
