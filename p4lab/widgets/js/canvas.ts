// What is drawn on every canvas.

import type { Numbers, Side } from "./layer.ts";
import type { Tick } from "./numbers.ts";
import type { Colors } from "./theme.ts";

export type Context = CanvasRenderingContext2D;

/** Make a canvas as large and as sharp as the stage that it stands on, and wipe it. */
export function wiped(canvas: HTMLCanvasElement, stage: HTMLElement) {
  const dpr = window.devicePixelRatio || 1, width = stage.clientWidth, height = stage.clientHeight;
  const [w, h] = [Math.round(width * dpr), Math.round(height * dpr)];
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  const context = canvas.getContext("2d") as Context;
  context.setTransform(dpr, 0, 0, dpr, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}

const SIDES: Record<Side, [CanvasTextAlign, number, number]> = {
  center: ["center", 0, 0], left: ["right", -10, 0], right: ["left", 10, 0],
  above: ["center", 0, -15], below: ["center", 0, 15],
};

/** Letters with a rim in the page's colour, so that they can be read on anything. */
export function words(context: Context, text: string, x: number, y: number, color: string, side: Side, colors: Colors) {
  const [align, dx, dy] = SIDES[side];
  context.setLineDash([]);
  letters(context, `13px ${colors.font}`, colors.color(color), align);
  [context.strokeStyle, context.lineWidth, context.lineJoin] = [colors.paper, 3.5, "round"];
  context.globalAlpha = 0.85;
  context.strokeText(text, x + dx, y + dy);
  context.globalAlpha = 1;
  context.fillText(text, x + dx, y + dy);
}

/** Set how texts are written from now on. */
export function letters(context: Context, font: string, color: string, align: CanvasTextAlign) {
  [context.font, context.fillStyle, context.textAlign, context.textBaseline] = [font, color, align, "middle"];
}

export const crisp = (v: number) => Math.round(v - 0.5) + 0.5;

/** Lines from point to point. */
export function strokes(context: Context, pairs: Numbers[][], color: string, width = 1) {
  [context.strokeStyle, context.lineWidth] = [color, width];
  context.beginPath();
  for (const [from, to] of pairs) {
    context.moveTo(from[0], from[1]);
    context.lineTo(to[0], to[1]);
  }
  context.stroke();
}

/** Where a picture stands on a canvas, in pixels. */
export interface Area { x: number; y: number; w: number; h: number }

export function rim(context: Context, { x, y, w, h }: Area, color: string) {
  [context.strokeStyle, context.lineWidth] = [color, 1];
  context.strokeRect(crisp(x), crisp(y), Math.round(w), Math.round(h));
}

/** An area, and what turns numbers into pixels of it. */
export interface Scaled extends Area { X: (value: number) => number; Y: (value: number) => number }

/** Write ticks below and to the left of a picture. */
export function writeTicks(context: Context, { x, y, h, X, Y }: Scaled, across: Tick[], up: Tick[], colors: Colors) {
  letters(context, `11px ${colors.font}`, colors.soft, "center");
  for (const { value, text } of across) context.fillText(text, X(value), y + h + 12);
  context.textAlign = "right";
  for (const { value, text } of up) context.fillText(text, x - 6, Y(value));
}

/** A picture of w times h pixels: [r, g, b] by row (from the top) and column, or nothing where it is to be blank. */
export function pixels(w: number, h: number, color: (row: number, column: number) => number[] | undefined) {
  const canvas = new OffscreenCanvas(Math.max(1, w), Math.max(1, h));
  const image = new ImageData(canvas.width, canvas.height);
  for (let i = 0, at = 0; i < h; i++) {
    for (let j = 0; j < w; j++, at += 4) {
      const rgb = color(i, j);
      if (!rgb) continue;
      image.data.set(rgb, at);
      image.data[at + 3] = 255;
    }
  }
  canvas.getContext("2d")?.putImageData(image, 0, 0);
  return canvas;
}

/** Draw a picture of few pixels into an area, smoothly. */
export function smoothly(context: Context, picture: OffscreenCanvas, { x, y, w, h }: Area) {
  context.imageSmoothingEnabled = true;
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, w, h);
}
