// Shared by all widgets, put in front of their own file: one conversation with the kernel per model and page.
//
// browser -> kernel   {hello: 1, ...}  again and again until answered; {error: text};
//                     {acks: {name: [id, held]}}  the newest frame that was shown, by channel, and for how many
//                     milliseconds its acknowledgement waited for others
// kernel -> browser   {frame: id, awaited: whether its acknowledgement is waited for, ...} and buffers;
//                     {channel: [kernel, name]} in the first

const RETRY_MS = 3000;
const GATHER_MS = 1500; // acknowledgements that nobody waits for wait so long for others
const SOON_MS = 40; // those that the kernel waits for, and those of a slow page
const QUICK_MS = 250; // from the arrival of a frame to its picture; the kernel takes 0.3 s for slow

/** Wait for the next animation frame; a hidden page has none, so do not wait for ever. */
function nextFrame() {
  return new Promise((done) => {
    const timer = setTimeout(done, 250);
    requestAnimationFrame(() => { clearTimeout(timer); done(); });
  });
}

/** Wait until the page has nothing more urgent to do, or a fifth of a second (Safari cannot tell). */
function idle() {
  return new Promise((done) => (window.requestIdleCallback ?? setTimeout)(done, { timeout: 200 }));
}

/**
 * Acknowledge a frame, in one message with those of other channels and of the next moments: for every message the kernel
 * reports busy and idle, and JupyterLab redraws its toolbars for both.
 */
function acknowledge(model, [kernel, name], id, soon) {
  const all = (window.__p4labAcks ??= new Map());
  if (!all.has(kernel)) all.set(kernel, { frames: {}, due: Infinity });
  const waiting = all.get(kernel), now = performance.now(), due = now + (soon ? SOON_MS : GATHER_MS);
  waiting.frames[name] = [id, now];
  waiting.model = model; // the newest: those of a cell that ran before may be closed
  if (due >= waiting.due) return;
  clearTimeout(waiting.timer);
  waiting.due = due;
  waiting.timer = setTimeout(() => {
    all.delete(kernel);
    const end = performance.now(), shown = Object.entries(waiting.frames);
    const acks = Object.fromEntries(shown.map(([key, [frame, at]]) => [key, [frame, end - at]]));
    try {
      waiting.model.send({ acks });
    } catch (error) { // the lab was closed or its kernel restarted in the meantime: nobody waits for these
      console.debug("acknowledgements that nobody waits for", error);
    }
  }, due - now);
}

/** The elements that each `repaint` draws on, as `watch` was told. */
const drawnOn = new WeakMap();

/**
 * Connect a model. `receive(message, buffers)` takes a frame into the state, `paint()` shows the newest state on all views
 * and returns false if it could not yet. Frames that arrive while one is painted are painted together; each is
 * acknowledged once it is seen (or cannot be seen), and `data-frames` of the elements it was drawn on tells its number.
 */
function connect(model, { receive, paint, hello = () => ({}) }) {
  let answered = false, newest = 0, newestAt = 0, acked = 0, painting = false, dirty = false, awaited = false, channel = null;

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
        const id = newest, arrived = newestAt;
        await nextFrame();
        const drawn = (await paint()) !== false;
        for (const el of drawnOn.get(repaint) ?? []) {
          if (drawn && id > (el.dataset.frames ?? 0) && isVisible(el)) el.dataset.frames = id;
        }
        if (id <= acked) continue;
        acknowledge(model, channel, (acked = id), awaited || performance.now() - arrived > QUICK_MS);
        awaited = id < newest && awaited;
      }
    } catch (error) {
      fail(error);
    } finally {
      painting = false;
    }
  }

  model.on("msg:custom", (message, buffers) => {
    channel = message.channel ?? channel;
    if (message.frame && !channel) return; // this page came in the middle of a conversation: the answer brings everything
    answered ||= channel !== null;
    awaited ||= message.awaited;
    try {
      receive(message, buffers);
    } catch (error) {
      fail(error);
    }
    if (message.frame > newest) [newest, newestAt] = [message.frame, performance.now()];
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
  if (!drawnOn.has(changed)) drawnOn.set(changed, new Set());
  drawnOn.get(changed).add(el);
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
    drawnOn.get(changed).delete(el);
    sizes.disconnect();
    themes.disconnect();
    document.removeEventListener("visibilitychange", changed);
  };
}

const isVisible = (el) => el.isConnected && el.offsetParent !== null && el.clientWidth > 0 && !document.hidden;
