// plotly.js, fed with figures once and with arrays from then on. The library comes from the kernel, once per page.

import { isVisible, type Model, RETRY_MS, typed } from "./channel.ts";
import { make } from "./dom.ts";
import { isDark, theme } from "./theme.ts";
import { widget } from "./widget.ts";

/** What is used of plotly.js. */
interface Plotly {
  react(plot: HTMLElement, data: object[], layout: object, config: object): Promise<unknown>;
  redraw(plot: HTMLElement): Promise<unknown>;
  purge(plot: HTMLElement): void;
  toImage(figure: object, options: object): Promise<string>;
  downloadImage(figure: object, options: object): Promise<unknown>;
}
/** What plots share: when one last asked for plotly.js, and its one promise. */
interface Shared { asked: number; loaded: Plotly | null; promise: Promise<Plotly>; resolve(library: Plotly): void }
const page = globalThis as { __p4labPlotly?: Shared; Plotly?: Plotly; define?: unknown };

interface View { el: HTMLElement; plot: HTMLElement; note: HTMLElement; key: string; size: string }
interface Figure { data: Record<string, unknown>[]; layout: object }
type Place = [trace: number, name: string];
/** With `library`, plotly.js is in the first buffer, compressed; `save` is the name of a file. */
interface Message {
  library?: 1; save?: string; figure?: Figure; layout?: object; values?: [...Place, unknown][];
  arrays?: [...Place, "f4" | "f8" | "u1" | "i4", number[]][];
}

/** The one plotly.js of the page. */
export function library() {
  if (!page.__p4labPlotly) {
    const shared = { asked: -Infinity, loaded: null } as Shared;
    shared.promise = new Promise((resolve) => { shared.resolve = resolve; });
    page.__p4labPlotly = shared;
  }
  return page.__p4labPlotly;
}

async function load(gzipped: DataView) {
  const shared = library();
  if (shared.loaded) return;
  const stream = new Blob([gzipped as BlobPart]).stream().pipeThrough(new DecompressionStream("gzip"));
  const url = URL.createObjectURL(new Blob([await new Response(stream).blob()], { type: "text/javascript" }));
  // plotly is a UMD module: with JupyterLab's `define` in sight it would register there and leave no global.
  const { define, Plotly: theirs } = page, script = Object.assign(make("script"), { src: url });
  page.define = undefined;
  try {
    await new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = () => reject(new Error("plotly.js did not load"));
      document.head.append(script);
    });
    shared.loaded = page.Plotly as Plotly;
  } finally {
    page.define = define;
    if (theirs) page.Plotly = theirs;
    URL.revokeObjectURL(url);
  }
  shared.resolve(shared.loaded);
}

/** A plotly template in JupyterLab's colours, or others. */
export function template({ dark, text, soft, paper, font } = theme()) {
  const nothing = "rgba(0,0,0,0)";
  const [grid, line] = (dark ? [0.1, 0.28] : [0.08, 0.25]).map((a) => `rgba(${dark ? "255,255,255" : "0,0,0"},${a})`);
  const axis = {
    gridcolor: grid, zerolinecolor: line, linecolor: line, showline: true, ticks: "outside", ticklen: 3,
    spikecolor: soft, spikethickness: 1,
    tickcolor: line, tickfont: { color: soft, size: 11 }, title: { font: { color: soft, size: 12 } },
  };
  return {
    layout: {
      paper_bgcolor: paper, plot_bgcolor: paper, font: { color: text, family: font }, xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: text } },
      legend: { bgcolor: nothing, font: { color: text, size: 12 } },
      modebar: { bgcolor: nothing, color: soft, activecolor: text },
    },
  };
}

const CONFIG = {
  displaylogo: false, responsive: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d", "sendChartToCloud"],
};

/** Size of a saved picture, in pixels of the page. */
const SAVED = { width: 1000, height: 460 };

/** Wait until the page has nothing more urgent to do, or a fifth of a second (Safari cannot tell). */
const idle = () => new Promise<unknown>((done) => {
  if ("requestIdleCallback" in window) requestIdleCallback(done, { timeout: 200 });
  else setTimeout(done);
});

function askForLibrary(model: Model) {
  const shared = library();
  if (shared.loaded || performance.now() - shared.asked < RETRY_MS) return;
  shared.asked = performance.now();
  model.send({ library: 1 });
}

/** Rows of a flat array, as plotly wants them. */
export const rows = <Of extends { subarray(from: number, to: number): Of }>(flat: Of, [n, m]: number[]) => (
  m === undefined ? flat : Array.from({ length: n }, (_, row) => flat.subarray(row * m, (row + 1) * m)));

export default widget<View, Message>("p4-plot", (line, model) => {
  let figure: Figure, version = 0;
  askForLibrary(model);
  // The kernel may be busy, or die before it answers; whichever plot is alive asks again.
  const timer = setInterval(() => (library().loaded ? clearInterval(timer) : askForLibrary(model)), RETRY_MS);
  library().promise.then(line.repaint);

  /** Save the curves, whether or not the page that they stand on is the one that is seen. */
  function savePicture(filename: string) {
    if (!figure) return;
    const layout = { ...structuredClone(figure.layout), ...SAVED, template: template() };
    const options = { format: "png", scale: 2, filename, ...SAVED };
    library().loaded?.downloadImage({ data: figure.data, layout }, options).catch(line.fail);
  }

  return {
    receive(message, buffers) {
      if (message.library) {
        load(buffers[0]).catch(line.fail);
        return;
      }
      if (message.save) savePicture(message.save);
      figure = message.figure ?? figure;
      if (!figure) return;
      for (const [trace, name, value] of message.values ?? []) figure.data[trace][name] = value;
      message.arrays?.forEach(([trace, name, type, shape], i) => {
        figure.data[trace][name] = rows(typed(buffers[i], type) as Float64Array, shape);
      });
      if (message.layout) figure.layout = message.layout;
      if (message.figure || message.layout) version += 1;
    },
    ready: () => true,
    build(el) {
      const plot = make("div"), note = make("div", "p4-note", "Loading the plot…");
      el.append(plot, note);
      return { el, plot, note, key: "", size: "" };
    },
    async paint(views) {
      const Plotly = library().loaded;
      if (!figure || !Plotly) return false; // the views paint as soon as it is there
      await idle(); // what moves fast goes first
      for (const view of views) {
        if (!isVisible(view.el)) continue;
        const size = { width: view.el.clientWidth, height: view.el.clientHeight };
        const wide = `${size.width} x ${size.height}`, resized = view.size !== "" && view.size !== wide;
        const key = [version, isDark(), document.body.dataset.jpThemeName, wide].join(), same = view.key === key;
        Object.assign(view, { key, size: wide });
        if (!same) {
          const layout = { ...structuredClone(figure.layout), ...size, template: template() };
          await Plotly.react(view.plot, figure.data, layout, CONFIG);
        }
        // For new data alone this is about a third cheaper. After a new size react leaves a legend that now has other
        // lines where the one before had room.
        if (same || resized) await Plotly.redraw(view.plot);
        view.note.hidden = true;
      }
    },
    leave: ({ plot }) => library().loaded?.purge(plot),
  };
});
