// The box of numbers that a picture shows: how it follows the data.

import { still } from "./dom.ts";
import type { Box } from "./layer.ts";

interface Filling { box: Box; extent?: number[] }

/** Whether a layer fills all of the picture: then the frame is its edge. */
export function framing(layers: Filling[]) {
  return layers.some((frame) => frame.extent && layers.every(({ box }) => box.every(([low, high], a) => (
    low > high || (low >= frame.box[a][0] && high <= frame.box[a][1])))));
}

/** The box that shows all layers; the one before is kept while the data fits into it and fills a fair part of it. */
export function follow(layers: Filling[], before: Box | null, { dim, equal }: { dim: number; equal: boolean }): Box {
  const data = Array.from({ length: dim }, (_, a) => {
    const low = Math.min(...layers.map(({ box }) => box[a][0])), high = Math.max(...layers.map(({ box }) => box[a][1]));
    return low > high ? [-1, 1] : [low, high];
  });
  if (framing(layers)) return data;
  const widest = Math.max(...data.map(([low, high]) => high - low));
  const roomy = data.map(([low, high]) => {
    const least = (equal ? 0.25 * widest : 0) || 0.02 * Math.max(Math.abs(low), Math.abs(high)) || 1;
    const wide = Math.max(high - low, least), middle = (low + high) / 2;
    return [middle - 0.6 * wide, middle + 0.6 * wide];
  });
  if (!before) return roomy;
  const inside = data.every(([low, high], a) => low >= before[a][0] && high <= before[a][1]);
  const fills = roomy.map(([low, high], a) => (high - low) / (before[a][1] - before[a][0]) > 0.45);
  return inside && (equal ? fills.some(Boolean) : fills.every(Boolean)) ? before : roomy;
}

/** Move a box a part of the way to another; returns whether it is still on its way. */
export function approach(box: Box, goal: Box) {
  const jump = still();
  let moving = false;
  goal.forEach((side, a) => {
    const size = side[1] - side[0];
    side.forEach((end, i) => {
      const left = end - box[a][i], far = !jump && Math.abs(left) > 2e-3 * size;
      box[a][i] = far ? box[a][i] + 0.3 * left : end;
      moving ||= far;
    });
  });
  return moving;
}
