import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { approach, follow, framing } from "../../p4lab/widgets/js/box.ts";
import { closePage, openPage } from "./page.js";

beforeEach(openPage);
afterEach(closePage);

const plane = { dim: 2, equal: false }, equal = { dim: 2, equal: true };
const spots = (...box) => ({ box });
const inside = (box, around) => box.every(([low, high], a) => low >= around[a][0] && high <= around[a][1]);

test("a box has room around the data", () => {
  assert.deepEqual(follow([spots([0, 10], [-1, 1])], null, plane), [[-1, 11], [-1.2, 1.2]]);
});

test("without data it is some box", () => {
  const [x, y] = follow([spots([Infinity, -Infinity], [Infinity, -Infinity])], null, plane);
  assert.ok(x[0] < x[1] && y[0] < y[1]);
});

test("a single point gets a box around it", () => {
  const [[low, high]] = follow([spots([5, 5], [0, 0])], null, plane);
  assert.ok(low < 5 && high > 5);
});

test("the box before is kept while the data fits into it and fills it", () => {
  const before = follow([spots([0, 10], [0, 10])], null, plane);
  assert.equal(follow([spots([1, 9], [2, 9])], before, plane), before);
  assert.notEqual(follow([spots([1, 9], [2, 19])], before, plane), before);
  assert.notEqual(follow([spots([1, 9], [2, 3])], before, plane), before);
  // With equal units it is enough to fill one side.
  const square = follow([spots([0, 10], [0, 10])], null, equal);
  assert.equal(follow([spots([1, 9], [2, 3])], square, equal), square);
  assert.notEqual(follow([spots([4, 5], [4, 5])], square, equal), square);
});

test("a layer that fills all of the picture is its frame", () => {
  const map = { extent: [0, 2, 0, 1], box: [[0, 2], [0, 1]] };
  assert.ok(framing([map, spots([0.5, 1], [0, 1])]));
  assert.ok(!framing([map, spots([0.5, 3], [0, 1])]));
  assert.ok(!framing([spots([0, 2], [0, 1])]));
  assert.deepEqual(follow([map], [[-9, 9], [-9, 9]], plane), map.box);
});

test("a box comes to its goal in steps, without going beyond", () => {
  const box = [[0, 1], [0, 1]], goal = [[-2, 4], [0, 1]];
  let steps = 0;
  while (approach(box, goal)) {
    steps += 1;
    assert.ok(inside(box, goal) && steps < 60);
  }
  assert.deepEqual(box, goal);
  assert.ok(steps > 3);
});

test("it jumps for those who want nothing to move", () => {
  globalThis.matchMedia = () => ({ matches: true });
  const box = [[0, 1]];
  assert.equal(approach(box, [[5, 7]]), false);
  assert.deepEqual(box, [[5, 7]]);
});
