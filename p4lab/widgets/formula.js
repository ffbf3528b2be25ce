// Equations whose matrices are filled with the numbers of this moment.

const FLASH_MS = 1200;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Everything that a page must be built anew for; numbers alone are filled in. */
const formOf = (rows) => JSON.stringify(rows.map((row) => row.map((part) => (part.rows ? [part.symbol, part.rows.map((r) => r.length)] : part))));

function build(el, rows) {
  const cells = [];
  el.replaceChildren(...rows.map((row) => {
    const line = make("div", "p4-equation");
    line.setAttribute("role", "math");
    line.append(...row.map((part) => {
      if (!part.rows) return make("span", "p4-sign", part);
      const term = make("span", "p4-term"), numbers = make("span", part.matrix ? "p4-matrix" : "p4-number-term");
      numbers.style.gridTemplateColumns = `repeat(${part.rows[0].length}, auto)`;
      const entries = part.rows.flat().map(() => make("span"));
      numbers.append(...entries);
      term.append(numbers, make("i", "", part.symbol));
      cells.push({ term, numbers, entries, told: null });
      return term;
    }));
    return line;
  }));
  return cells;
}

function fill(view, rows) {
  const parts = rows.flat().filter((part) => part.rows);
  view.cells.forEach((cell, k) => {
    const { rows: values, color, flash } = parts[k], told = values.join();
    cell.term.dataset.color = color;
    if (cell.told === told) return;
    values.flat().forEach((text, i) => { cell.entries[i].textContent = text; });
    if (flash && cell.told !== null && !matchMedia("(prefers-reduced-motion: reduce)").matches) {
      cell.numbers.animate([{ backgroundColor: "rgb(255 170 60 / 0.65)" }, { backgroundColor: "rgb(255 170 60 / 0)" }], FLASH_MS);
    }
    cell.told = told;
  });
  const read = (part) => (part.rows ? `${part.symbol} (${part.rows.map((row) => row.join(", ")).join("; ")})` : part);
  rows.forEach((row, k) => view.el.children[k].setAttribute("aria-label", row.map(read).join(" ")));
}

export default () => {
  const views = new Map();
  let rows = [], line = null;

  function paint() {
    for (const [el, view] of views) {
      if (!isVisible(el)) continue;
      const form = formOf(rows);
      if (view.form !== form) Object.assign(view, { form, cells: build(el, rows) });
      fill(view, rows);
    }
  }

  function initialize({ model }) {
    line = connect(model, { receive: (message) => { rows = message.rows ?? rows; }, paint });
  }

  function render({ el }) {
    el.classList.add("p4-formula");
    views.set(el, { el, form: null, cells: [] });
    const stop = watch(el, line.repaint);
    line.repaint();
    return () => { stop(); views.delete(el); };
  }

  return { initialize, render };
};
