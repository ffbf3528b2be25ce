// Colours for numbers.

import { clamp } from "./numbers.ts";

const RAMPS = {
  ink: { light: ["#ffffff", "#a8c5ec", "#2e5eaa", "#0c1c42"], dark: ["#161a21", "#254678", "#6ea5eb", "#f0f7ff"] },
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
export type RampName = keyof typeof RAMPS;

export const SHADES = 256;

/** A ramp as a function of the share of its length, 0 to 1: [r, g, b], not rounded. */
export function ramp(name: RampName, dark: boolean) {
  const codes = RAMPS[name][dark ? "dark" : "light"];
  const stops = codes.map((hex) => [1, 3, 5].map((k) => Number.parseInt(hex.slice(k, k + 2), 16)));
  return (share: number) => {
    const t = clamp(share) * (stops.length - 1), i = Math.min(Math.floor(t), stops.length - 2);
    return stops[i].map((c, k) => c + (stops[i + 1][k] - c) * (t - i));
  };
}

const tables = new Map<string, number[][]>();

/** A ramp cut into so many colours, as whole [r, g, b]. */
export function shades(name: RampName, dark: boolean, count = SHADES) {
  const key = `${name} ${dark} ${count}`;
  if (!tables.has(key)) {
    const color = ramp(name, dark);
    tables.set(key, Array.from({ length: count }, (_, s) => color(s / (count - 1)).map(Math.round)));
  }
  return tables.get(key) as number[][];
}

interface Scaled { values: Iterable<number>; low: number | null; high: number | null; log?: boolean }

/** The ends of a scale, `share`: value -> 0..1 between them, and `shade`: value -> 0..255 (-1 for NaN). */
export function scaleOf({ values, low: least, high: greatest, log = false }: Scaled) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (!Number.isFinite(value) || (log && value <= 0)) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  low = least ?? (low <= high ? low : log ? 0.1 : 0);
  high = greatest ?? Math.max(high, low);
  if (!(high > low)) high = log ? 10 * low : low + 1;
  const warp = log ? Math.log10 : (value: number) => value, from = warp(low), to = warp(high);
  const share = (value: number) => (warp(value) - from) / (to - from);
  const bounded = (value: number) => (log && value <= 0 ? 0 : clamp(share(value)));
  const shade = (value: number) => (Number.isNaN(value) ? -1 : Math.round((SHADES - 1) * bounded(value)));
  return { low, high, share, shade };
}
