// Grids of small images of one channel on canvases: sharp, square, in the theme's colours.

const GAP = 1; // native pixels between two images
const COLORS = {
  ink: {
    light: [[255, 255, 255], [168, 197, 236], [46, 94, 170], [12, 28, 66]],
    dark: [[22, 26, 33], [37, 70, 120], [110, 165, 235], [240, 247, 255]],
  },
  diverging: {
    light: [[29, 79, 145], [91, 143, 201], [179, 207, 232], [250, 250, 250], [243, 192, 168], [217, 122, 91], [165, 48, 31]],
    dark: [[142, 193, 255], [74, 134, 207], [34, 70, 111], [20, 23, 28], [110, 50, 38], [205, 102, 74], [255, 171, 140]],
  },
};

const palettes = new Map();

/** RGB for the levels 0..top, interpolated between the colours of the theme: as bytes of pixels, and as CSS. */
function palette(top, colors) {
  const key = `${top} ${colors} ${isDark()}`;
  if (!palettes.has(key)) {
    const stops = COLORS[colors][isDark() ? "dark" : "light"];
    const table = Array.from({ length: top + 1 }, (_, level) => {
      const t = (level / top) * (stops.length - 1), i = Math.min(Math.floor(t), stops.length - 2);
      return stops[i].map((c, k) => Math.round(c + (stops[i + 1][k] - c) * (t - i)));
    });
    const pixels = new Uint32Array(new Uint8Array(table.flatMap((rgb) => [...rgb, 255])).buffer);
    palettes.set(key, { key, pixels, ramp: `linear-gradient(to right, ${table.map((c) => `rgb(${c})`).join()})` });
  }
  return palettes.get(key);
}

/** Draw n images (n, h, w) into a canvas at the largest whole magnification that fits `width` CSS pixels. */
function drawGrid(canvas, { data, shape: [n, h, w], columns }, { pixels }, width) {
  const rows = Math.ceil(n / columns), last = pixels.length - 1;
  const W = columns * (w + GAP) - GAP, H = rows * (h + GAP) - GAP;
  const dpr = window.devicePixelRatio || 1;
  const zoom = Math.max(1, Math.floor((width * dpr) / W));
  const image = new ImageData(W, H), out = new Uint32Array(image.data.buffer);
  for (let k = 0, from = 0; k < n; k++) {
    const left = (k % columns) * (w + GAP), up = Math.floor(k / columns) * (h + GAP);
    for (let i = 0; i < h; i++) {
      const row = (up + i) * W + left;
      for (let j = 0; j < w; j++) out[row + j] = pixels[Math.min(data[from++], last)];
    }
  }
  const native = new OffscreenCanvas(W, H);
  native.getContext("2d").putImageData(image, 0, 0);
  const target = canvas.getContext("2d");
  if (canvas.width !== W * zoom || canvas.height !== H * zoom) {
    [canvas.width, canvas.height] = [W * zoom, H * zoom];
    [canvas.style.width, canvas.style.height] = [`${(W * zoom) / dpr}px`, `${(H * zoom) / dpr}px`];
  } else target.clearRect(0, 0, canvas.width, canvas.height);
  target.imageSmoothingEnabled = false;
  target.drawImage(native, 0, 0, W * zoom, H * zoom);
}

export default () => {
  const views = new Map();
  const panels = [];
  let top = 1, colors = "ink", ends = ["", ""], line = null;

  function receive(message, buffers) {
    top = message.top ?? top;
    colors = message.colors ?? colors;
    ends = message.ends ?? ends;
    message.panels?.forEach(({ index, ...panel }, i) => {
      panels[index] = { ...panel, data: typed(buffers[i], "u1") };
    });
  }

  function build(el) {
    const boxes = panels.map(({ label, color }) => {
      const box = document.createElement("figure");
      box.className = "p4-grid";
      const caption = document.createElement("figcaption"), canvas = document.createElement("canvas");
      const strong = document.createElement("b"), small = document.createElement("span");
      strong.textContent = label;
      if (color) {
        const chip = document.createElement("i");
        chip.className = "p4-chip";
        chip.style.background = color;
        strong.prepend(chip);
      }
      caption.append(strong, small);
      canvas.setAttribute("role", "img");
      box.append(caption, canvas);
      return { box, canvas, small };
    });
    const bar = document.createElement("div");
    bar.className = "p4-scale";
    const ramp = document.createElement("i");
    const [low, high] = [document.createElement("span"), document.createElement("span")];
    bar.append(low, ramp, high);
    el.replaceChildren(...boxes.map(({ box }) => box), bar);
    return { boxes, ramp, low, high };
  }

  function paint() {
    for (const [el, view] of views) {
      if (!panels.length || !isVisible(el)) continue;
      if (view.boxes?.length !== panels.length) Object.assign(view, build(el));
      const shades = palette(top, colors);
      view.boxes.forEach((drawn, i) => {
        // What stays is not touched: the page's layout is then not computed anew for every picture.
        const { box, canvas, small } = drawn, panel = panels[i], key = `${shades.key} ${box.clientWidth} ${devicePixelRatio}`;
        if (drawn.panel === panel && drawn.key === key) return;
        if (drawn.panel?.note !== panel.note) {
          small.textContent = panel.note;
          canvas.setAttribute("aria-label", `${panel.label}: ${panel.note}`);
        }
        if (panel.shape[0]) drawGrid(canvas, panel, shades, box.clientWidth);
        Object.assign(drawn, { panel, key });
      });
      const scale = [shades.key, ...ends].join();
      if (view.scale === scale) continue;
      view.scale = scale;
      view.ramp.style.background = shades.ramp;
      [view.low.textContent, view.high.textContent] = ends;
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
