// What plane and space have in common: layers that are kept until they change, a frame around the canvas, points to drag.

const NAMED = {
  light: { blue: "#2b6cd4", orange: "#d9730d", green: "#1f8a4c", red: "#d3352f", purple: "#7b4fc9", grey: "#7d8590", ink: "#1f2430" },
  dark: { blue: "#6aa8ff", orange: "#ffb26b", green: "#6fdc98", red: "#ff7a70", purple: "#b99aff", grey: "#98a1ae", ink: "#e8ebf0" },
};
const NEAR = 11; // pixels from a mark within which it tells its label

/** The page's colours at this moment. */
function theme() {
  const dark = isDark(), named = NAMED[dark ? "dark" : "light"];
  return {
    dark,
    text: cssVariable("--jp-ui-font-color1", dark ? "#e0e0e0" : "#222"),
    soft: cssVariable("--jp-ui-font-color2", dark ? "#a0a0a0" : "#666"),
    paper: cssVariable("--jp-layout-color1", dark ? "#111" : "#fff"),
    font: cssVariable("--jp-ui-font-family", "sans-serif"),
    grid: dark ? "rgba(255,255,255,0.09)" : "rgba(0,0,0,0.07)",
    line: dark ? "rgba(255,255,255,0.30)" : "rgba(0,0,0,0.28)",
    color: (name) => named[name] ?? name,
  };
}

/** Round values in [low, high], about `count` of them, and how to write them. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5].find((m) => m * power >= raw * 0.999) ?? 10);
  const top = Math.max(Math.abs(low), Math.abs(high)), values = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + 1e-6 * step; k++) values.push(k * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const write = (v) => (top >= 1e5 || digits > 4 ? v.toExponential(Math.max(0, Math.min(3, Math.round(Math.log10(top / step)))))
    : v.toFixed(digits)).replace("e+", "e").replace("-", "−");
  return values.map((value) => ({ value: value === 0 ? 0 : value, text: value === 0 ? "0" : write(value) }));
}

const short = (v) => Number(v.toPrecision(3)).toString().replace("-", "−");

/** Put the arrays of a layer next to its other properties, and find the box around its points. */
function decode(layer, buffers, dim) {
  const made = { ...layer };
  for (const [name, [index, shape]] of Object.entries(layer.arrays)) {
    made[name] = typed(buffers[index], "f4");
    made[`${name}Shape`] = shape;
  }
  made.box = Array.from({ length: dim }, () => [Infinity, -Infinity]);
  for (const name of ["points", "point", "start", "end", "vertices"]) {
    made[name]?.forEach((value, i) => {
      const side = made.box[i % dim];
      if (value < side[0]) side[0] = value;
      if (value > side[1]) side[1] = value;
    });
  }
  if (layer.extent) made.box = [layer.extent.slice(0, 2), layer.extent.slice(2)];
  return made;
}

/** A layer that fills all of the picture: then the frame is its edge. */
const framing = (layers) => layers.find((layer) => layer.extent
  && layers.every(({ box }) => box.every(([low, high], a) => low > high || (low >= layer.box[a][0] && high <= layer.box[a][1]))));

/** The box that shows all layers; the one before is kept while the data fits into it and fills a fair part of it. */
function follow(layers, before, { dim, equal }) {
  const data = Array.from({ length: dim }, (_, a) => {
    const low = Math.min(...layers.map(({ box }) => box[a][0])), high = Math.max(...layers.map(({ box }) => box[a][1]));
    return low > high ? [-1, 1] : [low, high];
  });
  if (framing(layers)) return data;
  const widest = Math.max(...data.map(([low, high]) => high - low));
  const padded = data.map(([low, high]) => {
    const least = (equal ? 0.25 * widest : 0) || 0.02 * Math.max(Math.abs(low), Math.abs(high)) || 1;
    const wide = Math.max(high - low, least), middle = (low + high) / 2;
    return [middle - 0.6 * wide, middle + 0.6 * wide];
  });
  const inside = before && data.every(([low, high], a) => low >= before[a][0] && high <= before[a][1]);
  const share = ([low, high], a) => (high - low) / (before[a][1] - before[a][0]);
  const fills = before && (equal ? padded.some((side, a) => share(side, a) > 0.45) : padded.every((side, a) => share(side, a) > 0.45));
  return inside && fills ? before : padded;
}

