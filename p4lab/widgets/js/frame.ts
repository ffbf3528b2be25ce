// How numbers in the plane are brought to a canvas.

import { framing } from "./box.ts";
import type { Scaled } from "./canvas.ts";
import type { Layer, Numbers } from "./layer.ts";
import type { State } from "./layers.ts";
import { clamp } from "./numbers.ts";

export const BAR_SPACE = 76; // for a colour bar

export interface Frame extends Scaled {
  x0: number; x1: number; y0: number; y1: number; inside: (px: number, py: number) => boolean;
}
type Framed = Pick<State, "look" | "bounds" | "box" | "layers">;

/** The layers that have a colour bar. */
export const scaled = (layers: Layer[]) => layers.filter((layer) => "values" in layer && layer.values && layer.label);

/** Where the frame stands on the canvas, and what turns numbers into pixels. */
export function frameOf(width: number, height: number, { look, bounds, box, layers }: Framed): Frame {
  const [xLabel, yLabel] = look.labels, bars = scaled(layers).length;
  const left = 40 + (yLabel ? 18 : 0), top = 8, right = 10 + bars * BAR_SPACE, bottom = 22 + (xLabel ? 18 : 0);
  let [w, h] = [Math.max(20, width - left - right), Math.max(20, height - top - bottom)];
  let [[x0, x1], [y0, y1]] = box, x = left;
  const y = top, unit = Math.min(w / (x1 - x0), h / (y1 - y0));
  if (look.equal && (bounds || framing(layers))) { // exactly what was asked for: the frame gets its shape
    const [fw, fh] = [unit * (x1 - x0), unit * (y1 - y0)];
    [x, w, h] = [x + (w - fw) / 2, fw, fh];
  } else if (look.equal) { // all of the canvas: the shorter side shows more
    const [cx, cy] = [(x0 + x1) / 2, (y0 + y1) / 2];
    [x0, x1, y0, y1] = [cx - w / unit / 2, cx + w / unit / 2, cy - h / unit / 2, cy + h / unit / 2];
  }
  return {
    x, y, w, h, x0, x1, y0, y1,
    X: (v) => x + (w * (v - x0)) / (x1 - x0),
    Y: (v) => y + h - (h * (v - y0)) / (y1 - y0),
    inside: (px, py) => px >= x - 1 && px <= x + w + 1 && py >= y - 1 && py <= y + h + 1,
  };
}

/** Where a point is on the canvas, null if it is outside of the frame. */
export function locate({ X, Y, inside }: Frame, [px, py]: Numbers) {
  const [x, y] = [X(px), Y(py)];
  return inside(x, y) ? [x, y] : null;
}

/** Which point is there, or the nearest one in the frame. */
export function pointAt({ x, y, w, h, x0, x1, y0, y1 }: Frame, px: number, py: number) {
  return [x0 + clamp((px - x) / w) * (x1 - x0), y0 + clamp((y + h - py) / h) * (y1 - y0)];
}
