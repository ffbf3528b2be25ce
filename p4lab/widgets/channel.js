// Shared by all widgets, put in front of their own file: one conversation with the kernel per model and page.
//
// browser -> kernel   {hello: 1, ...}  again and again until answered; {ack: id} for every frame; {error: text}
// kernel -> browser   {frame: id, ...} and buffers

const RETRY_MS = 3000;

/** Wait for the next animation frame; a hidden page has none, so do not wait for ever. */
function nextFrame() {
  return new Promise((done) => {
    const timer = setTimeout(done, 250);
    requestAnimationFrame(() => { clearTimeout(timer); done(); });
  });
}

/**
 * Connect a model. `receive(message, buffers)` takes a frame into the state, `paint()` shows the newest state on all views.
 * Frames that arrive while one is painted are painted together; each is acknowledged once it is seen (or cannot be seen).
 */
function connect(model, { receive, paint, hello = () => ({}) }) {
  let answered = false, newest = 0, acked = 0, painting = false, dirty = false;

  const fail = (error) => {
    console.error(error);
    model.send({ error: String(error?.stack ?? error) });
  };

  async function repaint() {
    dirty = true;
    if (painting) return;
    painting = true;
    try {
      while (dirty) {
        dirty = false;
        const id = newest;
        await nextFrame();
        await paint();
        if (id > acked) model.send({ ack: (acked = id) });
      }
    } catch (error) {
      fail(error);
    } finally {
      painting = false;
    }
  }

  model.on("msg:custom", (message, buffers) => {
    answered = true;
    try {
      receive(message, buffers);
    } catch (error) {
      fail(error);
    }
    newest = Math.max(newest, message.frame ?? 0);
    repaint();
  });

  const greet = () => { if (!answered) model.send({ hello: 1, ...hello() }); };
  greet();
  const timer = setInterval(() => (answered ? clearInterval(timer) : greet()), RETRY_MS);
  return { repaint, fail, again: () => { answered = false; greet(); } };
}

/** Copy a buffer into a typed array (the view may be unaligned, and is reused). */
const TYPES = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, i4: Int32Array };
function typed(view, dtype) {
  return new TYPES[dtype](view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

const isDark = () => document.body.dataset.jpThemeLight === "false";
const cssVariable = (name, fallback) => getComputedStyle(document.body).getPropertyValue(name).trim() || fallback;

/** Call `changed` when the element gets another size, becomes visible, or the page another theme; returns the undo. */
function watch(el, changed) {
  let width = 0, height = 0;
  const sizes = new ResizeObserver(() => {
    if (el.clientWidth === width && el.clientHeight === height) return;
    [width, height] = [el.clientWidth, el.clientHeight];
    changed();
  });
  sizes.observe(el);
  const themes = new MutationObserver(changed);
  themes.observe(document.body, { attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
  document.addEventListener("visibilitychange", changed);
  return () => {
    sizes.disconnect();
    themes.disconnect();
    document.removeEventListener("visibilitychange", changed);
  };
}

const isVisible = (el) => el.isConnected && el.offsetParent !== null && el.clientWidth > 0 && !document.hidden;
