// A panel of controls and readouts, described by the kernel; it reports what was touched and shows what it is told.

import { make } from "./dom.ts";
import { type Item, MAKERS, type Maker } from "./items.ts";
import { listen } from "./keys.ts";
import { widget } from "./widget.ts";

interface Spec { direction: string; groups: { label: string; items: Item[]; page: number | null }[] }
/** The content of a `download` is in the first buffer. */
interface Message {
  spec?: Spec; values?: Record<string, unknown>; disabled?: string[]; pending?: string[]; download?: string;
}

function saveFile(name: string, content: DataView) {
  const link = make("a");
  link.href = URL.createObjectURL(new Blob([content as BlobPart]));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export default widget("p4-panel", (_, model) => {
  let spec: Spec, values: Record<string, unknown> = {}, disabled: string[] = [], pending: string[] = [];

  function build(el: HTMLElement) {
    const boxes: HTMLElement[] = [], shows: ((value: never) => void)[] = [];
    const items = spec.groups.flatMap((group) => group.items);
    el.dataset.direction = spec.direction;
    el.replaceChildren(...spec.groups.map((group) => {
      const section = make("section", "p4-group");
      if (group.page !== null) section.classList.add(`p4-side-${group.page}`);
      if (group.label) section.append(make("h3", "", group.label));
      for (const item of group.items) {
        const { kind, name } = item, box = make("div", `p4-item p4-item-${kind}`);
        box.dataset.name = name;
        box.dataset.look = item.look;
        if (item.color) box.style.borderLeftColor = item.color;
        boxes.push(box);
        shows.push((MAKERS[kind] as Maker<never>)(item, box, (value) => model.send({ set: [name, value] }),
          (file) => model.send({ upload: name }, undefined, [file])));
        section.append(box);
      }
      return section;
    }), make("div", "p4-hint", "The kernel is gone. Run this cell again to get a living lab."));
    let flags = "";
    const title = items.find(({ kind }) => kind === "title");
    return () => {
      const lab = title && el.closest<HTMLElement>(".p4-lab");
      if (lab) listen(lab, title.label);
      items.forEach(({ name }, i) => { if (name in values) shows[i](values[name] as never); });
      const now = JSON.stringify([pending, disabled]);
      if (flags === now) return;
      flags = now;
      items.forEach(({ name }, i) => {
        boxes[i].dataset.pending = String(pending.includes(name));
        for (const node of boxes[i].querySelectorAll<HTMLInputElement>("button, input, select")) {
          if (!node.closest("table")) node.disabled = disabled.includes(name);
        }
      });
    };
  }

  return {
    unseen: true, // values are cheap to write
    receive(message: Message, buffers) {
      if (message.download) saveFile(message.download, buffers[0]);
      spec = message.spec ?? spec;
      values = message.values ?? values;
      disabled = message.disabled ?? disabled;
      pending = message.pending ?? pending;
    },
    ready: () => Boolean(spec),
    build,
    paint: (pages: ReturnType<typeof build>[]) => { for (const show of pages) show(); },
  };
});
