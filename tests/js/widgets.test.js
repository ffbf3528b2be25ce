// Whole widgets, as anywidget uses them: those that need no canvas.

import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import formula, { formOf, spoken } from "../../p4lab/widgets/js/formula.ts";
import { tiled } from "../../p4lab/widgets/js/image_grid.ts";
import { rows } from "../../p4lab/widgets/js/live_plot.ts";
import panel from "../../p4lab/widgets/js/panel.ts";
import { closePage, kernel, openPage } from "./page.js";

let page;
beforeEach(() => { page = openPage(); });
afterEach(closePage);

/** Show a widget in a place on the page. */
function show(module, places = 1) {
  const end = kernel(), widget = module(), els = Array.from({ length: places }, () => document.createElement("div"));
  page.body.append(...els);
  widget.initialize({ model: end.model });
  const leave = els.map((el) => widget.render({ el }));
  end.take();
  return { ...end, end, els, el: els[0], leave };
}

const ITEM = {
  name: "item", label: "Item", unit: "", help: "what it does", choices: [], texts: [], live: true, look: "plain",
};

/** A panel with one item, and what the kernel hears of it. */
async function panelOf(item, value) {
  const shown = show(panel), box = () => shown.el.children[0].children[0];
  const spec = { direction: "row", groups: [{ label: "", items: [{ ...ITEM, ...item }] }] };
  const tell = async (value, more = {}) => {
    shown.end.show({ values: { item: value }, ...more });
    await page.wait(20);
  };
  await tell(value, { spec });
  const find = (selector) => box().querySelectorAll(selector), [control] = find("input, select, button");
  const heard = () => shown.end.take().map((message) => message.set?.[1]);
  return { ...shown, tell, find, box, control, heard };
}

const slider = { kind: "slider", choices: [0, 0.01, 0.1], texts: ["none", "1 %", "10 %"], unit: "of all" };

test("a slider shows the nearest choice and tells the one that is chosen", async () => {
  const { control, find, heard } = await panelOf(slider, 0.09);
  assert.deepEqual([control.value, control.max, find("output")[0].textContent], ["2", "2", "10 % of all"]);
  control.value = "1";
  control.hear("input");
  assert.deepEqual([heard(), find("output")[0].textContent], [[0.01], "1 % of all"]);
});

test("a slider is not moved under the user's finger", async () => {
  const { control, tell } = await panelOf(slider, 0);
  control.value = "2";
  control.hear("input");
  await tell(0);
  assert.equal(control.value, "2");
  await page.wait(1000);
  assert.equal(control.value, "0");
});

test("a slider that plays tells each place on its way", async () => {
  const { find, heard } = await panelOf({ ...slider, look: "play" }, 0), [play] = find("button");
  assert.equal(play.textContent, "▶ Play");
  play.click();
  assert.equal(play.textContent, "❚❚ Stop");
  await page.wait(400);
  assert.deepEqual([heard(), play.textContent], [[0, 0.01, 0.1], "▶ Play"]);
});

test("without that look a slider has no button", async () => {
  const { find } = await panelOf(slider, 0);
  assert.equal(find("button").length, 0);
});

const METHODS = { kind: "choice", choices: ["adam", null], texts: ["Adam", "none"] };
for (const [item, first, second, act] of [
  [METHODS, "adam", null, (node) => { node.value = "1"; node.hear("change"); }],
  [{ kind: "toggle" }, false, true, (node) => { node.checked = true; node.hear("change"); }],
  [{ kind: "number" }, 3, 12, (node) => { node.focus(); node.value = "12"; node.blur(); }],
  [{ kind: "text" }, "a", "b", (node) => { node.focus(); node.value = "b"; node.blur(); }],
  [{ kind: "button" }, null, true, (node) => node.click()],
]) {
  test(`a person's choice is told: ${item.kind}`, async () => {
    const { control, heard } = await panelOf(item, first);
    act(control);
    assert.deepEqual(heard(), [second]);
  });
}

