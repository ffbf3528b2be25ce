// A drawing as real numbers, so that soft strokes add up; the kernel gets whole ones.

const UNDO = 50;

/** A square of size times size cells, each 0 to `levels`, the first row at the top. */
export class Ink {
  size: number;
  levels: number;
  cells: Float32Array;
  past: Float32Array[] = [];

  constructor(size: number, levels: number, cells: Iterable<number>) {
    [this.size, this.levels, this.cells] = [size, levels, Float32Array.from(cells)];
  }

  whole = () => Uint8Array.from(this.cells, Math.round);
  isEmpty = () => this.cells.every((v) => v < 0.5);

  remember() {
    this.past.push(this.cells.slice());
    if (this.past.length > UNDO) this.past.shift();
  }

  /** Take the last change back; returns whether there was one. */
  undo() {
    const before = this.past.pop();
    this.cells = before ?? this.cells;
    return Boolean(before);
  }

  /** Put whole numbers in place of the drawing. */
  replace(fresh: Uint8Array) {
    if (!fresh.every((v, i) => v === Math.round(this.cells[i]))) this.remember();
    this.cells = Float32Array.from(fresh);
  }

  /** Wipe the drawing; returns whether there was one. */
  clear() {
    if (this.isEmpty()) return false;
    this.remember();
    this.cells = new Float32Array(this.cells.length);
    return true;
  }

  /** Put one soft dot at (u, v), shares of the side from the lower left corner, or rub it out. */
  stamp(u: number, v: number, brush: number, rubbing: boolean) {
    const { size, levels, cells } = this, radius = Math.max(0.8, brush * size), reach = Math.ceil(2 * radius);
    const cx = u * size - 0.5, cy = v * size - 0.5;
    for (let i = Math.max(0, Math.floor(cy - reach)); i <= Math.min(size - 1, Math.ceil(cy + reach)); i++) {
      for (let j = Math.max(0, Math.floor(cx - reach)); j <= Math.min(size - 1, Math.ceil(cx + reach)); j++) {
        const amount = levels * Math.exp(-((j - cx) ** 2 + (i - cy) ** 2) / radius ** 2);
        const at = (size - 1 - i) * size + j;
        if (rubbing) cells[at] = Math.min(cells[at], Math.max(0, levels - 1.6 * amount));
        else if (amount >= 0.5) cells[at] = Math.max(cells[at], amount);
      }
    }
  }

  stroke([u0, v0]: number[], [u1, v1]: number[], brush: number, rubbing: boolean) {
    const n = Math.max(1, Math.ceil((Math.hypot(u1 - u0, v1 - v0) * this.size) / 0.4));
    for (let k = 1; k <= n; k++) this.stamp(u0 + ((u1 - u0) * k) / n, v0 + ((v1 - v0) * k) / n, brush, rubbing);
  }
}
