import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { handles, holds } from "../../p4lab/widgets/js/handles.ts";
import { closePage, openPage } from "./page.js";

let page, told, painted, hands;
beforeEach(() => {
  [page, told, painted] = [openPage(), [], 0];
  hands = holds((name, point) => told.push([name, ...point]), () => { painted += 1; });
});
afterEach(closePage);

function layer(name, ...point) {
  return { kind: "Handle", name, label: "Start", color: "red", point: Float32Array.from(point) };
}

test("a point that is held is where the person has it, until the kernel has agreed", async () => {
  const start = layer("start", 0, 0), where = () => [...hands.pointOf(start)];
  hands.grab("start", start.point);
  hands.move("start", [1, 2]);
  assert.deepEqual([where(), hands.busy()], [[1, 2], true]);
  hands.release("start");
  assert.deepEqual([where(), hands.busy()], [[1, 2], false]);
  await page.wait(690);
  assert.deepEqual(where(), [1, 2]);
  await page.wait(20);
  assert.deepEqual(where(), [0, 0]);
  assert.ok(painted >= 3);
});

test("the kernel hears at most 16 times a second, and where it ends", async () => {
  hands.grab("start", [0, 0]);
  for (let k = 1; k <= 500; k++) {
    hands.move("start", [k, 0]);
    await page.wait(2);
  }
  hands.release("start");
  await page.wait(100);
  assert.ok(told.length >= 16 && told.length <= 18, `${told.length} messages in a second`);
  assert.deepEqual(told.at(-1), ["start", 500, 0]);
});

test("a point that is taken up again is not let go", async () => {
  hands.grab("start", [0, 0]);
  hands.move("start", [1, 1]);
  hands.release("start");
  await page.wait(500);
  assert.deepEqual(hands.grab("start", [0, 0]), [1, 1]);
  await page.wait(500);
  assert.ok(hands.busy());
});

test("what nobody holds cannot be moved or let go", () => {
  hands.move("start", [1, 1]);
  hands.release("start");
  assert.deepEqual([told, painted, hands.busy()], [[], 0, false]);
});

/** Handles on a canvas on which one unit is 100 pixels. */
function shown(...layers) {
  const stage = document.createElement("div"), canvas = document.createElement("canvas"), focused = [];
  const sight = { locate: ([x, y]) => (x < 0 ? null : [100 * x, 100 * y]), at: (x, y) => [x / 100, y / 100] };
  const grips = handles(canvas, stage, hands, sight, (name) => focused.push(name));
  const place = (...now) => grips.place(now, (name) => `the page's ${name}`);
  place(...layers);
  return { stage, focused, place, grips, node: stage.children[0] };
}

test("each movable point has a button where it is, that tells what it is", () => {
  const { node, stage } = shown(layer("start", 1, 0.5), { kind: "Path" }, layer("end", 0, 0));
  assert.equal(stage.children.length, 2);
  assert.equal(node.style.transform, "translate(100px, 50px)");
  assert.equal(node.style["--color"], "the page's red");
  assert.match(node.attributes["aria-label"], /^Start, at 1, 0.5\. Arrow keys move it/);
});

test("where nobody would hear of it, a point cannot be moved, and does not say so", () => {
  const stage = document.createElement("div"), sight = { locate: () => [0, 0], at: () => [0, 0] };
  const grips = handles(document.createElement("canvas"), stage, hands, sight, () => {}, true);
  grips.place([layer("start", 1, 0.5)], String);
  const [node] = stage.children;
  assert.ok(node.disabled);
  assert.equal(node.attributes["aria-label"], "Start, at 1, 0.5.");
});

test("a point out of sight is hidden, one that is gone is let go", () => {
  const { node, stage, place } = shown(layer("start", 1, 1));
  place(layer("start", -1, 0));
  assert.equal(node.hidden, true);
  hands.grab("start", [1, 1]);
  place(layer("end", 1, 1));
  assert.deepEqual([stage.children.map((child) => child.dataset.name), hands.busy()], [["end"], false]);
});

test("dragging moves a point as far as the mouse moves, wherever it was taken", () => {
  const { node } = shown(layer("start", 1, 1));
  node.hear("pointerdown", { button: 0, clientX: 104, clientY: 97 });
  node.hear("pointermove", { clientX: 154, clientY: 107 });
  assert.deepEqual(hands.pointOf(layer("start", 1, 1)), [1.5, 1.1]);
  node.hear("lostpointercapture");
  node.hear("pointermove", { clientX: 300, clientY: 300 });
  assert.deepEqual([told[0], hands.busy()], [["start", 1.5, 1.1], false]);
});

test("only the first button of the mouse drags", () => {
  const { node } = shown(layer("start", 1, 1));
  node.hear("pointerdown", { button: 2, clientX: 100, clientY: 100 });
  assert.equal(hands.busy(), false);
});

test("arrow keys move ten pixels, with Shift two, and are not the notebook's", () => {
  const { node } = shown(layer("start", 1, 1));
  const where = () => [...hands.pointOf(layer("start", 1, 1))].map((v) => Math.round(100 * v));
  assert.ok(node.hear("keydown", { key: "ArrowRight" }).defaultPrevented);
  assert.deepEqual(where(), [110, 100]);
  node.hear("keydown", { key: "ArrowUp", shiftKey: true });
  assert.deepEqual(where(), [110, 98]);
  assert.ok(!node.hear("keydown", { key: "Tab" }).defaultPrevented);
  node.hear("keyup");
  assert.equal(hands.busy(), false);
});

test("the picture knows which handle has the keyboard, and a handle that is left is let go", () => {
  const { node, focused, grips } = shown(layer("start", 1, 1));
  node.focus();
  node.hear("keydown", { key: "ArrowLeft" });
  node.blur();
  assert.deepEqual([focused, hands.busy()], [["start", null], false]);
  node.hear("keydown", { key: "ArrowLeft" });
  grips.leave();
  assert.equal(hands.busy(), false);
});
