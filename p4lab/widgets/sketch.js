// A square to paint on. The drawing is kept here as real numbers, so that soft strokes add up; the kernel gets whole ones.

const INKS = {
  light: ["#ffffff", "#eaf1f8", "#cfdfee", "#aac6e0", "#82a9ce", "#5b8ab8", "#3c6a9a"],
  dark: ["#0f1318", "#142433", "#1a3650", "#23496c", "#305f89", "#4478a5", "#5f94c0"],
};
const BRUSHES = { S: 0.035, M: 0.065, L: 0.12 }; // radius as a share of the side
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const UNDO = 50;
const LEFT = 58, RIGHT = 8, TOP = 8, BOTTOM = 22; // as a plane with an axis title
const HELP = "Arrow keys move the brush, Space paints, Shift and arrows paint along, Delete rubs out, Control Z takes back.";

export default () => {
  const views = new Map();
  let spec = null, ink = null, past = [], line = null, model = null;
  let tool = "paint", brush = "M";

  const whole = () => Uint8Array.from(ink, Math.round);
  const empty = () => ink.every((v) => v < 0.5);
  const tell = (why) => model.send({ drawn: why }, undefined, [whole().buffer]);

  function receive(message, buffers) {
    spec = message.view ?? spec;
    if (!spec) return line.again();
    if (buffers.length) {
      const fresh = Float32Array.from(typed(buffers[0], "u1"));
      if (ink && !fresh.every((v, i) => v === Math.round(ink[i]))) remember();
      ink = fresh;
    }
  }

  function remember() {
    past.push(ink.slice());
    if (past.length > UNDO) past.shift();
  }

  function undo() {
    if (!past.length) return;
    ink = past.pop();
    changed();
  }

  function clear() {
    if (empty()) return;
    remember();
    ink = new Float32Array(ink.length);
    changed();
  }

  function changed() {
    tell("stroke");
    line.repaint();
  }

  /** Put one soft dot at (u, v), shares of the side from the lower left corner. */
  function stamp(u, v, rubbing) {
    const { size, levels } = spec, radius = Math.max(0.8, BRUSHES[brush] * size), [cx, cy] = [u * size - 0.5, v * size - 0.5];
    const reach = Math.ceil(2 * radius);
    for (let i = Math.max(0, Math.floor(cy - reach)); i <= Math.min(size - 1, Math.ceil(cy + reach)); i++) {
      for (let j = Math.max(0, Math.floor(cx - reach)); j <= Math.min(size - 1, Math.ceil(cx + reach)); j++) {
        const amount = levels * Math.exp(-(((j - cx) ** 2 + (i - cy) ** 2) / radius ** 2)), at = (size - 1 - i) * size + j;
        ink[at] = rubbing ? Math.min(ink[at], Math.max(0, levels - 1.6 * amount)) : Math.max(ink[at], amount < 0.5 ? 0 : amount);
      }
    }
  }

  function stroke([u0, v0], [u1, v1], rubbing) {
    const n = Math.max(1, Math.ceil((Math.hypot(u1 - u0, v1 - v0) * spec.size) / 0.4));
    for (let k = 1; k <= n; k++) stamp(u0 + ((u1 - u0) * k) / n, v0 + ((v1 - v0) * k) / n, rubbing);
    line.repaint();
  }

  // --- the page ---

  function button(text, title, action, look = "plain") {
    const node = make("button", "p4-button p4-small", text);
    Object.assign(node, { type: "button", title });
    node.dataset.look = look;
    node.addEventListener("click", action);
    return node;
  }

  function segments(label, names, titles, choose) {
    const row = make("div", "p4-segments");
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", label);
    const buttons = Object.keys(names).map((name, k) => {
      const node = make("button", "", names[name]);
      Object.assign(node, { type: "button", title: titles[k] });
      node.addEventListener("click", () => { choose(name); line.repaint(); });
      row.append(node);
      return [name, node];
    });
    return { row, show: (chosen) => buttons.forEach(([name, node]) => node.setAttribute("aria-pressed", name === chosen)) };
  }

  function build(el, view) {
    const figure = make("figure", "p4-picture"), caption = make("figcaption"), stage = make("div", "p4-stage"), canvas = make("canvas");
    figure.dataset.lmSuppressShortcuts = "true";
    caption.append(make("b", "", spec.title), make("span", "", spec.note));
    Object.assign(canvas, { tabIndex: 0 });
    canvas.setAttribute("role", "application");
    canvas.setAttribute("aria-label", `${spec.title}. ${HELP}`);
    canvas.title = HELP;
    stage.append(canvas);
    const tools = segments("Tool", { paint: "Paint", erase: "Erase" }, ["Add to the density", "Take away from it"], (name) => { tool = name; });
    const sizes = segments("Brush size", { S: "S", M: "M", L: "L" }, ["Fine brush", "Medium brush", "Broad brush"], (name) => { brush = name; });
    const buttons = {
      undo: button("Undo", "Take the last stroke back (Ctrl+Z)", undo),
      clear: button("Clear", "Wipe the canvas", clear),
      copy: button("Copy truth", "Put the density that is trained on onto the canvas, to change it", () => model.send({ copy: 1 })),
      use: button("Train on this", "Start over with this drawing as the density", () => tell("use"), "primary"),
    };
    for (const [name, node] of Object.entries(buttons)) node.dataset.name = name;
    const body = make("div", "p4-sketch-body"), bar = make("div", "p4-sketch-tools");
    bar.append(tools.row, sizes.row, buttons.undo, buttons.clear, buttons.copy, buttons.use);
    body.append(stage, bar);
    figure.append(caption, body);
    el.replaceChildren(figure);
    Object.assign(view, { canvas, stage, tools, sizes, buttons, spot: [0.5, 0.5], mouse: null, keys: false, last: null });
    listen(view);
  }

  function listen(view) {
    const { canvas } = view;
    const spotOf = (event) => {
      const { x, y, side } = view.frame;
      return [(event.offsetX - x) / side, (y + side - event.offsetY) / side].map((t) => Math.min(1, Math.max(0, t)));
    };
    const rubs = (event) => tool === "erase" || event.buttons === 2;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button === 1 || !ink) return;
      canvas.setPointerCapture(event.pointerId);
      remember();
      view.keys = false;
      view.last = spotOf(event);
      stroke(view.last, view.last, rubs(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      view.mouse = spotOf(event);
      if (view.last) {
        stroke(view.last, view.mouse, rubs(event));
        view.last = view.mouse;
      } else line.repaint();
    });
    canvas.addEventListener("lostpointercapture", () => { if (view.last) { view.last = null; changed(); } });
    canvas.addEventListener("pointerleave", () => { view.mouse = null; line.repaint(); });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("blur", () => { view.keys = false; line.repaint(); });
    canvas.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") undo();
      else if (event.ctrlKey || event.metaKey || event.altKey) return;
      else if (KEYS[event.key]) {
        const before = view.spot, step = 1 / spec.size;
        view.spot = before.map((t, a) => Math.min(1 - step / 2, Math.max(step / 2, t + KEYS[event.key][a] * step)));
        if (event.shiftKey) keyStroke(view, before, tool === "erase");
      } else if (event.key === " ") keyStroke(view, view.spot, tool === "erase");
      else if (event.key === "Delete" || event.key === "Backspace") keyStroke(view, view.spot, true);
      else return;
      view.keys = true;
      event.preventDefault();
      event.stopPropagation();
      line.repaint();
    });
  }

  function keyStroke(view, from, rubbing) {
    remember();
    stroke(from, view.spot, rubbing);
    changed();
  }

  // --- drawing ---

  function palette(dark) {
    const stops = INKS[dark ? "dark" : "light"].map((hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16)));
    return (share) => {
      const t = Math.min(1, Math.max(0, share)) * (stops.length - 1), i = Math.min(Math.floor(t), stops.length - 2);
      return stops[i].map((c, k) => c + (stops[i + 1][k] - c) * (t - i));
    };
  }

  function image(dark) {
    const { size, levels } = spec, off = new OffscreenCanvas(size, size), pixels = new ImageData(size, size), color = palette(dark);
    ink.forEach((v, k) => {
      const at = 4 * k, [r, g, b] = color(v / levels);
      [pixels.data[at], pixels.data[at + 1], pixels.data[at + 2], pixels.data[at + 3]] = [r, g, b, 255];
    });
    off.getContext("2d").putImageData(pixels, 0, 0);
    return off;
  }

  function ring(context, { x, y, side }, [u, v], color, dashed) {
    context.beginPath();
    context.arc(x + u * side, y + (1 - v) * side, Math.max(3, 1.3 * BRUSHES[brush] * side), 0, 2 * Math.PI);
    [context.strokeStyle, context.lineWidth] = [color, 1.5];
    context.setLineDash(dashed ? [4, 3] : []);
    context.stroke();
    context.setLineDash([]);
  }

  function draw(view, colors) {
    const { canvas, stage } = view, dpr = window.devicePixelRatio || 1, [width, height] = [stage.clientWidth, stage.clientHeight];
    const [w, h] = [Math.round(width * dpr), Math.round(height * dpr)];
    if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
    const context = canvas.getContext("2d"), [x0, x1, y0, y1] = spec.extent;
    context.setTransform(dpr, 0, 0, dpr, 0, 0);
    context.clearRect(0, 0, width, height);
    const side = Math.max(20, Math.min(width - LEFT - RIGHT, height - TOP - BOTTOM));
    const frame = (view.frame = { x: LEFT, y: TOP, side });
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.save();
    context.beginPath();
    context.rect(frame.x, frame.y, side, side);
    context.clip();
    context.drawImage(image(colors.dark), frame.x, frame.y, side, side);
    if (empty() && !view.last) words(context, "Paint here", frame.x + side / 2, frame.y + side / 2, colors.soft, "center", colors);
    if (view.mouse) ring(context, frame, view.mouse, colors.color(tool === "erase" ? "red" : "orange"), false);
    if (view.keys) ring(context, frame, view.spot, colors.color("orange"), true);
    context.restore();
    [context.strokeStyle, context.lineWidth] = [colors.line, 1];
    context.strokeRect(frame.x + 0.5, frame.y + 0.5, side - 1, side - 1);
    [context.font, context.fillStyle, context.textBaseline] = [`11px ${colors.font}`, colors.soft, "middle"];
    context.textAlign = "center";
    for (const { value, text } of ticks(x0, x1, Math.max(2, Math.min(6, side / 40)))) {
      context.fillText(text, frame.x + (side * (value - x0)) / (x1 - x0), frame.y + side + 12);
    }
    context.textAlign = "right";
    for (const { value, text } of ticks(y0, y1, Math.max(2, Math.min(6, side / 40)))) {
      context.fillText(text, frame.x - 6, frame.y + side - (side * (value - y0)) / (y1 - y0));
    }
  }

  function paint() {
    if (!spec || !ink) return;
    const colors = theme(), nothing = empty();
    for (const [el, view] of views) {
      if (!isVisible(el)) continue;
      if (!view.canvas) build(el, view);
      draw(view, colors);
      view.tools.show(tool);
      view.sizes.show(brush);
      view.canvas.dataset.empty = nothing;
      view.buttons.undo.disabled = !past.length;
      view.buttons.clear.disabled = view.buttons.use.disabled = nothing;
    }
  }

  function initialize({ model: given }) {
    model = given;
    line = connect(model, { receive, paint });
  }

  function render({ el }) {
    el.classList.add("p4-drawing", "p4-sketch");
    views.set(el, {});
    const stop = watch(el, line.repaint);
    line.repaint();
    return () => { stop(); views.delete(el); };
  }

  return { initialize, render };
};
