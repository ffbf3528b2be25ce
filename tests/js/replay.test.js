import assert from "node:assert/strict";
import { afterEach, beforeEach, test } from "node:test";
import { balanced, kernelOf, numberByNumber, rest, timeline, unpacked } from "../../p4lab/widgets/js/replay.ts";
import { closePage, openPage } from "./page.js";

let page;
beforeEach(() => { page = openPage(); });
afterEach(closePage);

const LIBRARY = new DataView(new ArrayBuffer(3));
const BUFFERS = [1, 2, 3].map((value) => new DataView(Uint8Array.of(value).buffer));

/** A widget that is told a recording, and notes what it hears. */
function listener(changes = {}) {
  const told = {
    kind: "Plane", place: "picture one",
    states: [[{ all: 0 }, [0]], [{ all: 1 }, [1]], [{ all: 2 }, [2]]],
    at: [0, 1, 1, null, 2],
    news: [[[{ first: true }, [0]]], [[{ from: 0 }, [1]]], [], [], [[{ from: 1 }, [2]], [{ more: 1 }, []]]],
    ...changes,
  };
  const heard = [], faults = [], { model, show } = kernelOf(told, BUFFERS, LIBRARY, (text) => faults.push(text));
  model.on("msg:custom", ({ frame, channel, ...message }, buffers) => {
    heard.push([message, ...buffers.map((buffer) => buffer.getUint8(0))]);
  });
  return { model, show, faults, told, take: () => heard.splice(0) };
}

test("a recording comes apart into its text and its buffers", () => {
  const text = JSON.stringify({ steps: [0, 5], widgets: [], buffers: [[4, 2], [1, 1]] });
  const bytes = new Uint8Array([0, 0, 0, 0, ...new TextEncoder().encode(text), 1, 3, 2, 4, 9]);
  new DataView(bytes.buffer).setUint32(0, text.length, true);
  const { steps, widgets, buffers } = unpacked(bytes);
  assert.deepEqual([steps, widgets], [[0, 5], []]);
  assert.deepEqual(buffers.map((view) => [...new Uint8Array(view.buffer)]), [[1, 2, 3, 4], [9]]);
});

test("bytes in planes come back number by number", () => {
  assert.deepEqual([...numberByNumber(Uint8Array.of(1, 4, 2, 5, 3, 6), 3)], [1, 2, 3, 4, 5, 6]);
  assert.equal(numberByNumber(new Uint8Array(), 8).length, 0);
});

test("a hello is answered with all of the moment, but not before the widget is ready", async () => {
  const { model, show, take } = listener();
  show(1);
  take();
  model.send({ hello: 1 });
  assert.deepEqual(take(), []);
  await null;
  assert.deepEqual(take(), [[{ all: 1 }, 2]]);
});

test("the next moment is told as news, any other in full, and the same not at all", () => {
  const { show, take } = listener();
  assert.ok(show(0));
  assert.deepEqual(take(), [[{ all: 0 }, 1]]);
  assert.ok(show(1));
  assert.deepEqual(take(), [[{ from: 0 }, 2]]);
  assert.ok(show(2));
  assert.deepEqual(take(), []);
  show(0);
  assert.deepEqual(take(), [[{ all: 0 }, 1]]);
  show(2);
  assert.deepEqual(take(), [[{ all: 1 }, 2]]);
});

test("a picture that is not there at a moment comes back in full", () => {
  const { show, take } = listener();
  show(2);
  take();
  assert.equal(show(3), false);
  assert.ok(show(4));
  assert.deepEqual(take(), [[{ all: 2 }, 3]]);
});

test("what is told is a copy: a widget may change it", () => {
  const { model, show, told } = listener();
  model.on("msg:custom", (message) => { message.all = "changed"; });
  show(0);
  assert.deepEqual(told.states[0][0], { all: 0 });
});

test("the library is there for the asking, and a failure is told", async () => {
  const { model, faults } = listener();
  let library;
  model.on("msg:custom", (message, [buffer]) => { library = [message, buffer]; });
  model.send({ library: 1 });
  await null;
  assert.deepEqual(library[0], { library: 1 });
  assert.equal(library[1], LIBRARY);
  model.send({ error: "it broke" });
  model.send({ acks: {} });
  assert.deepEqual(faults, ["it broke"]);
});

test("a run plays in some seconds, however many moments it has", () => {
  assert.equal(rest(2, 1), 700);
  assert.equal(rest(31, 1), 300);
  assert.equal(rest(1000, 1), 100);
  assert.equal(rest(31, 2), 150);
});

test("rows are as full as can be", () => {
  assert.deepEqual([0, 1, 2, 5, 6, 7, 11].map((n) => balanced(n)), [1, 1, 2, 5, 3, 4, 4]);
});

/** A timeline on a page. */
function bar(steps = [0, 5, 10, 1200]) {
  const shown = [], made = timeline(steps, (moment) => shown.push(moment));
  page.body.append(made.bar);
  const [play, slider, text] = made.bar.children;
  const press = (key, target = page.body) => {
    const event = Object.assign(new Event("keydown", { cancelable: true }), { key });
    Object.defineProperty(event, "target", { value: { ...target, tagName: target.tag } });
    made.press(event);
    return event.defaultPrevented;
  };
  made.read();
  return { play, slider, text, press, take: () => shown.splice(0) };
}

test("it begins with the last moment, and says which step that is", () => {
  const { slider, text, take } = bar();
  assert.deepEqual(take(), [3]);
  assert.equal(text.textContent, "step 1,200 of 1,200");
  assert.equal(slider.getAttribute("aria-valuetext"), "step 1,200 of 1,200");
});

test("it plays from the start to the end, and pauses", async () => {
  const { play, take } = bar();
  take();
  play.click();
  assert.equal(play.textContent, "❚❚ Pause");
  await page.wait(750);
  play.click();
  assert.equal(play.textContent, "▶ Play");
  await page.wait(3000);
  assert.deepEqual(take(), [0, 1]);
  play.click();
  await page.wait(3000);
  assert.deepEqual(take(), [1, 2, 3]);
  assert.equal(play.textContent, "▶ Play");
});

test("space plays, arrow keys move, and a person takes over from the player", async () => {
  const { play, press, take } = bar();
  take();
  assert.ok(press("Home"));
  assert.ok(press("ArrowRight"));
  assert.ok(press(" "));
  assert.equal(play.textContent, "❚❚ Pause");
  assert.ok(press("ArrowLeft"));
  assert.equal(play.textContent, "▶ Play");
  assert.ok(press("End"));
  assert.ok(press("ArrowRight"));
  assert.deepEqual(take(), [0, 1, 1, 0, 3, 3]);
});

test("keys that mean something to a canvas, a field or a button are theirs", () => {
  const { press } = bar();
  assert.ok(!press("ArrowLeft", { tag: "CANVAS" }));
  assert.ok(press(" ", { tag: "CANVAS" }));
  assert.ok(!press(" ", { tag: "BUTTON" }));
  assert.ok(!press("Home", { tag: "INPUT" }));
  assert.ok(!press("x"));
});

test("a single moment cannot be played", () => {
  const { play, slider, press, text } = bar([0]);
  assert.ok(play.disabled && slider.disabled);
  press(" ");
  assert.equal(play.textContent, "▶ Play");
  assert.equal(text.textContent, "step 0 of 0");
});
