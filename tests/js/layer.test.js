import assert from "node:assert/strict";
import { test } from "node:test";
import { decode, kept, legendOf } from "../../p4lab/widgets/js/layer.ts";
import { nearest } from "../../p4lab/widgets/js/layers.ts";

const colors = { color: (name) => `the page's ${name}` };
const view = (...numbers) => new DataView(Float32Array.from(numbers).buffer);

test("a layer gets its arrays from the buffers, and the box around its points", () => {
  const parcel = { kind: "Path", width: 2, arrays: { points: [1, [3, 2]], values: [0, [3]] } };
  const layer = decode(parcel, [view(7, 8, 9), view(0, 5, 2, Number.NaN, -1, 4)], 2);
  assert.deepEqual([layer.kind, layer.width, [...layer.values], layer.pointsShape], ["Path", 2, [7, 8, 9], [3, 2]]);
  assert.deepEqual(layer.box, [[-1, 2], [4, 5]]);
});

test("a buffer is copied, wherever it begins", () => {
  const memory = new Uint8Array(13);
  new DataView(memory.buffer).setFloat32(5, 1.5, true);
  const layer = decode({ kind: "Handle", arrays: { point: [0, [1]] } }, [new DataView(memory.buffer, 5, 4)], 1);
  memory.fill(0);
  assert.deepEqual([...layer.point], [1.5]);
});

test("the box of a map is its extent, and that of nothing is empty", () => {
  assert.deepEqual(decode({ kind: "Heatmap", extent: [0, 2, -1, 1], arrays: {} }, [], 2).box, [[0, 2], [-1, 1]]);
  assert.deepEqual(decode({ kind: "Text", arrays: {} }, [], 3).box, Array(3).fill([Infinity, -Infinity]));
});

test("a legend names each label once, and none that is told elsewhere", () => {
  const entries = legendOf([
    { kind: "Heatmap", label: "loss" }, { kind: "Handle", label: "start", color: "red" },
    { kind: "Path", label: "way", color: "blue", dashed: true, values: null },
    { kind: "Path", label: "way", color: "red" }, { kind: "Path", label: "by value", values: new Float32Array(1) },
    { kind: "Points", label: "data", color: "ink", shape: "ring" }, { kind: "Dots", label: "steps", color: "ink" },
    { kind: "Surface", label: "sheet", color: "grey", opacity: 0.5 },
    { kind: "Arrow", label: "", color: "ink" },
    { kind: "Path", label: "bars", color: "grey", fill: 0.25 },
  ], colors);
  const looks = entries.map(({ label, look }) => `${label}: ${look}`);
  assert.deepEqual(looks, ["way: line", "data: ring", "steps: dot", "sheet: Surface", "bars: Surface"]);
  assert.deepEqual(entries[0], { label: "way", look: "line", color: "the page's blue", dashed: true, opacity: 1 });
  assert.deepEqual(entries.slice(3).map(({ opacity }) => opacity), [0.5, 0.25]);
});

test("what is made of a layer is kept until its key changes", () => {
  let made = 0;
  const value = kept((layer, key) => { made += 1; return `${layer.name} ${key}`; }), a = { name: "a" };
  assert.deepEqual([value(a, 1), value(a, 1), value(a, 2), value({ name: "b" }, 2)], ["a 1", "a 1", "a 2", "b 2"]);
  assert.equal(made, 3);
});

test("the mouse finds the nearest mark, if one is near", () => {
  const marks = [{ x: 0, y: 0, text: "a" }, { x: 8, y: 0, text: "b" }];
  assert.equal(nearest(marks, 3, 1).text, "a");
  assert.equal(nearest(marks, 5, 1).text, "b");
  assert.equal(nearest(marks, 4, 40), null);
});