test("segments press the one that is chosen", async () => {
  const item = { kind: "segments", choices: [false, true], texts: ["linear", "log"] };
  const { find, heard, tell } = await panelOf(item, false);
  const buttons = find("button"), pressed = () => buttons.map((node) => node.attributes["aria-pressed"]);
  assert.deepEqual(pressed(), ["true", "false"]);
  buttons[1].click();
  await tell(true);
  assert.deepEqual([heard(), pressed()], [[true], ["false", "true"]]);
});

test("a field that a person writes in is left alone", async () => {
  const { control, tell } = await panelOf({ kind: "text" }, "a");
  control.focus();
  await tell("b");
  assert.equal(control.value, "a");
  control.blur();
  await tell("b");
  assert.equal(control.value, "b");
});

test("the scrubber's last place is the present", async () => {
  const { control, find, heard, tell } = await panelOf({ kind: "scrubber" }, { moments: [0, 50, 1200], shown: null });
  assert.deepEqual([control.value, control.max, find("output")[0].textContent], ["3", "3", "now"]);
  control.value = "2";
  control.hear("input");
  await page.wait(70);
  control.value = "3";
  control.hear("input");
  assert.deepEqual(heard(), [1200, null]);
  await page.wait(500);
  await tell({ moments: [0, 50, 1200], shown: 1200 });
  assert.deepEqual([control.value, find("output")[0].textContent], ["2", "step 1,200"]);
});

const run = { number: 1, name: "first", origin: "", active: true, color: "red", cells: ["0"] };

test("numbers of runs change in place, other changes build the table anew", async () => {
  const { find, tell } = await panelOf({ kind: "runs" }, { columns: ["step"], rows: [run] }), [cell] = find(".p4-cell");
  await tell({ columns: ["step"], rows: [{ ...run, cells: ["7"] }] });
  assert.deepEqual([find(".p4-cell")[0] === cell, cell.textContent], [true, "7"]);
  await tell({ columns: ["step"], rows: [run, { ...run, number: 2, name: "second", active: false }] });
  assert.deepEqual([find("tr").length, find(".p4-cell")[0] === cell], [3, false]);
});

test("runs can be selected, removed and renamed, and a name that is being written stays", async () => {
  const other = { ...run, number: 2, name: "second", active: false };
  const { find, heard, tell } = await panelOf({ kind: "runs" }, { columns: ["step"], rows: [run, other] });
  for (const node of find("button")) node.click();
  const [, name] = find("input");
  name.focus();
  name.value = "mine";
  await tell({ columns: ["step"], rows: [run] });
  name.blur();
  assert.deepEqual(heard(), [
    { action: "select", number: 2 }, { action: "remove", number: 2 }, { action: "rename", number: 2, name: "mine" },
  ]);
});

test("a table shows its rows", async () => {
  const rows = [{ color: "red", cells: ["one", "0.5"] }];
  const value = { label: "Flows", columns: ["", "loss"], help: ["", "in nats"], rows };
  const { find } = await panelOf({ kind: "table" }, value);
  assert.deepEqual(find("td").map((node) => node.textContent), ["", "one", "0.5"]); // a heading without words is none
  assert.deepEqual([find("caption")[0].textContent, find("th")[0].title], ["Flows", "in nats"]);
});

test("readouts, badges, buttons and messages say what they are told", async () => {
  const readout = await panelOf({ kind: "readout", unit: "nats" }, "3");
  assert.equal(readout.box().textContent, "Item3nats");
  await readout.tell({ value: "4", unit: "bits" });
  assert.equal(readout.box().textContent, "Item4bits");
  const [badge] = (await panelOf({ kind: "badge" }, "running")).find("span");
  assert.deepEqual([badge.textContent, badge.dataset.state], ["running", "running"]);
  const button = await panelOf({ kind: "button" }, { label: "Pause", look: "primary" });
  assert.deepEqual([button.control.textContent, button.control.dataset.look], ["Pause", "primary"]);
  const message = await panelOf({ kind: "message" }, { text: "Press Reset", level: "notice" });
  const [text] = message.find("span");
  assert.deepEqual([text.textContent, text.dataset.level], ["Press Reset", "notice"]);
});

