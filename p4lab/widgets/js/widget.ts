// What all widgets have in common: one conversation for all places on the page where the widget is shown.

import { connect, isVisible, type Line, type Model } from "./channel.ts";

/** One widget. A `Page` is what it has drawn in one place. */
export interface Part<Page, Message> {
  receive(message: Message, buffers: DataView[]): void;
  /** Whether there is anything to show. */
  ready(): boolean;
  build(el: HTMLElement): Page;
  /** Show the newest state where it can be seen (`unseen`: everywhere); false if that must wait. */
  paint(pages: Page[]): unknown;
  leave?(page: Page): void;
  stop?(): void;
  unseen?: boolean;
}

/** Return what a widget's module exports; `start` makes a part, `seen` gives the pages that can be seen. */
export const widget = <Page, Message>(
  classes: string, start: (line: Line, model: Model, seen: () => Page[]) => Part<Page, Message>,
) => () => {
  const pages = new Map<HTMLElement, Page | null>();
  let line: Line, part: Part<Page, Message>;

  function seen() {
    const places = [...pages.keys()].filter((el) => part.unseen || isVisible(el));
    return places.map((el) => {
      const page = pages.get(el) ?? part.build(el);
      pages.set(el, page);
      return page;
    });
  }

  return {
    initialize({ model }: { model: Model }) {
      line = connect<Message>(model, {
        receive: (message, buffers) => part.receive(message, buffers),
        paint: () => part.ready() && part.paint(seen()),
      });
      part = start(line, model, seen);
      return part.stop;
    },
    render({ el }: { el: HTMLElement }) {
      const unwatch = part.unseen ? null : line.watch(el);
      el.classList.add(...classes.split(" "));
      pages.set(el, null);
      line.repaint();
      return () => {
        const page = pages.get(el);
        unwatch?.();
        if (page) part.leave?.(page);
        pages.delete(el);
      };
    },
  };
};
