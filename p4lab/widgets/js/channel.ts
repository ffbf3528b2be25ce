// One conversation with the kernel per model and page.
//
// browser -> kernel   {hello: 1}  again and again until answered; {error: text};
//                     {acks: {name: [id, held]}}  the newest frame that was shown, by channel, and for how many
//                     milliseconds its acknowledgement waited for others
// kernel -> browser   {frame: id, awaited: whether its acknowledgement is waited for, ...} and buffers;
//                     {channel: [kernel, name]} in the first

export const RETRY_MS = 3000;
const GATHER_MS = 1500; // acknowledgements that nobody waits for wait so long for others
const SOON_MS = 40; // those that the kernel waits for, and those of a slow page
const QUICK_MS = 250; // from the arrival of a frame to its picture; the kernel takes 0.3 s for slow

/** What widgets use of the model that anywidget gives them; `fixed` says that nobody would hear of a moved point. */
export interface Model {
  fixed?: boolean;
  send(message: object, callbacks?: object, buffers?: ArrayBuffer[]): void;
  on(event: "msg:custom", hear: (message: Envelope, buffers: DataView[]) => void): void;
}

interface Envelope { channel?: [string, string]; frame?: number; awaited?: boolean }

/** What a widget makes of its conversation. */
interface Ends<Message> { receive(message: Message, buffers: DataView[]): void; paint(): unknown }
export type Line = ReturnType<typeof connect>;

/** Acknowledgements of one kernel's frames that wait for others. */
interface Waiting { frames: Map<string, [number, number]>; due: number; timer?: number; model: Model }
const page = globalThis as { __p4labAcks?: Map<string, Waiting> }; // each widget has a module of its own

/** Wait for the next animation frame; a hidden page has none, so do not wait for ever. */
function nextFrame() {
  return new Promise<void>((done) => {
    const timer = setTimeout(done, 250);
    requestAnimationFrame(() => { clearTimeout(timer); done(); });
  });
}

/**
 * Acknowledge a frame, in one message with those of other channels and of the next moments: for every message the
 * kernel reports busy and idle, and JupyterLab redraws its toolbars for both.
 */
function acknowledge(model: Model, [kernel, name]: [string, string], id: number, soon: boolean) {
  page.__p4labAcks ??= new Map();
  const all = page.__p4labAcks, now = performance.now(), due = now + (soon ? SOON_MS : GATHER_MS);
  const waiting: Waiting = all.get(kernel) ?? { frames: new Map(), due: Infinity, model };
  all.set(kernel, waiting);
  waiting.frames.set(name, [id, now]);
  waiting.model = model; // the newest: those of a cell that ran before may be closed
  if (due >= waiting.due) return;
  clearTimeout(waiting.timer);
  waiting.due = due;
  waiting.timer = setTimeout(() => {
    all.delete(kernel);
    const end = performance.now(), frames = [...waiting.frames];
    const acks = Object.fromEntries(frames.map(([key, [frame, at]]) => [key, [frame, end - at]]));
    try {
      waiting.model.send({ acks });
    } catch (error) { // the lab was closed or its kernel restarted in the meantime: nobody waits for these
      console.debug("acknowledgements that nobody waits for", error);
    }
  }, due - now);
}

/**
 * Connect a model. `receive(message, buffers)` takes a frame into the state, `paint()` shows the newest state on all
 * views and returns false if it could not yet. Frames that arrive while one is painted are painted together; each is
 * acknowledged once it is seen (or cannot be seen), and `data-frames` of what is watched tells its number.
 */
export function connect<Message>(model: Model, { receive, paint }: Ends<Message>) {
  let answered = false, newest = 0, newestAt = 0, acked = 0, painting = false, dirty = false, awaited = false;
  let channel: [string, string] | null = null;
  const places = new Set<HTMLElement>();

  function fail(error: unknown) {
    console.error(error);
    model.send({ error: String((error as Error | null)?.stack ?? error) });
  }

  async function repaint() {
    dirty = true;
    if (painting) return;
    painting = true;
    try {
      while (dirty) {
        dirty = false;
        const id = newest, arrived = newestAt;
        await nextFrame();
        const complete = (await paint()) !== false;
        for (const el of places) {
          if (complete && id > Number(el.dataset.frames ?? 0) && isVisible(el)) el.dataset.frames = String(id);
        }
        if (id <= acked || !channel) continue;
        acked = id;
        acknowledge(model, channel, id, awaited || performance.now() - arrived > QUICK_MS);
        awaited = id < newest && awaited;
      }
    } catch (error) {
      fail(error);
    } finally {
      painting = false;
    }
  }

  /** Repaint when an element gets another size, becomes visible, or the page another theme; returns the undo. */
  function watch(el: HTMLElement) {
    let width = 0, height = 0;
    places.add(el);
    const sizes = new ResizeObserver(() => {
      if (el.clientWidth === width && el.clientHeight === height) return;
      [width, height] = [el.clientWidth, el.clientHeight];
      repaint();
    });
    sizes.observe(el);
    const themes = new MutationObserver(repaint);
    themes.observe(document.body, { attributeFilter: ["data-jp-theme-light", "data-jp-theme-name"] });
    document.addEventListener("visibilitychange", repaint);
    return () => {
      places.delete(el);
      sizes.disconnect();
      themes.disconnect();
      document.removeEventListener("visibilitychange", repaint);
    };
  }

  model.on("msg:custom", (message, buffers) => {
    channel = message.channel ?? channel;
    // This page came in the middle of a conversation: the answer to its greeting brings everything.
    if (message.frame && !channel) return;
    answered ||= channel !== null;
    awaited ||= Boolean(message.awaited);
    try {
      receive(message as Message, buffers);
    } catch (error) {
      fail(error);
    }
    if (message.frame && message.frame > newest) [newest, newestAt] = [message.frame, performance.now()];
    repaint();
  });

  const greet = () => { if (!answered) model.send({ hello: 1 }); };
  greet();
  const timer = setInterval(() => (answered ? clearInterval(timer) : greet()), RETRY_MS);
  return { repaint, fail, watch, again: () => { answered = false; greet(); } };
}

export const isVisible = (el: HTMLElement) => (
  el.isConnected && el.offsetParent !== null && el.clientWidth > 0 && !document.hidden);

const TYPES = { f4: Float32Array, f8: Float64Array, u1: Uint8Array, i4: Int32Array };

/** Copy a buffer into a typed array (the view may be unaligned, and is reused). */
export function typed<Type extends keyof typeof TYPES>(view: DataView, type: Type) {
  const bytes = view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength);
  return new TYPES[type](bytes as ArrayBuffer) as InstanceType<(typeof TYPES)[Type]>;
}