test("items can be disabled, and wait for a reset", async () => {
  const { box, control, tell, heard } = await panelOf({ kind: "button" }, null);
  await tell(null, { disabled: ["item"], pending: ["item"] });
  control.click();
  assert.deepEqual([control.disabled, box().dataset.pending, heard()], [true, "true", []]);
  await tell(null, { disabled: [], pending: [] });
  assert.deepEqual([control.disabled, box().dataset.pending], [false, "false"]);
});

const matrix = (symbol, values) => ({ symbol, rows: values, color: "ink", flash: true, matrix: true });

test("a formula's numbers change in place, another form is built anew", async () => {
  const { el, end } = show(formula), tell = async (...row) => { end.show({ rows: [row] }); await page.wait(20); };
  await tell(matrix("A", [["1", "2"]]), "=", matrix("B", [["3"]]));
  const [line] = el.children, [number] = el.querySelectorAll(".p4-matrix")[0].children, flashes = [];
  for (const node of el.querySelectorAll(".p4-matrix")) node.animate = () => flashes.push(node);
  assert.equal(line.textContent, "12A=3B");
  await tell(matrix("A", [["5", "2"]]), "=", matrix("B", [["3"]]));
  assert.deepEqual([el.children[0] === line, number.textContent, flashes.length], [true, "5", 1]);
  assert.equal(line.attributes["aria-label"], "A (5, 2) = B (3)");
  await tell(matrix("A", [["5"], ["2"]]));
  assert.notEqual(el.children[0], line);
});

test("the form of equations is their symbols, signs and shapes", () => {
  const [one, other] = [[matrix("A", [["1", "2"]]), "+"], [matrix("A", [["3", "4"]]), "+"]];
  assert.equal(formOf([one]), formOf([other]));
  assert.notEqual(formOf([one]), formOf([[matrix("A", [["1"], ["2"]]), "+"]]));
  assert.notEqual(formOf([one]), formOf([[matrix("B", [["1", "2"]]), "+"]]));
  assert.equal(spoken([matrix("A", [["1", "2"], ["3", "4"]]), "x"]), "A (1, 2; 3, 4) x");
});

test("a widget is shown in all its places, and in none that has been left", async () => {
  const { els: [first, second], end, leave } = show(formula, 2);
  end.show({ rows: [["a"]] });
  await page.wait(20);
  leave[0]();
  end.show({ rows: [["b"]] });
  await page.wait(20);
  assert.deepEqual([first.textContent, second.textContent], ["a", "b"]);
});

test("what cannot be seen is built when it comes into sight", async () => {
  const { el, end } = show(formula);
  el.clientWidth = 0;
  end.show({ rows: [["a"]] });
  await page.wait(20);
  assert.equal(el.children.length, 0);
  el.clientWidth = 300;
  page.resize();
  await page.wait(20);
  assert.equal(el.textContent, "a");
});

test("images stand side by side with a gap, each level in its colour", () => {
  const data = Uint8Array.of(0, 1, 2, 9, 1, 0), palette = [[0, 0, 0], [1, 2, 3], [255, 255, 255]];
  const { pixels, width, height } = tiled({ data, shape: [3, 1, 2], columns: 2 }, palette);
  assert.deepEqual([width, height], [5, 3]);
  const bytes = (at) => [...new Uint8Array(pixels.buffer, 4 * at, 4)];
  assert.deepEqual([bytes(0), bytes(1), bytes(2)], [[0, 0, 0, 255], [1, 2, 3, 255], [0, 0, 0, 0]]);
  assert.deepEqual([bytes(3), bytes(4)], Array(2).fill([255, 255, 255, 255])); // too high a level is the highest
  assert.deepEqual([bytes(10), bytes(11)], [[1, 2, 3, 255], [0, 0, 0, 255]]);
});

test("a matrix comes to the plot as rows", () => {
  const flat = Float64Array.of(1, 2, 3, 4, 5, 6);
  assert.deepEqual(rows(flat, [2, 3]), [Float64Array.of(1, 2, 3), Float64Array.of(4, 5, 6)]);
  assert.equal(rows(flat, [6]), flat);
});
