// Equations whose matrices are filled with the numbers of this moment.

import { make, still } from "./dom.ts";
import { widget } from "./widget.ts";

const FLASH_MS = 1200;
const FLASH = [{ backgroundColor: "rgb(255 170 60 / 0.65)" }, { backgroundColor: "rgb(255 170 60 / 0)" }];

/** A symbol with its numbers, as text. */
interface Term { symbol: string; rows: string[][]; color: string; flash: boolean; matrix: boolean }
type Equation = (Term | string)[];
interface Cell { term: HTMLElement; numbers: HTMLElement; entries: HTMLElement[]; text: string | null }

const isTerm = (part: Term | string): part is Term => typeof part !== "string";

/** Everything that a page must be built anew for; numbers alone are filled in. */
export const formOf = (rows: Equation[]) => JSON.stringify(rows.map((row) => row.map((part) => (
  isTerm(part) ? [part.symbol, part.rows.map((r) => r.length)] : part))));

/** An equation as it is read aloud. */
export const spoken = (row: Equation) => row.map((part) => (
  isTerm(part) ? `${part.symbol} (${part.rows.map((r) => r.join(", ")).join("; ")})` : part)).join(" ");

function build(el: HTMLElement, rows: Equation[]) {
  const cells: Cell[] = [];
  el.replaceChildren(...rows.map((row) => {
    const line = make("div", "p4-equation");
    line.setAttribute("role", "math");
    line.append(...row.map((part) => {
      if (!isTerm(part)) return make("span", "p4-sign", part);
      const term = make("span", "p4-term"), numbers = make("span", part.matrix ? "p4-matrix" : "p4-number-term");
      numbers.style.gridTemplateColumns = `repeat(${part.rows[0].length}, auto)`;
      const entries = part.rows.flat().map(() => make("span"));
      numbers.append(...entries);
      term.append(numbers, make("i", "", part.symbol));
      cells.push({ term, numbers, entries, text: null });
      return term;
    }));
    return line;
  }));
  return cells;
}

function fill(el: HTMLElement, cells: Cell[], rows: Equation[]) {
  const terms = rows.flat().filter(isTerm);
  cells.forEach((cell, k) => {
    const { rows: values, color, flash } = terms[k], text = values.join();
    cell.term.dataset.color = color;
    if (cell.text === text) return;
    values.flat().forEach((number, i) => { cell.entries[i].textContent = number; });
    if (flash && cell.text !== null && !still()) cell.numbers.animate(FLASH, FLASH_MS);
    cell.text = text;
  });
  rows.forEach((row, k) => { el.children[k].setAttribute("aria-label", spoken(row)); });
}

export default widget("p4-formula", () => {
  let rows: Equation[] = [];
  return {
    receive(message: { rows?: Equation[] }) { rows = message.rows ?? rows; },
    ready: () => true,
    build: (el) => ({ el, form: "", cells: [] as Cell[] }),
    paint(pages) {
      const form = formOf(rows);
      for (const page of pages) {
        if (page.form !== form) Object.assign(page, { form, cells: build(page.el, rows) });
        fill(page.el, page.cells, rows);
      }
    },
  };
});
