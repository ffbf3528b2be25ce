// plotly.js, fed with figures once and with arrays from then on. The library comes from the kernel, once per page.

const LIBRARY = "__p4labPlotly";

/** The page's one promise of plotly.js, and when it was last asked for. */
function library() {
  if (!window[LIBRARY]) {
    const shared = (window[LIBRARY] = { asked: -Infinity, loaded: null });
    shared.promise = new Promise((resolve) => { shared.resolve = resolve; });
  }
  return window[LIBRARY];
}

async function load(gzipped) {
  const shared = library();
  if (shared.loaded) return;
  const stream = new Blob([gzipped]).stream().pipeThrough(new DecompressionStream("gzip"));
  const url = URL.createObjectURL(new Blob([await new Response(stream).blob()], { type: "text/javascript" }));
  // plotly is a UMD module: with JupyterLab's `define` in sight it would register there and leave no global.
  const { define, Plotly: theirs } = window;
  window.define = undefined;
  const script = document.createElement("script");
  script.src = url;
  try {
    await new Promise((resolve, reject) => {
      script.onload = resolve;
      script.onerror = () => reject(new Error("plotly.js did not load"));
      document.head.append(script);
    });
    shared.loaded = window.Plotly;
  } finally {
    window.define = define;
    if (theirs) window.Plotly = theirs;
    URL.revokeObjectURL(url);
  }
  shared.resolve(shared.loaded);
}

/** A plotly template in JupyterLab's colours. */
function theme() {
  const text = cssVariable("--jp-ui-font-color1", "#333");
  const soft = cssVariable("--jp-ui-font-color2", "#666");
  const grid = isDark() ? "rgba(255,255,255,0.10)" : "rgba(0,0,0,0.08)";
  const line = isDark() ? "rgba(255,255,255,0.28)" : "rgba(0,0,0,0.25)";
  const ground = cssVariable("--jp-layout-color1", "#fff");
  const axis = {
    gridcolor: grid, zerolinecolor: line, linecolor: line, showline: true, ticks: "outside", ticklen: 3,
    tickcolor: line, tickfont: { color: soft, size: 11 }, title: { font: { color: soft, size: 12 } },
  };
  return {
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: text, family: cssVariable("--jp-ui-font-family", "sans-serif") },
      xaxis: axis, yaxis: axis,
      hoverlabel: { bgcolor: ground, bordercolor: line, font: { color: text } },
      legend: { bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 12 } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: soft, activecolor: text },
    },
  };
}

const CONFIG = {
  displaylogo: false, responsive: false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
};

export default () => {
  const views = new Map();
  let figure = null, version = 0, line = null;

  function receive(message, buffers) {
    if (message.library) {
      load(buffers[0]).catch(line.fail);
      return;
    }
    if (message.save) savePicture(message.save);
    if (message.figure) figure = message.figure;
    if (!figure) return;
    message.values?.forEach(([trace, key, value]) => { figure.data[trace][key] = value; });
    message.arrays?.forEach(([trace, key, dtype, shape], i) => {
      const flat = typed(buffers[i], dtype);
      figure.data[trace][key] = shape.length < 2
        ? flat : Array.from({ length: shape[0] }, (_, row) => flat.subarray(row * shape[1], (row + 1) * shape[1]));
    });
    if (message.layout) figure.layout = message.layout;
    if (message.figure || message.layout) version += 1;
  }

  function savePicture(filename) {
    const view = [...views].find(([el]) => isVisible(el))?.[1];
    if (!view?.key) return;
    library().loaded.downloadImage(view.plot, { format: "png", scale: 2, filename }).catch(line.fail);
  }

  async function paint() {
    const Plotly = library().loaded;
    if (!figure || !Plotly) return false; // the views paint as soon as it is there
    await idle(); // what moves fast goes first
    for (const [el, view] of views) {
      if (!isVisible(el)) continue;
      const size = { width: el.clientWidth, height: el.clientHeight };
      const key = [version, isDark(), document.body.dataset.jpThemeName, size.width, size.height].join();
      if (view.key === key) {
        await Plotly.redraw(view.plot); // new data only: about a third cheaper than react
      } else {
        view.key = key;
        await Plotly.react(view.plot, figure.data, { ...structuredClone(figure.layout), ...size, template: theme() }, CONFIG);
      }
      view.note.hidden = true;
    }
  }

  function askForLibrary(model) {
    const shared = library();
    if (shared.loaded || performance.now() - shared.asked < RETRY_MS) return;
    shared.asked = performance.now();
    model.send({ library: 1 });
  }

  function initialize({ model }) {
    line = connect(model, { receive, paint });
    askForLibrary(model);
    // The kernel may be busy, or die before it answers; whichever plot is alive asks again.
    const timer = setInterval(() => (library().loaded ? clearInterval(timer) : askForLibrary(model)), RETRY_MS);
    library().promise.then(line.repaint);
  }

  function render({ el }) {
    el.classList.add("p4-plot");
    const plot = document.createElement("div");
    const note = document.createElement("div");
    note.className = "p4-note";
    note.textContent = "Loading the plot…";
    el.append(plot, note);
    views.set(el, { plot, note, key: null });
    const stop = watch(el, line.repaint);
    line.repaint();
    return () => {
      stop();
      views.delete(el);
      library().loaded?.purge(plot);
    };
  }

  return { initialize, render };
};
