// Points of a picture that a person moves, with the mouse or with the arrow keys.

import { button } from "./dom.ts";
import { isMovable, type Layer, type Movable, type Numbers } from "./layer.ts";
import { short } from "./numbers.ts";
import { throttled } from "./touch.ts";

const HOLD_MS = 700; // a point that was let go stays there until the kernel has had time to agree
const STEPS: Record<string, number[]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** A point that is held, or was let go a moment ago. */
interface Hold { point: Numbers; grabbed: boolean; moved(): void; expiry?: number }
export type Holds = ReturnType<typeof holds>;

/** Who holds which point, on all views of a picture; `report` is what the kernel hears, 16 times a second at most. */
export function holds(report: (name: string, point: Numbers) => void, repaint: () => void) {
  const byName = new Map<string, Hold>();
  return {
    pointOf: ({ name, point }: Movable) => byName.get(name)?.point ?? point,
    busy: () => [...byName.values()].some((hold) => hold.grabbed),
    grab(name: string, point: Numbers) {
      const moved = throttled(() => report(name, hold.point));
      const hold: Hold = byName.get(name) ?? { point: Array.from(point), grabbed: true, moved };
      byName.set(name, hold);
      clearTimeout(hold.expiry);
      hold.grabbed = true;
      return hold.point;
    },
    move(name: string, point: Numbers) {
      const hold = byName.get(name);
      if (!hold) return;
      hold.point = point;
      hold.moved();
      repaint();
    },
    release(name: string) {
      const hold = byName.get(name);
      if (!hold?.grabbed) return;
      hold.grabbed = false;
      hold.expiry = setTimeout(() => { byName.delete(name); repaint(); }, HOLD_MS);
      repaint();
    },
    stop() { for (const { expiry } of byName.values()) clearTimeout(expiry); },
  };
}

/** What turns points into pixels of a canvas (null: not to be seen) and back; in space, as deep as `point`. */
export interface Sight { locate(point: Numbers): Numbers | null; at(x: number, y: number, point: Numbers): number[] }

/** The buttons that stand for the movable points of one view; `focus` hears which one has the keyboard. */
export function handles(
  canvas: HTMLCanvasElement, stage: HTMLElement, hands: Holds, sight: Sight, focus: (name: string | null) => void,
  fixed = false,
) {
  const nodes = new Map<string, HTMLButtonElement>();
  let present: Movable[] = [];

  function handle(name: string) {
    const node = button("p4-handle", "", "", () => {});
    node.disabled = fixed;
    let offset: number[] | null = null, point: Numbers = [];
    node.ariaRoleDescription = fixed ? "point" : "movable point";
    node.dataset.name = name;
    function spot({ clientX, clientY }: PointerEvent) {
      const { left, top } = canvas.getBoundingClientRect();
      return [clientX - left, clientY - top];
    }
    function grab() {
      point = hands.grab(name, hands.pointOf(present.find((layer) => layer.name === name) as Movable));
      return sight.locate(point);
    }
    function moveTo(x: number, y: number) {
      point = sight.at(x, y, point);
      hands.move(name, point);
    }
    node.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      const [x, y] = spot(event), place = grab() ?? [x, y];
      offset = [place[0] - x, place[1] - y];
      node.setPointerCapture(event.pointerId);
      node.focus();
      event.preventDefault();
    });
    node.addEventListener("pointermove", (event) => {
      const [x, y] = spot(event);
      if (offset) moveTo(x + offset[0], y + offset[1]);
    });
    node.addEventListener("lostpointercapture", () => { offset = null; hands.release(name); });
    node.addEventListener("keydown", (event) => {
      const step = STEPS[event.key], length = event.shiftKey ? 2 : 10;
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      const place = grab();
      if (place) moveTo(place[0] + step[0] * length, place[1] + step[1] * length);
    });
    node.addEventListener("keyup", () => hands.release(name));
    node.addEventListener("focus", () => focus(name));
    node.addEventListener("blur", () => {
      if (!offset) hands.release(name);
      focus(null);
    });
    stage.append(node);
    return node;
  }

  return {
    /** Put the handles of these layers where they are now. */
    place(layers: Layer[], color: (name: string) => string) {
      present = layers.filter(isMovable);
      for (const [name, node] of nodes) {
        if (present.some((layer) => layer.name === name)) continue;
        hands.release(name);
        node.remove();
        nodes.delete(name);
      }
      for (const layer of present) {
        const { name, label } = layer, node = nodes.get(name) ?? handle(name), point = hands.pointOf(layer);
        const spot = sight.locate(point), where = Array.from(point, short).join(", ");
        const text = `${label || name}, at ${where}.${fixed ? "" : " Arrow keys move it, Shift in small steps."}`;
        nodes.set(name, node);
        node.hidden = !spot;
        if (spot) node.style.transform = `translate(${spot[0]}px, ${spot[1]}px)`;
        node.style.setProperty("--color", color(layer.color));
        if (node.getAttribute("aria-label") !== text) node.setAttribute("aria-label", text);
      }
    },
    leave() { for (const name of nodes.keys()) hands.release(name); },
  };
}
