// Points of a picture that a person moves, with the mouse or with the arrow keys.

const HOLD_MS = 700; // a point that was let go stays there until the kernel has had time to agree
const TELL_MS = 62; // at most 16 messages a second
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Who holds which point, on all views of a picture; `kind` turns points into pixels and back. */
function holding(kind, state, send, repaint) {
  const held = new Map(); // name -> where it is, whether it is grabbed, when the kernel was told
  const movable = () => state.layers.filter((layer) => layer.kind === "Handle" || layer.kind === "Grip");
  const pointOf = (layer) => held.get(layer.name)?.point ?? layer.point;
  state.pointOf = pointOf;

  function tell(name, entry) {
    clearTimeout(entry.timer);
    entry.timer = null;
    entry.told = performance.now();
    send({ moved: name, point: entry.point });
  }

  function moveTo(name, point) {
    const entry = held.get(name);
    entry.point = point;
    const wait = TELL_MS - (performance.now() - entry.told);
    if (wait <= 0) tell(name, entry);
    else entry.timer ??= setTimeout(() => tell(name, entry), wait);
    repaint();
  }

  function grab(name, point) {
    if (!held.has(name)) held.set(name, { told: -Infinity, timer: null, point: [...point] });
    const entry = held.get(name);
    clearTimeout(entry.expiry);
    entry.grabbed = true;
  }

  function release(name) {
    const entry = held.get(name);
    if (!entry?.grabbed) return;
    entry.grabbed = false;
    if (entry.timer !== null) tell(name, entry);
    entry.expiry = setTimeout(() => { held.delete(name); repaint(); }, HOLD_MS);
    repaint();
  }

  function handleNode(view, name) {
    const node = make("button", "p4-handle");
    const layer = () => movable().find((l) => l.name === name);
    let offset = null;
    Object.assign(node, { type: "button", ariaRoleDescription: "movable point" });
    node.dataset.name = name;
    const pointer = (event) => { const box = view.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    node.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const [x, y] = pointer(event), [px, py] = kind.locate(view, pointOf(layer()));
      offset = [px - x, py - y];
      node.setPointerCapture(event.pointerId);
      node.focus();
      grab(name, pointOf(layer()));
      event.preventDefault();
    });
    node.addEventListener("pointermove", (event) => {
      if (!offset) return;
      const [x, y] = pointer(event);
      moveTo(name, kind.at(view, x + offset[0], y + offset[1], held.get(name).point));
    });
    node.addEventListener("lostpointercapture", () => { offset = null; release(name); });
    node.addEventListener("keydown", (event) => {
      const step = ARROWS[event.key], length = event.shiftKey ? 2 : 10;
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      grab(name, pointOf(layer()));
      const point = held.get(name).point, [x, y] = kind.locate(view, point);
      moveTo(name, kind.at(view, x + step[0] * length, y + step[1] * length, point));
    });
    node.addEventListener("keyup", () => release(name));
    node.addEventListener("blur", () => { if (!offset) release(name); });
    for (const type of ["focus", "blur"]) {
      node.addEventListener(type, () => { state.focus = type === "focus" ? name : null; repaint(); });
    }
    view.stage.append(node);
    return node;
  }

  function place(view) {
    const present = movable();
    for (const [name, node] of view.handles) {
      if (present.some((layer) => layer.name === name)) continue;
      release(name);
      node.remove();
      view.handles.delete(name);
    }
    for (const layer of present) {
      if (!view.handles.has(layer.name)) view.handles.set(layer.name, handleNode(view, layer.name));
      const node = view.handles.get(layer.name), point = pointOf(layer), spot = kind.locate(view, point);
      node.hidden = !spot;
      if (spot) node.style.transform = `translate(${spot[0]}px, ${spot[1]}px)`;
      node.style.setProperty("--color", state.colors.color(layer.color));
      const told = `${layer.label || layer.name}, at ${Array.from(point, short).join(", ")}. Arrow keys move it, Shift in small steps.`;
      if (node.getAttribute("aria-label") !== told) node.setAttribute("aria-label", told);
    }
  }

  return {
    place,
    leave: (view) => view.handles?.forEach((_, name) => release(name)),
    busy: () => [...held.values()].some((entry) => entry.grabbed),
    stop: () => held.forEach((entry) => { clearTimeout(entry.timer); clearTimeout(entry.expiry); }),
  };
}
