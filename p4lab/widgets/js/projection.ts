// How numbers in space are brought to a canvas.

import type { Box, Numbers } from "./layer.ts";
import { clamp } from "./numbers.ts";

const DISTANCE = 3.6; // of the eye, in half diagonals of the box
const MARGIN = 36; // pixels for ticks and names
const AXES = [0, 1, 2];

/** How a box is looked at; in `unit` on each axis, `radius` is that of the ball around it, `far` the eye's distance. */
export interface Eye {
  box: Box; centre: number[]; unit: number[]; radius: number; right: number[]; up: number[]; towards: number[];
  far: number; focus: number; x: number; y: number; width: number;
}

const dot = (a: Numbers, b: Numbers) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

/** Where one looks from: angles around the third axis and above its plane, and how near. */
export class Camera {
  yaw = 0;
  pitch = 0;
  near = 1;

  /** Look from these degrees. */
  home([yaw, pitch]: number[]) {
    [this.yaw, this.pitch, this.near] = [(yaw * Math.PI) / 180, (pitch * Math.PI) / 180, 1];
  }

  turn(yaw: number, pitch: number) {
    this.yaw += yaw;
    this.pitch = clamp(this.pitch + pitch, -1.5, 1.5);
  }

  zoom(factor: number) {
    this.near = clamp(this.near * factor, 0.4, 8);
  }

  /** The eye for a box on a canvas. */
  eye(width: number, height: number, box: Box, equal: boolean): Eye {
    const half = box.map(([low, high]) => (high - low) / 2), centre = box.map(([low, high]) => (low + high) / 2);
    const unit = equal ? half.map(() => Math.max(...half)) : half;
    const radius = Math.hypot(...half.map((h, a) => h / unit[a]));
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    const far = DISTANCE * radius, focus = (0.6 * this.near * (Math.min(width, height) - MARGIN)) / radius;
    const right = [-sy, cy, 0], up = [-sp * cy, -sp * sy, cp], towards = [cp * cy, cp * sy, sp];
    const eye = { box, centre, unit, radius, right, up, towards, far, focus, x: 0, y: 0, width };
    // The near half of the box looks larger: what is in the middle of the canvas is the middle of its outline.
    const corners = [...Array(8).keys()].map((c) => project(eye, box.map((side, a) => side[(c >> a) & 1])));
    const middle = (i: number) => (Math.min(...corners.map((c) => c[i])) + Math.max(...corners.map((c) => c[i]))) / 2;
    return { ...eye, x: width / 2 - middle(0), y: height / 2 - middle(1) };
  }
}

/** Where a point is on the canvas, and how near it is to the eye. */
export function project({ centre, unit, right, up, towards, far, focus, x, y }: Eye, p: Numbers) {
  const n = AXES.map((a) => (p[a] - centre[a]) / unit[a]), depth = dot(n, towards), k = (focus * far) / (far - depth);
  return [x + k * dot(n, right), y - k * dot(n, up), depth];
}

/** Which point of this depth is there on the canvas. */
export function unproject(eye: Eye, px: number, py: number, depth: number) {
  const { centre, unit, right, up, towards, far, focus } = eye, k = (focus * far) / (far - depth);
  const [a, b] = [(px - eye.x) / k, (eye.y - py) / k];
  return AXES.map((i) => centre[i] + unit[i] * (a * right[i] + b * up[i] + depth * towards[i]));
}

/** Project n points into columns x, y and depth; NaN stays NaN. */
export function projectAll(flat: Numbers, { centre, unit, right, up, towards, far, focus, x, y }: Eye) {
  const n = flat.length / 3, out = { x: new Float32Array(n), y: new Float32Array(n), depth: new Float32Array(n) };
  for (let i = 0, j = 0; i < n; i++, j += 3) {
    const a = (flat[j] - centre[0]) / unit[0], b = (flat[j + 1] - centre[1]) / unit[1];
    const c = (flat[j + 2] - centre[2]) / unit[2];
    const depth = a * towards[0] + b * towards[1] + c * towards[2], k = (focus * far) / (far - depth);
    out.x[i] = x + k * (a * right[0] + b * right[1] + c * right[2]);
    out.y[i] = y - k * (a * up[0] + b * up[1] + c * up[2]);
    out.depth[i] = depth;
  }
  return out;
}

/** The unit normals of a surface's quads, vertices measured in `unit` (NaN for a hole). */
export function normalsOf(v: Numbers, [rows, cols]: number[], unit: number[]) {
  const flat = new Float32Array(3 * Math.max(0, (rows - 1) * (cols - 1)));
  for (let i = 0, q = 0; i < rows - 1; i++) {
    for (let j = 0; j < cols - 1; j++, q += 3) {
      const a = 3 * (i * cols + j), b = a + 3, c = a + 3 * cols, d = c + 3;
      const s = AXES.map((k) => (v[d + k] - v[a + k]) / unit[k]), t = AXES.map((k) => (v[c + k] - v[b + k]) / unit[k]);
      const n = [s[1] * t[2] - s[2] * t[1], s[2] * t[0] - s[0] * t[2], s[0] * t[1] - s[1] * t[0]];
      const length = Math.hypot(...n) || 1;
      flat.set(n.map((k) => k / length), q);
    }
  }
  return flat;
}

/** Which of many points lie outside of the box that was asked for. */
export function outside(points: Numbers, bounds: number[] | null) {
  if (!bounds) return () => false;
  const sides = AXES.map((a) => [bounds[2 * a], bounds[2 * a + 1]]);
  const slack = sides.map(([low, high]) => 1e-5 * (high - low));
  return (i: number) => sides.some(([low, high], a) => (
    points[3 * i + a] < low - slack[a] || points[3 * i + a] > high + slack[a]));
}

const BITS = 2 ** 21; // the place of a piece in the list, below its depth in one sortable number

/** What is drawn from far to near. */
export class Pieces<Context> {
  depths: number[] = [];
  draws: ((context: Context) => void)[] = [];

  push(depth: number, draw: (context: Context) => void) {
    this.depths.push(depth);
    this.draws.push(draw);
  }

  /** Draw all from far to near: depth and place share one number, so that a plain numeric sort does it. */
  paint(context: Context, radius: number) {
    const keys = Float64Array.from(this.depths, (depth, i) => Math.floor((depth / radius + 8) * 2 ** 24) * BITS + i);
    for (const key of keys.sort()) this.draws[key % BITS](context);
  }
}
