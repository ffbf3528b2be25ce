import assert from "node:assert/strict";
import { test } from "node:test";
import { ramp, SHADES, scaleOf, shades } from "../../p4lab/widgets/js/ramp.ts";

test("a ramp goes from its first colour to its last, and stops there", () => {
  const light = ramp("diverging", false);
  const stops = [[0x1d, 0x4f, 0x91], [0xfa, 0xfa, 0xfa], [0xa5, 0x30, 0x1f]];
  assert.deepEqual([0, 0.5, 1].map(light), stops);
  assert.deepEqual([-3, 4].map(light), [stops[0], stops[2]]);
});

test("between two colours a ramp is linear", () => {
  const color = ramp("ink", true), near = (a, b) => a.every((c, k) => Math.abs(c - b[k]) < 1e-9);
  const [a, b] = [color(0), color(1 / 3)];
  assert.ok(near(color(1 / 12), a.map((c, k) => c + (b[k] - c) / 4)));
});

test("shades are whole colours, made once for each theme and number", () => {
  const table = shades("loss", false, 16);
  assert.equal(table.length, 16);
  assert.ok(table.flat().every(Number.isInteger));
  assert.deepEqual([table[0], table[15]], [[255, 255, 255], [0x3c, 0x6a, 0x9a]]);
  assert.equal(shades("loss", false, 16), table);
  assert.notDeepEqual(shades("loss", true, 16), table);
  assert.equal(shades("loss", false).length, SHADES);
});

function scale(values, options = {}) {
  return scaleOf({ values: Float32Array.from(values), low: null, high: null, ...options });
}

test("a scale reaches from the least to the greatest finite value", () => {
  const { low, high, share, shade } = scale([3, Number.NaN, -1, Infinity, 1]);
  assert.deepEqual([low, high], [-1, 3]);
  assert.deepEqual([-1, 1, 3].map(share), [0, 0.5, 1]);
  assert.deepEqual([-1, 3, 99, -99].map(shade), [0, SHADES - 1, SHADES - 1, 0]);
  assert.equal(shade(Number.NaN), -1);
});

test("the ends of a scale can be given", () => {
  const { low, high, share } = scale([3, 5], { low: 0, high: 10 });
  assert.deepEqual([low, high, share(5)], [0, 10, 0.5]);
});

test("a scale is never empty", () => {
  for (const values of [[], [Number.NaN], [2, 2]]) {
    const { low, high } = scale(values), logarithmic = scale(values, { log: true });
    assert.ok(low < high && logarithmic.low < logarithmic.high && logarithmic.low > 0);
  }
});

test("a logarithmic scale leaves out what is not positive", () => {
  const { low, high, share, shade } = scale([-5, 0, 0.01, 100], { log: true });
  assert.ok(Math.abs(low - 0.01) < 1e-9 && high === 100);
  assert.ok(Math.abs(share(1) - 0.5) < 1e-6);
  assert.deepEqual([shade(0), shade(-5), shade(100)], [0, 0, SHADES - 1]);
});
