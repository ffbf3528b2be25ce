// Grids of small images of one channel on canvases: sharp, square, in the theme's colours.

import { typed } from "./channel.ts";
import { caption, chip, make, write } from "./dom.ts";
import { type RampName, shades } from "./ramp.ts";
import { isDark } from "./theme.ts";
import { widget } from "./widget.ts";

const GAP = 1; // native pixels between two images

interface Images { data: Uint8Array; shape: [number, number, number]; columns: number }
interface Panel extends Images { label: string; note: string; color: string }
interface Message {
  top?: number; colors?: RampName; ends?: [string, string]; panels?: (Omit<Panel, "data"> & { index: number })[];
}

/** Put n images (n, h, w) side by side, each level as its colour. */
export function tiled({ data, shape: [n, h, w], columns }: Images, palette: number[][]) {
  const width = columns * (w + GAP) - GAP, height = Math.ceil(n / columns) * (h + GAP) - GAP;
  const colors = new Uint32Array(new Uint8Array(palette.flatMap((rgb) => [...rgb, 255])).buffer);
  const pixels = new Uint32Array(width * height), last = palette.length - 1;
  for (let k = 0, from = 0; k < n; k++) {
    const left = (k % columns) * (w + GAP), up = Math.floor(k / columns) * (h + GAP);
    for (let i = 0; i < h; i++) {
      const row = (up + i) * width + left;
      for (let j = 0; j < w; j++) pixels[row + j] = colors[Math.min(data[from++], last)];
    }
  }
  return { pixels, width, height };
}

/** The room for a canvas in CSS pixels; where a picture's height is its own to choose, only its width counts. */
function roomIn(cells: HTMLElement) {
  const fits = getComputedStyle(cells).getPropertyValue("--p4-fit"), { clientWidth: w, clientHeight: h } = cells;
  return { w: w - (fits ? 8 : 0), h: fits ? h - 8 : Infinity }; // a rim of 4 on each side, for the outline
}

const COARSE = 3; // below this magnification a whole one would waste too much room

/** Draw pixels into a canvas at the largest whole magnification that fits; a small one need not be whole. */
function enlarged(
  canvas: HTMLCanvasElement, { pixels, width, height }: ReturnType<typeof tiled>, room: { w: number; h: number },
) {
  const dpr = window.devicePixelRatio || 1;
  const fit = Math.max(1, Math.min((room.w * dpr) / width, (room.h * dpr) / height));
  const whole = Math.floor(fit), shown = whole < COARSE ? fit : whole, zoom = Math.ceil(shown);
  const native = new OffscreenCanvas(width, height), target = canvas.getContext("2d") as CanvasRenderingContext2D;
  const image = new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), w = width * zoom, h = height * zoom;
  native.getContext("2d")?.putImageData(image, 0, 0);
  if (canvas.width !== w || canvas.height !== h) [canvas.width, canvas.height] = [w, h];
  else target.clearRect(0, 0, w, h);
  [canvas.style.width, canvas.style.height] = [`${(width * shown) / dpr}px`, `${(height * shown) / dpr}px`];
  target.imageSmoothingEnabled = false;
  target.drawImage(native, 0, 0, w, h);
}

export default widget("p4-grids", () => {
  const panels: Panel[] = [];
  let top = 1, colors: RampName = "ink", ends = ["", ""];

  function build(el: HTMLElement) {
    const bar = make("div", "p4-scale"), ramp = make("i"), low = make("span"), high = make("span");
    let scale = "";
    const boxes = panels.map(({ label, color }, index) => {
      const box = make("figure", "p4-grid"), head = caption(label), canvas = make("canvas"), [, note] = head.children;
      const cells = make("div", "p4-cells");
      let before: Panel | null = null, key = "";
      canvas.setAttribute("role", "img");
      if (color) head.children[0].prepend(chip(color));
      cells.append(canvas);
      box.append(head, cells);
      // What stays is not touched: the page's layout is then not computed anew for every picture.
      function draw(palette: number[][], look: string) {
        const panel = panels[index], room = roomIn(cells), now = `${look} ${room.w} ${room.h} ${devicePixelRatio}`;
        if (before === panel && key === now) return;
        if (before?.note !== panel.note) {
          write(note, panel.note);
          canvas.setAttribute("aria-label", `${panel.label}: ${panel.note}`);
        }
        if (panel.shape[0]) enlarged(canvas, tiled(panel, palette), room);
        [before, key] = [panel, now];
      }
      return { box, draw };
    });
    bar.append(low, ramp, high);
    el.replaceChildren(...boxes.map(({ box }) => box), bar);
    return (palette: number[][], look: string) => {
      for (const { draw } of boxes) draw(palette, look);
      const now = [look, ...ends].join();
      if (scale === now) return;
      scale = now;
      ramp.style.background = `linear-gradient(to right, ${palette.map((c) => `rgb(${c})`).join()})`;
      [low.textContent, high.textContent] = ends;
    };
  }

  return {
    receive(message: Message, buffers) {
      [top, colors, ends] = [message.top ?? top, message.colors ?? colors, message.ends ?? ends];
      message.panels?.forEach((panel, i) => { panels[panel.index] = { ...panel, data: typed(buffers[i], "u1") }; });
    },
    ready: () => panels.length > 0,
    build,
    paint(pages) {
      const palette = shades(colors, isDark(), top + 1), look = [top, colors, isDark()].join(" ");
      for (const draw of pages) draw(palette, look);
    },
  };
});
