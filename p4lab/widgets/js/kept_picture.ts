// When a picture of the lab is taken for the notebook: once a run stands still, and now and then while it goes on.

import { isVisible } from "./channel.ts";
import { photo } from "./photo.ts";
import { widget } from "./widget.ts";

/** Milliseconds without news after which everything is on the page that the kernel had to show. */
const SETTLED_MS = 1200;
const STANDING = ["paused", "failed"];

interface Message { state?: string; limit?: number }

/** Whether a picture is wanted, when the run was in a state before and is in one now. */
export const wanted = (before: string, now: string) => (
  STANDING.includes(now) || (now === "running" && before === "running"));

type Lab = HTMLElement | null;

export default widget<Lab, Message>("p4-kept", (line, model) => {
  let state = "", limit = 0, timer: ReturnType<typeof setTimeout>, owed = false, busy = false;
  let labs: Lab[] = [];

  /** Take the picture as soon as nothing new comes and the lab is seen. */
  function soon() {
    clearTimeout(timer);
    if (owed) timer = setTimeout(() => { take().catch(line.fail); }, SETTLED_MS);
  }

  async function take() {
    const lab = labs.find((each) => each && isVisible(each));
    if (busy || !lab) return;
    [owed, busy] = [false, true];
    try {
      const png = await photo(lab, limit);
      model.send({ picture: png.byteLength }, undefined, [png]);
    } finally {
      busy = false;
      soon();
    }
  }

  const sizes = new ResizeObserver(soon); // a notebook that comes to the front
  document.addEventListener("visibilitychange", soon);
  return {
    unseen: true,
    receive(message) {
      limit = message.limit ?? limit;
      if (message.state === undefined) return;
      owed = message.state !== "idle" && (wanted(state, message.state) || owed);
      state = message.state;
      soon();
    },
    ready: () => true,
    build(el) {
      // Other clients than JupyterLab do not hide the picture behind the living lab: it would push that down.
      const lab = el.closest<HTMLElement>(".jp-OutputArea-child .p4-lab");
      if (lab) sizes.observe(lab);
      return lab;
    },
    paint(pages) { labs = pages; },
    leave(lab) { if (lab) sizes.unobserve(lab); },
    stop() {
      clearTimeout(timer);
      sizes.disconnect();
      document.removeEventListener("visibilitychange", soon);
    },
  };
});
