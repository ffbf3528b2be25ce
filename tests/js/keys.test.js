// Keys for the lab as a whole: Space starts and pauses, arrows go through time.

import assert from "node:assert/strict";
import test from "node:test";
import { act } from "../../p4lab/widgets/js/keys.ts";

/** A lab with a slider over time and buttons that note when they are clicked. */
function lab({ value = "2", disabled = [] } = {}) {
  const clicks = [], told = [];
  const slider = {
    value, max: "2", disabled: disabled.includes("scrub"), dispatchEvent: (event) => told.push(event.type),
    get valueAsNumber() { return Number(this.value); },
  };
  const button = (name) => ({ disabled: disabled.includes(name), click: () => clicks.push(name) });
  const find = (selector) => (selector === ".p4-scrubber" ? slider : button(/data-name="(\w+)"/.exec(selector)[1]));
  return { querySelector: find, slider, clicks, told };
}

test("Space presses the button that starts and pauses", () => {
  const one = lab();
  assert.equal(act(one, " "), true);
  assert.deepEqual(one.clicks, ["start"]);
});

test("arrows go through time, and from the present on by a step", () => {
  const one = lab();
  act(one, "ArrowLeft");
  act(one, "ArrowLeft");
  assert.equal(one.slider.value, "0");
  act(one, "ArrowRight");
  assert.deepEqual([one.slider.value, one.clicks, one.told.length], ["1", [], 3]);
  act(one, "ArrowRight");
  act(one, "ArrowRight");
  assert.deepEqual([one.slider.value, one.clicks], ["2", ["step"]]);
});

test("what cannot be pressed is left to the page, as are other keys", () => {
  const running = lab({ disabled: ["step", "scrub"] });
  assert.equal(act(running, "ArrowRight"), false);
  assert.equal(act(running, "ArrowLeft"), false);
  assert.equal(act(running, "a"), false);
  assert.deepEqual(running.clicks, []);
});