/** Move a box a part of the way to another; returns whether it is still on its way. */
function approach(box, goal) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  let moving = false;
  goal.forEach((side, a) => {
    const size = side[1] - side[0];
    side.forEach((wanted, i) => {
      const left = wanted - box[a][i];
      const far = !still && Math.abs(left) > 2e-3 * size;
      box[a][i] = far ? box[a][i] + 0.3 * left : wanted;
      moving ||= far;
    });
  });
  return moving;
}

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

const SIDES = {
  center: ["center", 0, 0], left: ["right", -10, 0], right: ["left", 10, 0], above: ["center", 0, -15], below: ["center", 0, 15],
};

/** Letters with a rim in the page's colour, so that they can be read on anything. */
function words(context, text, x, y, color, side, colors) {
  const [align, dx, dy] = SIDES[side];
  context.setLineDash([]);
  [context.font, context.textAlign, context.textBaseline] = [`13px ${colors.font}`, align, "middle"];
  [context.strokeStyle, context.lineWidth, context.lineJoin, context.fillStyle] = [colors.paper, 3.5, "round", colors.color(color)];
  context.globalAlpha = 0.85;
  context.strokeText(text, x + dx, y + dy);
  context.globalAlpha = 1;
  context.fillText(text, x + dx, y + dy);
}

const SVG = "http://www.w3.org/2000/svg";
const SWATCHES = {
  line: "M1 6H21", Arrow: "M1 6H16M15 2.5L21 6L15 9.5Z", dot: "M11 2.5A3.5 3.5 0 1 0 11.01 2.5Z", ring: "M11 2.5A3.5 3.5 0 1 0 11.01 2.5Z",
  cross: "M7.5 2.5L14.5 9.5M14.5 2.5L7.5 9.5", square: "M7.5 2.5H14.5V9.5H7.5Z", Surface: "M3 1H19V11H3Z",
};

/** What the legend says of the layers; those with a colour bar are told there. */
function legendOf(layers, colors) {
  const entries = new Map();
  for (const { kind, label, color, shape, dashed, opacity, values } of layers) {
    if (!label || values || ["Heatmap", "Handle", "Grip"].includes(kind) || entries.has(label)) continue;
    const look = kind === "Points" ? shape : kind === "Dots" ? "dot" : kind in SWATCHES ? kind : "line";
    entries.set(label, { label, look, color: colors.color(color), dashed: Boolean(dashed), opacity: opacity ?? 1 });
  }
  return [...entries.values()];
}

function swatch({ look, color, dashed, opacity }) {
  const svg = document.createElementNS(SVG, "svg"), path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 22 12");
  path.setAttribute("d", SWATCHES[look]);
  path.setAttribute("stroke", color);
  path.setAttribute("stroke-width", look === "Surface" ? 1 : 2);
  path.setAttribute("fill", ["line", "ring", "cross"].includes(look) ? "none" : color);
  path.setAttribute("fill-opacity", opacity);
  if (dashed) path.setAttribute("stroke-dasharray", "5 3");
  svg.append(path);
  return svg;
}

/**
 * A picture made of layers. `kind` holds what differs:
 *   draw(context, size, state, colors)   draw everything, return the marks that tell their label on hover
 *   locate(view, point) -> [x, y]        where a point is on the canvas, null if it cannot be seen
 *   at(view, x, y, point) -> point       which point is there (in space: as deep as `point`)
 *   enter?(view, repaint)                add what else a canvas listens to
 */
