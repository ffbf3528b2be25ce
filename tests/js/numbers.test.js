import assert from "node:assert/strict";
import { test } from "node:test";
import { clamp, decades, room, short, ticks } from "../../p4lab/widgets/js/numbers.ts";

const texts = (list) => list.map(({ text }) => text);

const RANGES = [[0, 1, 5], [-3, 7, 4], [0.001, 0.0042, 6], [1e6, 4e6, 3], [-2e-7, 3e-7, 5], [99.5, 100.5, 2]];
for (const [low, high, count] of RANGES) {
  test(`ticks from ${low} to ${high} are round, evenly spaced and inside`, () => {
    const values = ticks(low, high, count).map(({ value }) => value), step = values[1] - values[0];
    const digit = step / 10 ** Math.floor(Math.log10(step * 1.000001));
    assert.ok([1, 2, 5].some((m) => Math.abs(digit - m) < 1e-6), `step ${step}`);
    for (const [k, value] of values.entries()) {
      assert.ok(value >= low - 1e-6 * step && value <= high + 1e-6 * step);
      assert.ok(Math.abs(value / step - Math.round(value / step)) < 1e-6);
      assert.ok(k === 0 || Math.abs(value - values[k - 1] - step) < 1e-6 * step);
    }
    assert.ok(values.length >= 2 && values.length <= 2 * count + 1);
  });
}

test("ticks are written with as many digits as they need, and a true minus sign", () => {
  assert.deepEqual(texts(ticks(-1, 1, 4)), ["−1.0", "−0.5", "0", "0.5", "1.0"]);
  assert.deepEqual(texts(ticks(0, 40, 4)), ["0", "10", "20", "30", "40"]);
  assert.deepEqual(texts(ticks(0, 3e6, 3)), ["0", "1e6", "2e6", "3e6"]);
  assert.deepEqual(texts(ticks(0, 1e-6, 2)), ["0", "5e−7", "1e−6"]);
});

test("decades are powers of ten, or round values where there are fewer than two", () => {
  assert.deepEqual(texts(decades(0.01, 1000)), ["0.01", "0.1", "1", "10", "100", "1e3"]);
  assert.deepEqual(decades(1e-4, 1e-3).map(({ value }) => value), [1e-4, 1e-3]);
  assert.deepEqual(decades(2, 8), ticks(2, 8, 4));
  assert.ok(decades(1e-12, 1e12).length <= 6);
});

test("short numbers have three digits", () => {
  assert.deepEqual([1234.5, -0.012345, 0, 2].map(short), ["1230", "−0.0123", "0", "2"]);
});

test("an axis has two ticks at least, so that it can be read", () => {
  assert.deepEqual(texts(ticks(55, 140, 3)), ["60", "80", "100", "120", "140"]);
  assert.deepEqual(texts(ticks(4.1, 5.9, 2)), ["4.5", "5.0", "5.5"]);
});

test("room for ticks is bounded", () => {
  assert.deepEqual([room(10), room(160), room(4000), room(1100, 55, 5)], [2, 4, 6, 5]);
  assert.deepEqual([clamp(-1), clamp(0.3), clamp(7), clamp(7, 0, 5)], [0, 0.3, 1, 5]);
});
