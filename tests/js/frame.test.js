import assert from "node:assert/strict";
import { test } from "node:test";
import { frameOf, locate, pointAt, scaled } from "../../p4lab/widgets/js/frame.ts";

const state = (options = {}) => ({
  look: { labels: ["", ""], equal: true, ...options.look }, bounds: null, box: [[-1, 3], [0, 2]], layers: [],
  ...options.state,
});
const near = (a, b) => a.every((value, i) => Math.abs(value - b[i]) < 1e-9);

for (const equal of [true, false]) {
  test(`what is at a point's place is the point, ${equal ? "equal" : "free"} units`, () => {
    const frame = frameOf(400, 300, state({ look: { equal } }));
    for (const point of [[-1, 0], [3, 2], [0.3, 1.7]]) assert.ok(near(pointAt(frame, ...locate(frame, point)), point));
  });
}

test("the second axis goes up", () => {
  const frame = frameOf(400, 300, state());
  assert.ok(locate(frame, [0, 2])[1] < locate(frame, [0, 1])[1]);
});

test("with equal units both axes have the same scale, and all of the box is seen", () => {
  const { x0, x1, y0, y1, w, h } = frameOf(400, 300, state());
  assert.ok(Math.abs(w / (x1 - x0) - h / (y1 - y0)) < 1e-9);
  assert.ok(x0 <= -1 && x1 >= 3 && y0 <= 0 && y1 >= 2);
});

test("bounds that were asked for are the edges of the frame", () => {
  const { x0, x1, y0, y1, w, h } = frameOf(400, 300, state({ state: { bounds: [-1, 3, 0, 2] } }));
  assert.deepEqual([x0, x1, y0, y1], [-1, 3, 0, 2]);
  assert.ok(Math.abs(w / h - 2) < 1e-9);
});

test("a point outside of the frame is not seen, and the mouse outside of it means its edge", () => {
  const frame = frameOf(400, 300, state({ look: { equal: false } }));
  assert.equal(locate(frame, [3.5, 1]), null);
  assert.deepEqual(pointAt(frame, -50, 1000), [-1, 0]);
});

test("names and colour bars take their room", () => {
  const values = new Float32Array(1);
  const bars = [{ values, label: "loss" }, { values, label: "" }, { values: null, label: "p" }];
  const free = { look: { equal: false } }, plain = frameOf(400, 300, state(free));
  const named = frameOf(400, 300, state({ look: { equal: false, labels: ["x", "y"] } }));
  const barred = frameOf(400, 300, state({ ...free, state: { layers: bars } }));
  assert.equal(scaled(bars).length, 1);
  assert.ok(named.w < plain.w && named.h < plain.h && named.x > plain.x);
  assert.ok(barred.w < plain.w - 50 && barred.h === plain.h);
});

test("a canvas without room has a frame all the same", () => {
  const { w, h } = frameOf(5, 5, state({ look: { equal: false } }));
  assert.ok(w > 0 && h > 0);
});
