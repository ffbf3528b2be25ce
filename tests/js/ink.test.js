import assert from "node:assert/strict";
import { test } from "node:test";
import { Ink } from "../../p4lab/widgets/js/ink.ts";

const blank = (size = 16, levels = 15) => new Ink(size, levels, new Uint8Array(size * size));
const sum = (ink) => ink.whole().reduce((a, b) => a + b, 0);

test("a dot is where the brush was, and darkest in its middle", () => {
  const ink = blank();
  ink.stamp(3.5 / 16, 12.5 / 16, 0.065, false); // three cells from the left, three from the top
  const whole = ink.whole(), darkest = whole.indexOf(Math.max(...whole));
  assert.deepEqual([darkest % 16, Math.floor(darkest / 16), whole[darkest]], [3, 3, 15]);
  assert.ok(whole[darkest + 1] > 0 && whole[darkest + 1] < 15 && whole[darkest + 8] === 0);
});

test("a stroke leaves no gaps, and is the same in both directions", () => {
  const [there, back] = [blank(), blank()];
  there.stroke([0.1, 0.5], [0.9, 0.5], 0.065, false);
  back.stroke([0.9, 0.5], [0.1, 0.5], 0.065, false);
  assert.ok(there.whole().slice(8 * 16 + 2, 8 * 16 + 14).every((v) => v > 8));
  assert.ok(Math.abs(sum(there) - sum(back)) < 0.05 * sum(there));
});

test("ink never exceeds its levels, and the rubber takes it off", () => {
  const ink = blank();
  for (let k = 0; k < 5; k++) ink.stroke([0.2, 0.2], [0.8, 0.8], 0.12, false);
  assert.equal(Math.max(...ink.whole()), 15);
  for (let k = 0; k < 5; k++) ink.stroke([0, 0], [1, 1], 0.4, true);
  assert.ok(ink.cells[8 * 16 + 8] === 0);
});

test("at the edges nothing is painted outside", () => {
  const ink = blank(4);
  for (const [u, v] of [[0, 0], [1, 1], [0, 1], [1, 0]]) ink.stamp(u, v, 0.12, false);
  assert.equal(ink.cells.length, 16);
  assert.ok([0, 3, 12, 15].every((at) => ink.whole()[at] > 0));
  const wide = blank();
  wide.stamp(1, 0.5, 0.12, false);
  assert.ok(wide.whole().every((v, at) => at % 16 > 7 || v === 0));
});

test("undo takes back strokes, clearing and drawings from the kernel", () => {
  const ink = blank(), states = [ink.whole()];
  ink.remember();
  ink.stamp(0.5, 0.5, 0.1, false);
  states.push(ink.whole());
  assert.equal(ink.clear(), true);
  assert.equal(ink.clear(), false);
  states.push(ink.whole());
  ink.replace(new Uint8Array(256).fill(4));
  assert.ok(ink.whole().every((v) => v === 4));
  for (const state of states.reverse()) {
    assert.equal(ink.undo(), true);
    assert.deepEqual(ink.whole(), state);
  }
  assert.equal(ink.undo(), false);
});

test("a drawing that comes again is no change", () => {
  const ink = blank();
  ink.remember();
  ink.stamp(0.5, 0.5, 0.1, false);
  ink.replace(ink.whole());
  assert.equal(ink.past.length, 1);
});

test("only so many steps are remembered", () => {
  const ink = blank(2);
  for (let k = 0; k < 80; k++) ink.remember();
  let steps = 0;
  while (ink.undo()) steps += 1;
  assert.equal(steps, 50);
});

test("soft strokes add up to ink that counts as a drawing", () => {
  const ink = blank();
  assert.ok(ink.isEmpty());
  ink.stamp(0.5, 0.5, 0.03, false);
  assert.ok(!ink.isEmpty());
});
