import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { connect, typed } from "../../p4lab/widgets/js/channel.ts";
import { closePage, kernel, openPage } from "./page.js";

let page;
beforeEach(() => { page = openPage(); });
afterEach(closePage);

/** A widget that notes what it receives and paints. */
function connected(options = {}, name = "one") {
  const end = kernel(name), received = [], painted = [];
  const line = connect(end.model, {
    receive: (message) => { received.push(message.value); },
    paint: () => { painted.push(received.at(-1)); },
    ...options,
  });
  return { ...end, line, received, painted, end };
}

const acks = (messages) => messages.filter((message) => message.acks).map((message) => message.acks);

test("a page says hello until it is answered", async () => {
  const { end } = connected();
  assert.deepEqual(end.take(), [{ hello: 1 }]);
  await page.wait(7000);
  assert.deepEqual(end.take(), [{ hello: 1 }, { hello: 1 }]);
  end.show({ value: 1 });
  await page.wait(9000);
  assert.ok(end.take().every((message) => !message.hello));
});

test("it can ask once more for everything", () => {
  const { end, line } = connected();
  end.show();
  end.take();
  line.again();
  assert.deepEqual(end.take(), [{ hello: 1 }]);
});

test("frames of a conversation that began before are left out", async () => {
  const { end, received } = connected();
  end.say({ frame: 7, value: "late" });
  end.show({ value: "mine" });
  await page.wait(50);
  assert.deepEqual(received, ["mine"]);
});

test("frames that arrive together are painted together", async () => {
  const { end, painted } = connected();
  for (const value of Array(16).keys()) end.show({ value });
  await page.wait(100);
  assert.ok(painted.length <= 2 && painted.every((value) => value === 15));
});

test("a frame that arrives while another is painted is painted after it", async () => {
  let end, painted = 0;
  const paint = () => { painted += 1; if (painted === 1) end.show({ value: 2 }); };
  ({ end } = connected({ paint }));
  end.show({ value: 1 });
  await page.wait(100);
  assert.equal(painted, 2);
});

test("acknowledgements that nobody waits for go together, once a second and a half", async () => {
  const { end } = connected();
  end.take();
  for (const value of [1, 2, 3]) {
    end.show({ value });
    await page.wait(100);
  }
  assert.deepEqual(end.take(), []);
  await page.wait(1500);
  const [{ one: [frame, held] }, ...more] = acks(end.take());
  assert.deepEqual([frame, more], [3, []]);
  assert.ok(held > 1000 && held < 1500);
});

test("an acknowledgement that is waited for goes soon", async () => {
  const { end } = connected();
  end.take();
  end.show({ awaited: true });
  await page.wait(16 + 45);
  const [{ one: [frame, held] }] = acks(end.take());
  assert.equal(frame, 1);
  assert.ok(held <= 45);
});

test("a slow page acknowledges soon", async () => {
  const { end } = connected({ paint: () => new Promise((done) => { setTimeout(done, 300); }) });
  end.take();
  end.show();
  await page.wait(16 + 300 + 45);
  assert.equal(acks(end.take()).length, 1);
});

test("channels of one kernel share their acknowledgements, sent by the newest model", async () => {
  const one = connected({}, "one"), two = connected({}, "two");
  one.end.show();
  await page.wait(30);
  two.end.show();
  await page.wait(1600);
  assert.deepEqual(acks(one.sent), []);
  const [both] = acks(two.sent);
  assert.deepEqual(Object.keys(both), ["one", "two"]);
});

test("a closed model is no failure of the page", async () => {
  const { end } = connected(), debug = mock.method(console, "debug", () => {});
  end.model.send = () => { throw new Error("closed"); };
  end.show();
  await page.wait(1600);
  assert.equal(debug.mock.callCount(), 1);
});

for (const where of ["receive", "paint"]) {
  test(`a failure to ${where} is told to the kernel`, async () => {
    mock.method(console, "error", () => {});
    const { end } = connected({ [where]: () => { throw new Error("no such thing"); } });
    end.show();
    await page.wait(50);
    assert.match(end.sent.find((message) => message.error).error, /no such thing/);
  });
}

test("what is watched tells the newest frame that it shows, and is painted when it changes", async () => {
  const { end, line, painted } = connected(), el = document.createElement("div");
  page.body.append(el);
  const unwatch = line.watch(el);
  end.show({ value: 1 });
  end.show({ value: 2 });
  await page.wait(50);
  assert.equal(el.dataset.frames, "2");
  for (const change of [page.resize, () => document.dispatchEvent(new Event("visibilitychange"))]) {
    const before = painted.length;
    change();
    await page.wait(50);
    assert.ok(painted.length > before);
  }
  unwatch();
  const before = painted.length;
  document.dispatchEvent(new Event("visibilitychange"));
  page.resize();
  await page.wait(50);
  assert.equal(painted.length, before);
  end.show({ value: 3 });
  await page.wait(50);
  assert.deepEqual([painted.length, el.dataset.frames], [before + 1, "2"]);
});

for (const [what, hide] of [
  ["a hidden page", () => { document.hidden = true; }], ["an element without width", (el) => { el.clientWidth = 0; }],
  ["what is off the page", (el) => el.remove()],
]) {
  test(`a frame is not shown on ${what}, but acknowledged`, async () => {
    const { end, line } = connected(), el = document.createElement("div");
    page.body.append(el);
    line.watch(el);
    hide(el);
    end.show();
    await page.wait(1600);
    assert.equal(el.dataset.frames, undefined);
    assert.equal(acks(end.sent).length, 1);
  });
}

test("what cannot be painted yet is not shown", async () => {
  const { end, line } = connected({ paint: () => false }), el = document.createElement("div");
  page.body.append(el);
  line.watch(el);
  end.show();
  await page.wait(50);
  assert.equal(el.dataset.frames, undefined);
});

test("a page without animation frames goes on", async () => {
  globalThis.requestAnimationFrame = () => {};
  const { end, painted } = connected();
  end.show({ value: 1 });
  await page.wait(300);
  assert.deepEqual(painted, [1]);
});

for (const [type, array] of [
  ["f4", Float32Array.of(1.5, -2)], ["f8", Float64Array.of(0.1)],
  ["u1", Uint8Array.of(1, 255)], ["i4", Int32Array.of(-7)],
]) {
  test(`buffers become arrays: ${type}`, () => {
    const copy = typed(new DataView(array.buffer), type);
    assert.deepEqual(copy, array);
    assert.notEqual(copy.buffer, array.buffer);
  });
}
