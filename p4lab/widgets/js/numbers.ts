// Numbers as people read them.

export interface Tick { value: number; text: string }

export const clamp = (value: number, low = 0, high = 1) => Math.min(high, Math.max(low, value));

/** Three digits, with a true minus sign. */
export const short = (value: number) => Number(value.toPrecision(3)).toString().replace("-", "−");

/** How many ticks have room on so many pixels. */
export const room = (pixels: number, each = 40, most = 6) => clamp(pixels / each, 2, most);

/** Round values in [low, high], about `count` of them, two if that can be, and how to write them. */
export function ticks(low: number, high: number, count: number): Tick[] {
  const raw = (high - low) / Math.max(1, count), power = 10 ** Math.floor(Math.log10(raw));
  const steps = [0.5, 1, 2, 5, 10].map((m) => m * power), wide = steps.findIndex((s) => s >= raw * 0.999);
  const several = (s: number) => Math.floor(high / s + 1e-6) > Math.ceil(low / s - 1e-6);
  const step = steps[several(steps[wide]) ? wide : wide - 1];
  const top = Math.max(Math.abs(low), Math.abs(high)), values = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + 1e-6 * step; k++) values.push(k * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9)), exponential = top >= 1e5 || digits > 4;
  const write = (value: number) => (exponential ? value.toExponential(clamp(Math.round(Math.log10(top / step)), 0, 3))
    : value.toFixed(digits)).replace("e+", "e").replace("-", "−");
  return values.map((value) => (value === 0 ? { value: 0, text: "0" } : { value, text: write(value) }));
}

/** Powers of ten in [low, high], or round values if there are fewer than two. */
export function decades(low: number, high: number): Tick[] {
  const from = Math.ceil(Math.log10(low) - 1e-6), to = Math.floor(Math.log10(high) + 1e-6);
  if (to <= from) return ticks(low, high, 4);
  const every = Math.ceil((to - from + 1) / 6), write = (k: number) => (
    Math.abs(k) <= 2 ? String(Number((10 ** k).toPrecision(1))) : `1e${k}`.replace("-", "−"));
  const powers = Array.from({ length: to - from + 1 }, (_, k) => from + k).filter((k) => (k - from) % every === 0);
  return powers.map((k) => ({ value: 10 ** k, text: write(k) }));
}
