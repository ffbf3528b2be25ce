// A small picture of a lab on white paper: its title and numbers, its pictures at their places, its curves.

import type { Context } from "./canvas.ts";
import { letters } from "./canvas.ts";
import { library, template } from "./live_plot.ts";
import { imageOf, paint } from "./painter.ts";
import { png } from "./png.ts";
import { isDark, theme } from "./theme.ts";

const WIDTH = 800, MARGIN = 16, GAP = 20;
/** Pixels of the page to which curves are narrowed, so that letters stay readable, and their largest height. */
const READABLE = 960, HEIGHT = 460;
/** What is tried until the file is small enough: sizes and numbers of colours; then smaller and smaller. */
const TRIES = [[1, 128], [1, 56], [0.88, 48], [0.78, 40], [0.7, 32]], FEWEST = 24, SHRINK = 0.85;

interface Plot extends HTMLElement { data: object[]; layout: object }
interface Size { width: number; height: number }
export interface Place extends Size { x: number; y: number }
/** Where the two halves of a lab go, in pixels of the page. */
export interface Plan extends Size { pictures: Place; curves: Place }

/** The least place that holds others. */
export function around(places: Place[]): Place {
  const seen = places.filter(({ width, height }) => width && height);
  if (!seen.length) return { x: 0, y: 0, width: 0, height: 0 };
  const [x, y] = [Math.min(...seen.map((at) => at.x)), Math.min(...seen.map((at) => at.y))];
  const right = Math.max(...seen.map((at) => at.x + at.width));
  const bottom = Math.max(...seen.map((at) => at.y + at.height));
  return { x, y, width: right - x, height: bottom - y };
}

/** Arrange the curves below the pictures, as the page does; what has no width is left out. */
export function planOf(pictures: Place, curves: Place): Plan {
  const width = Math.max(pictures.width, Math.min(curves.width, READABLE)), height = Math.min(curves.height, HEIGHT);
  const top = pictures.width && curves.width ? pictures.height + GAP : pictures.height;
  return {
    width, height: top + height, pictures: { ...pictures, x: 0, y: 0 },
    curves: { x: 0, y: top, width: curves.width && width, height },
  };
}

const said = (node: Element | null | undefined) => node?.textContent?.trim() ?? "";

/** Write title and numbers, and return the place below them. */
function writeHead(context: Context, lab: Element) {
  const { text, soft, font } = theme("light"), room = WIDTH - 2 * MARGIN;
  const put = (words: string, x: number, y: number, size: number, color: string, weight = 400) => {
    letters(context, `${weight} ${size}px ${font}`, color, "left");
    if (words) context.fillText(words, x, y);
    return context.measureText(words).width;
  };
  put(said(lab.querySelector(".p4-title")), MARGIN, 26, 18, text, 600);
  put(said(lab.querySelector(".p4-subtitle")), MARGIN, 47, 13, soft);
  const readouts = [...lab.querySelectorAll(".p4-item-readout")].map((item) => (
    [".p4-name", ".p4-value", ".p4-unit"].map((part) => said(item.querySelector(part)))));
  const widths = readouts.map(([name, value, unit]) => {
    const wide = put("", 0, 0, 11, soft) + context.measureText(name).width, [v, u] = [value, unit].map((words, k) => {
      letters(context, k ? `11px ${font}` : `600 15px ${font}`, text, "left");
      return context.measureText(words).width;
    });
    return Math.max(wide, v + (unit ? 4 + u : 0));
  });
  const total = widths.reduce((sum, width) => sum + width, 0), free = room - total - 10 * readouts.length;
  const gap = Math.min(28, Math.max(0, free) / Math.max(1, readouts.length - 1));
  let x = MARGIN;
  readouts.forEach(([name, value, unit], k) => {
    context.fillStyle = "#ddd";
    context.fillRect(x, 64, 2, 34);
    put(name, x + 10, 71, 11, soft);
    const wide = put(value, x + 10, 90, 15, text, 600);
    put(unit, x + 14 + wide, 91, 11, soft);
    x += widths[k] + 10 + gap;
  });
  return 112;
}

/** Turn light and dark around and keep the hues: what was drawn for dark paper is then right for white. */
export function brighten(data: Uint8ClampedArray, paper: number) {
  const stretch = 255 / (255 - paper);
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b] = [data[i], data[i + 1], data[i + 2]], shift = 255 - Math.max(r, g, b) - Math.min(r, g, b);
    for (let k = 0; k < 3; k++) data[i + k] = (data[i + k] + shift) * stretch;
  }
}

function canvasOf(width: number, height: number) {
  const canvas = new OffscreenCanvas(Math.max(1, Math.ceil(width)), Math.max(1, Math.ceil(height)));
  const context = canvas.getContext("2d", { willReadFrequently: true }) as unknown as Context;
  return { canvas, context };
}

function change(context: Context, { width, height }: Size, how: (data: Uint8ClampedArray) => void) {
  const image = context.getImageData(0, 0, width, height);
  how(image.data);
  context.putImageData(image, 0, 0);
}

/** A PNG of at most so many bytes, with as much of the picture as fits. */
async function packed(picture: OffscreenCanvas, limit: number) {
  for (let k = 0; ; k++) {
    const [scale, colors] = TRIES[k] ?? [(TRIES[TRIES.length - 1][0] * SHRINK ** (k + 1 - TRIES.length)), FEWEST];
    const { canvas, context } = canvasOf(picture.width * scale, picture.height * scale);
    context.imageSmoothingQuality = "high";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const content = await png(context.getImageData(0, 0, canvas.width, canvas.height), colors);
    if (content.byteLength <= limit) return content;
  }
}

const placeOf = (node: Element) => node.getBoundingClientRect() as Place;

/** Take a picture of a lab: the content of a PNG of at most so many bytes. */
export async function photo(lab: HTMLElement, limit: number) {
  const plot = lab.querySelector<Plot>(".p4-curves .js-plotly-plot");
  const tiles = [...lab.querySelectorAll(".p4-pictures > *")], pictures = () => around(tiles.map(placeOf));
  const plan = planOf(pictures(), around(plot ? [placeOf(plot)] : []));
  const { canvas: title, context: pen } = canvasOf(WIDTH, 120), top = writeHead(pen, lab);
  const scale = Math.min(1.25, (WIDTH - 2 * MARGIN) / Math.max(1, plan.width));
  const { canvas, context } = canvasOf(WIDTH, top + plan.height * scale + MARGIN);
  const put = (to: Place, from: { x: number; y: number }) => context.setTransform(
    scale, 0, 0, scale, MARGIN + (to.x - from.x) * scale, top + (to.y - from.y) * scale);

  context.fillStyle = isDark() ? theme().paper : "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const [paper] = context.getImageData(0, 0, 1, 1).data;
  for (const tile of tiles) {
    put(plan.pictures, pictures()); // the page may have been scrolled in the meantime
    await paint(context, tile);
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
  if (isDark()) change(context, canvas, (data) => brighten(data, paper));
  context.drawImage(title, 0, 0);
  const Plotly = library().loaded;
  if (plot && Plotly && plan.curves.width) { // the curves may be on a page that is not seen
    const { width, height } = plan.curves, size = { width: Math.round(width), height: Math.round(height) };
    const layout = { ...structuredClone(plot.layout), ...size, template: template(theme("light")) };
    const image = await imageOf(await Plotly.toImage({ data: plot.data, layout }, { format: "svg", ...size }));
    put(plan.curves, { x: 0, y: 0 });
    context.drawImage(image, 0, 0, width, height);
  }
  return packed(canvas, limit);
}
