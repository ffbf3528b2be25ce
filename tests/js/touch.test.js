import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { make } from "../../p4lab/widgets/js/dom.ts";
import { nearest, onCommit, patient, player, throttled } from "../../p4lab/widgets/js/touch.ts";
import { closePage, openPage } from "./page.js";

let page;
beforeEach(() => { page = openPage(); });
afterEach(closePage);

test("a drag is told at once, then at most every 60 ms, and where it ends", async () => {
  const told = [];
  let place = 0;
  const moved = throttled(() => told.push(place));
  for (place = 1; place <= 100; place++) {
    moved();
    await page.wait(2);
  }
  place = 100;
  await page.wait(200);
  assert.equal(told[0], 1);
  assert.equal(told.at(-1), 100);
  assert.ok(told.length >= 4 && told.length <= 5, `${told.length} messages in 200 ms`);
});

test("what is touched once is told once", async () => {
  let told = 0;
  const moved = throttled(() => { told += 1; });
  moved();
  await page.wait(500);
  assert.equal(told, 1);
  moved();
  assert.equal(told, 2);
});

test("the kernel writes at once where nobody touches", () => {
  const values = [], shown = patient(1000, (value) => values.push(value));
  shown.show(1);
  shown.show(2);
  assert.deepEqual(values, [1, 2]);
});

test("under the user's finger the last of what the kernel says is shown later", async () => {
  const values = [], shown = patient(1000, (value) => values.push(value));
  shown.touched();
  shown.show(1);
  await page.wait(600);
  shown.touched();
  shown.show(2);
  await page.wait(900);
  assert.deepEqual(values, []);
  await page.wait(200);
  assert.deepEqual(values, [2]);
});

test("the nearest choice is found on a logarithmic scale with a zero", () => {
  const rates = [0, 1e-4, 1e-3, 1e-2];
  assert.deepEqual([0, 1e-4, 2.5e-4, 5e-4, 1, -1].map((value) => nearest(rates, value)), [0, 1, 1, 2, 3, 0]);
  assert.equal(nearest([-5, -1, 1, 5], -4), 0);
});

test("a field commits with Enter or when it is left, and only what has changed", () => {
  const input = make("input"), texts = [];
  input.value = "a";
  onCommit(input, (text) => texts.push(text));
  input.focus();
  input.hear("keydown", { key: "Enter" });
  input.focus();
  input.value = "b";
  input.hear("keydown", { key: "x" });
  assert.deepEqual(texts, []);
  input.hear("keydown", { key: "Enter" });
  input.focus();
  input.value = "c";
  input.blur();
  assert.deepEqual(texts, ["b", "c"]);
});

function slider() {
  const input = Object.assign(make("input"), { type: "range", max: "4" }), places = [], states = [];
  input.value = "2";
  input.addEventListener("input", () => places.push(Number(input.value)));
  page.body.append(input);
  return { input, places, states, toggle: player(input, (going) => states.push(going)) };
}

test("a slider plays to its end and stops there", async () => {
  const { places, states, toggle } = slider();
  toggle();
  assert.deepEqual([places, states], [[2], [true]]);
  await page.wait(1000);
  assert.deepEqual([places, states], [[2, 3, 4], [true, false]]);
});

test("from its end a slider plays from its beginning", async () => {
  const { input, places, toggle } = slider();
  input.value = "4";
  toggle();
  await page.wait(100);
  assert.deepEqual(places, [0, 1]);
});

for (const [how, stop] of [
  ["pressed again", ({ toggle }) => toggle()], ["touched", ({ input }) => input.hear("pointerdown")],
  ["used with keys", ({ input }) => input.hear("keydown")], ["taken off the page", ({ input }) => input.remove()],
]) {
  test(`a slider that plays stops when it is ${how}`, async () => {
    const playing = slider();
    playing.toggle();
    await page.wait(100);
    stop(playing);
    await page.wait(100);
    assert.deepEqual(playing.places, [2, 3]);
    assert.equal(playing.states.at(-1), false);
  });
}