function layered(kind) {
  const views = new Map();
  const state = { view: null, layers: [], bounds: null, goal: null, box: null, colors: null, focus: null };
  let line = null, hands = null;

  function receive(message, buffers) {
    if (message.view) Object.assign(state, { view: message.view, layers: [] });
    const missing = !state.view || message.layers.some((layer, k) => !layer && !state.layers[k]);
    if (missing) return line.again(); // this page came in the middle of a conversation
    state.layers = message.layers.map((layer, k) => (layer ? decode(layer, buffers, state.view.dim) : state.layers[k]));
    state.bounds = message.bounds;
  }

  /** Let the frame follow the bounds or the data; returns whether it is still on its way. */
  function settle() {
    const { bounds, layers, view } = state;
    if (bounds) state.goal = Array.from({ length: view.dim }, (_, a) => [bounds[2 * a], bounds[2 * a + 1]]);
    else if (!state.goal || !hands.busy()) state.goal = follow(layers, state.goal, view);
    state.box ??= state.goal.map((side) => [...side]);
    return approach(state.box, state.goal);
  }

  function build(el, view) {
    const { title, note, height } = state.view, caption = make("figcaption");
    const figure = make("figure", "p4-picture");
    figure.dataset.lmSuppressShortcuts = "true"; // arrow keys are ours, not the notebook's
    caption.append(make("b", "", title), make("span", "", note));
    Object.assign(view, {
      canvas: make("canvas"), stage: make("div", "p4-stage"), tip: make("div", "p4-tip"), legend: make("div", "p4-legend"), handles: new Map(),
    });
    view.stage.style.height = `${height}px`;
    view.canvas.setAttribute("role", "img");
    view.canvas.setAttribute("aria-label", [title, note, kind.help].filter(Boolean).join(": "));
    view.tip.hidden = true;
    view.canvas.addEventListener("pointermove", (event) => point(view, event.offsetX, event.offsetY));
    view.canvas.addEventListener("pointerleave", () => { view.mouse = null; view.tip.hidden = true; });
    view.stage.append(view.canvas, view.tip);
    figure.append(...(title || note ? [caption] : []), view.stage, view.legend);
    el.replaceChildren(figure);
    kind.enter?.(view, line.repaint);
  }

  /** Show the label of the mark under the mouse. */
  function point(view, x, y) {
    view.mouse = [x, y];
    let best = NEAR, found = null;
    for (const mark of view.marks) {
      const distance = Math.hypot(mark.x - x, mark.y - y);
      if (distance <= best) [best, found] = [distance, mark];
    }
    view.tip.hidden = !found;
    if (!found) return;
    view.tip.textContent = found.text;
    view.tip.dataset.side = found.x > view.width / 2 ? "left" : "right";
    view.tip.style.transform = `translate(${found.x}px, ${found.y}px)`;
  }

  function paintView(view) {
    const { canvas, stage, legend } = view, dpr = window.devicePixelRatio || 1;
    [view.width, view.height] = [stage.clientWidth, stage.clientHeight];
    const [w, h] = [Math.round(view.width * dpr), Math.round(view.height * dpr)];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d");
    context.setTransform(dpr, 0, 0, dpr, 0, 0);
    context.clearRect(0, 0, view.width, view.height);
    view.marks = kind.draw(context, view, state);
    hands.place(view);
    if (view.mouse) point(view, ...view.mouse);
    const entries = legendOf(state.layers, state.colors), told = JSON.stringify(entries);
    if (view.told === told) return;
    view.told = told;
    legend.replaceChildren(...entries.map((entry) => {
      const item = make("span");
      item.append(swatch(entry), entry.label);
      return item;
    }));
  }

  function paint() {
    if (!state.view) return;
    const seen = [...views].filter(([el]) => isVisible(el));
    if (!seen.length) return;
    state.colors = theme();
    const moving = settle();
    for (const [el, view] of seen) {
      if (!view.canvas) build(el, view);
      paintView(view);
    }
    if (moving) line.repaint();
  }

  function initialize({ model }) {
    line = connect(model, { receive, paint });
    hands = holding(kind, state, (message) => model.send(message), line.repaint);
    return hands.stop;
  }

  function render({ el }) {
    el.classList.add("p4-drawing");
    const view = { mouse: null, marks: [] };
    views.set(el, view);
    const stop = watch(el, line.repaint);
    line.repaint();
    return () => { stop(); hands.leave(view); views.delete(el); };
  }

  return { initialize, render };
}
