// Grids of small grey images on canvases: sharp, square, in the theme's colours.

const GAP = 1; // native pixels between two images
const INK = {
  light: [[255, 255, 255], [168, 197, 236], [46, 94, 170], [12, 28, 66]],
  dark: [[22, 26, 33], [37, 70, 120], [110, 165, 235], [240, 247, 255]],
};

/** A lookup table of RGB for the levels 0..top, interpolated between the colours of the theme. */
function palette(top) {
  const stops = INK[isDark() ? "dark" : "light"];
  return Array.from({ length: top + 1 }, (_, level) => {
    const t = (level / top) * (stops.length - 1), i = Math.min(Math.floor(t), stops.length - 2);
    return stops[i].map((c, k) => c + (stops[i + 1][k] - c) * (t - i));
  });
}

/** Draw n images (n, h, w) into a canvas at the largest whole magnification that fits `width` CSS pixels. */
function drawGrid(canvas, { data, shape: [n, h, w], columns }, top, width) {
  const rows = Math.ceil(n / columns);
  const W = columns * (w + GAP) - GAP, H = rows * (h + GAP) - GAP;
  const dpr = window.devicePixelRatio || 1;
  const zoom = Math.max(1, Math.floor((width * dpr) / W));
  const native = new OffscreenCanvas(W, H), context = native.getContext("2d"), image = context.createImageData(W, H);
  const colours = palette(top);
  for (let k = 0; k < n; k++) {
    const left = (k % columns) * (w + GAP), up = Math.floor(k / columns) * (h + GAP);
    for (let i = 0; i < h; i++) {
      for (let j = 0; j < w; j++) {
        const rgb = colours[Math.min(data[(k * h + i) * w + j], top)], at = 4 * ((up + i) * W + left + j);
        [image.data[at], image.data[at + 1], image.data[at + 2], image.data[at + 3]] = [rgb[0], rgb[1], rgb[2], 255];
      }
    }
  }
  context.putImageData(image, 0, 0);
  [canvas.width, canvas.height] = [W * zoom, H * zoom];
  [canvas.style.width, canvas.style.height] = [`${(W * zoom) / dpr}px`, `${(H * zoom) / dpr}px`];
  const target = canvas.getContext("2d");
  target.imageSmoothingEnabled = false;
  target.drawImage(native, 0, 0, W * zoom, H * zoom);
}

export default () => {
  const views = new Map();
  const panels = [];
  let top = 1, line = null;

  function receive(message, buffers) {
    top = message.top ?? top;
    message.panels?.forEach(({ index, ...panel }, i) => {
      panels[index] = { ...panel, data: typed(buffers[i], "u1") };
    });
  }

  function build(el) {
    const boxes = panels.map(({ label }) => {
      const box = document.createElement("figure");
      box.className = "p4-grid";
      const caption = document.createElement("figcaption"), canvas = document.createElement("canvas");
      const strong = document.createElement("b"), small = document.createElement("span");
      strong.textContent = label;
      caption.append(strong, small);
      canvas.setAttribute("role", "img");
      box.append(caption, canvas);
      return { box, canvas, small };
    });
    const bar = document.createElement("div");
    bar.className = "p4-scale";
    const ramp = document.createElement("i");
    bar.append("grey level 0", ramp, String(top));
    el.replaceChildren(...boxes.map(({ box }) => box), bar);
    return { boxes, ramp };
  }

  function paint() {
    for (const [el, view] of views) {
      if (!panels.length || !isVisible(el)) continue;
      if (view.boxes?.length !== panels.length) Object.assign(view, build(el));
      view.boxes.forEach(({ box, canvas, small }, i) => {
        small.textContent = panels[i].note;
        canvas.setAttribute("aria-label", `${panels[i].label}: ${panels[i].note}`);
        if (panels[i].shape[0]) drawGrid(canvas, panels[i], top, box.clientWidth);
      });
      view.ramp.style.background = `linear-gradient(to right, ${palette(top).map((c) => `rgb(${c})`).join()})`;
    }
  }

  function initialize({ model }) {
    line = connect(model, { receive, paint });
  }

  function render({ el }) {
    el.classList.add("p4-grids");
    views.set(el, {});
    const stop = watch(el, line.repaint);
    line.repaint();
    return () => { stop(); views.delete(el); };
  }

  return { initialize, render };
};
