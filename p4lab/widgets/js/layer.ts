// Layers as they travel, and as they are drawn.

import { typed } from "./channel.ts";
import type { RampName } from "./ramp.ts";
import type { Colors } from "./theme.ts";

export type Numbers = number[] | Float32Array;
export type Box = number[][]; // low and high on each axis

interface Drawn<Kind> { kind: Kind; box: Box; label: string; color: string }
interface Scale { low: number | null; high: number | null }

export interface Heatmap extends Omit<Drawn<"Heatmap">, "color">, Scale {
  values: Float32Array; valuesShape: number[]; extent: number[]; colors: RampName; log: boolean;
}
export interface Path extends Drawn<"Path">, Scale {
  points: Float32Array; width: number; dashed: boolean; closed: boolean; fill: number; values: Float32Array | null;
}
export interface Points extends Drawn<"Points"> {
  points: Float32Array; shape: "dot" | "ring" | "cross" | "square"; size: number; labels: string[]; fade: boolean;
}
export interface Arrow extends Drawn<"Arrow"> { start: Float32Array; end: Float32Array; width: number; dashed: boolean }
export interface Text extends Drawn<"Text"> { point: Float32Array; text: string; side: Side }
export interface Surface extends Drawn<"Surface"> { vertices: Float32Array; verticesShape: number[]; opacity: number }
export interface Line extends Drawn<"Line"> { points: Float32Array; width: number; dashed: boolean }
export interface Dots extends Drawn<"Dots"> { points: Float32Array; size: number; labels: string[] }
/** A point that a person moves: a handle in the plane, a grip in space. */
export interface Movable extends Drawn<"Handle" | "Grip"> { name: string; point: Float32Array }

export type Layer = Heatmap | Path | Points | Arrow | Text | Surface | Line | Dots | Movable;
export type Side = "center" | "left" | "right" | "above" | "below";

/** A layer in a message: where each of its arrays is among the buffers, and its shape. */
export interface Parcel { kind: string; arrays: Record<string, [number, number[]]>; extent?: number[] }

/** Put the arrays of a layer next to its other properties, and find the box around its points. */
export function decode(parcel: Parcel, buffers: DataView[], dim: number) {
  const layer: Record<string, unknown> = { ...parcel };
  for (const [name, [index, shape]] of Object.entries(parcel.arrays)) {
    layer[name] = typed(buffers[index], "f4");
    layer[`${name}Shape`] = shape;
  }
  const box = Array.from({ length: dim }, () => [Infinity, -Infinity]);
  for (const name of ["points", "point", "start", "end", "vertices"]) {
    (layer[name] as Float32Array | undefined)?.forEach((value, i) => {
      const side = box[i % dim];
      if (value < side[0]) side[0] = value;
      if (value > side[1]) side[1] = value;
    });
  }
  const { extent } = parcel;
  layer.box = extent ? [extent.slice(0, 2), extent.slice(2)] : box;
  return layer as unknown as Layer;
}

/** Make something of a layer, and keep it until `key` is another. */
export function kept<Of extends object, Key, Value>(make: (layer: Of, key: Key) => Value) {
  const values = new WeakMap<Of, { key?: Key; value: Value }>();
  return (layer: Of, key?: Key) => {
    const before = values.get(layer);
    if (before && before.key === key) return before.value;
    const value = make(layer, key as Key);
    values.set(layer, { key, value });
    return value;
  };
}

export const isMovable = (layer: Layer): layer is Movable => layer.kind === "Handle" || layer.kind === "Grip";

/** One entry of a legend, and what its sample looks like. */
export interface Entry { label: string; look: string; color: string; dashed: boolean; opacity: number }

const LOOKS: Record<string, string> = { Dots: "dot", Arrow: "Arrow", Surface: "Surface" };

/** What the legend says of the layers; those with a colour bar are told there. */
export function legendOf(layers: Layer[], colors: Colors) {
  const entries = new Map<string, Entry>();
  for (const layer of layers) {
    if (layer.kind === "Heatmap" || isMovable(layer) || !layer.label || entries.has(layer.label)) continue;
    const {
      kind, label, color, shape, dashed = false, fill = 0, opacity = fill || 1, values,
    } = layer as typeof layer & {
      shape?: string; dashed?: boolean; fill?: number; opacity?: number; values?: Float32Array;
    };
    if (values) continue;
    const look = fill ? "Surface" : (shape ?? LOOKS[kind] ?? "line");
    entries.set(label, { label, look, color: colors.color(color), dashed, opacity });
  }
  return [...entries.values()];
}
