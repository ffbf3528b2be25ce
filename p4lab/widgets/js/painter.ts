// What is seen of a piece of the page, painted on a canvas: boxes, letters, canvases and small drawings.

import type { Context } from "./canvas.ts";

/** What is for hands, or for a moment. */
const LEFT_OUT = [
  "button:not(.p4-handle)", "input", "select", ".p4-bar", ".p4-sketch-tools", ".p4-tip", ".p4-hint-turn", ".p4-note",
].join();
const NOTHING = "rgba(0, 0, 0, 0)";
const SIDES = ["Top", "Right", "Bottom", "Left"] as const;

interface Rect { left: number; top: number; width: number; height: number }

/** Background and border of an element, or of what CSS puts before or after it. */
function paintBox(context: Context, style: CSSStyleDeclaration, { left, top, width, height }: Rect) {
  const colors = style.backgroundImage.match(/rgba?\([^)]*\)/g), radius = Number.parseFloat(style.borderRadius) || 0;
  context.beginPath();
  context.roundRect(left, top, width, height, style.borderRadius.includes("%") ? Math.min(width, height) / 2 : radius);
  if (colors && style.backgroundImage.startsWith("linear-gradient(to right")) {
    const fill = context.createLinearGradient(left, 0, left + width, 0);
    colors.forEach((color, k) => { fill.addColorStop(k / (colors.length - 1), color); });
    context.fillStyle = fill;
    context.fill();
  } else if (style.backgroundColor !== NOTHING) {
    context.fillStyle = style.backgroundColor;
    context.fill();
  }
  const rim = Number.parseFloat(style.borderTopWidth), round = style.borderRadius !== "0px";
  if (round && rim && SIDES.every((side) => style[`border${side}Width`] === style.borderTopWidth)) {
    [context.strokeStyle, context.lineWidth] = [style.borderTopColor, rim];
    const [w, h] = [width - rim, height - rim], corner = style.borderRadius.includes("%") ? Math.min(w, h) / 2 : radius;
    context.beginPath();
    context.roundRect(left + rim / 2, top + rim / 2, w, h, corner);
    context.stroke();
    return;
  }
  for (const side of SIDES) {
    const thick = Number.parseFloat(style[`border${side}Width`]);
    if (!thick || ["none", "hidden"].includes(style[`border${side}Style`])) continue;
    const down = side === "Left" || side === "Right", far = side === "Right" || side === "Bottom";
    context.fillStyle = style[`border${side}Color`];
    if (down) context.fillRect(far ? left + width - thick : left, top, thick, height);
    else context.fillRect(left, far ? top + height - thick : top, width, thick);
  }
}

function paintPseudo(context: Context, node: Element, which: "::before" | "::after", around: Rect) {
  const style = getComputedStyle(node, which);
  if (["none", "normal"].includes(style.content) || style.position !== "absolute") return;
  const [left, top, width, height] = (["left", "top", "width", "height"] as const).map((of) => parseFloat(style[of]));
  if (Number.isNaN(left + top + width + height)) return;
  paintBox(context, style, { left: around.left + left, top: around.top + top, width, height });
}

/** Each word where it stands. */
function paintText(context: Context, text: Text, style: CSSStyleDeclaration) {
  const content = text.data, range = document.createRange();
  context.font = `${style.fontStyle} ${style.fontWeight} ${style.fontSize} ${style.fontFamily}`;
  [context.fillStyle, context.textAlign, context.textBaseline] = [style.color, "left", "alphabetic"];
  for (const { 0: word, index } of content.matchAll(/\S+/g)) {
    range.setStart(text, index);
    range.setEnd(text, index + word.length);
    const { left, top, width } = range.getBoundingClientRect();
    const said = style.textTransform === "uppercase" ? word.toUpperCase() : word;
    if (width) context.fillText(said, left, top + context.measureText(said).fontBoundingBoxAscent);
  }
}

/** An image of some source, when it can be drawn. */
export async function imageOf(source: string) {
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

function drawingOf(svg: SVGSVGElement, { width, height }: Rect, color: string) {
  const copy = svg.cloneNode(true) as SVGSVGElement;
  for (const [name, value] of Object.entries({ width, height, color })) copy.setAttribute(name, String(value));
  return imageOf(`data:image/svg+xml,${encodeURIComponent(new XMLSerializer().serializeToString(copy))}`);
}

/** Paint an element; the context's transform brings places of the page to places of the picture. */
export async function paint(context: Context, node: Element): Promise<void> {
  const style = getComputedStyle(node), rect = node.getBoundingClientRect();
  const { display, visibility, opacity } = style;
  if (node.matches(LEFT_OUT) || display === "none" || visibility === "hidden" || opacity === "0") return;
  if (node instanceof SVGSVGElement) {
    const image = await drawingOf(node, rect, style.color);
    context.drawImage(image, rect.left, rect.top, rect.width, rect.height);
    return;
  }
  context.save();
  paintBox(context, style, rect);
  if (node instanceof HTMLCanvasElement && node.width && node.height) {
    context.imageSmoothingQuality = "high";
    context.drawImage(node, rect.left, rect.top, rect.width, rect.height);
  }
  paintPseudo(context, node, "::before", rect);
  if (style.overflowX !== "visible") {
    context.beginPath();
    context.rect(rect.left, rect.top, rect.width, rect.height);
    context.clip();
  }
  for (const child of node.childNodes) {
    if (child instanceof Text) paintText(context, child, style);
    else if (child instanceof Element) await paint(context, child);
  }
  paintPseudo(context, node, "::after", rect);
  context.restore();
}
