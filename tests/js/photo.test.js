import assert from "node:assert/strict";
import { test } from "node:test";
import { inflateSync } from "node:zlib";
import { wanted } from "../../p4lab/widgets/js/kept_picture.ts";
import { brighten, planOf } from "../../p4lab/widgets/js/photo.ts";
import { indexed, png } from "../../p4lab/widgets/js/png.ts";

const place = (x, y, width, height) => ({ x, y, width, height });

test("a picture is taken of a run that stands, and of one that goes on", () => {
  const cases = [["running", "paused"], ["paused", "paused"], ["running", "failed"], ["running", "running"]];
  assert.deepEqual(cases.map((states) => wanted(...states)), [true, true, true, true]);
  const not = [["", "idle"], ["paused", "running"], ["paused", "idle"], ["running", "closed"]];
  assert.deepEqual(not.map((states) => wanted(...states)), [false, false, false, false]);
});

test("curves below the pictures are as wide as they are", () => {
  const plan = planOf(place(50, 10, 900, 300), place(50, 330, 900, 420));
  assert.deepEqual(plan.curves, place(0, 320, 900, 420));
  assert.deepEqual([plan.width, plan.height], [900, 740]);
});

test("without pictures the curves are alone, and without curves the pictures", () => {
  const none = place(0, 0, 0, 0), [wide, high] = [place(9, 9, 1500, 600), place(9, 9, 700, 600)];
  assert.deepEqual([planOf(none, wide).width, planOf(none, high).height], [960, 460]);
  const alone = planOf(place(9, 9, 700, 300), none);
  assert.deepEqual([alone.width, alone.height, alone.curves.width], [700, 300, 0]);
});

test("dark paper becomes white, light letters dark, and hues stay", () => {
  const data = Uint8ClampedArray.of(17, 17, 17, 255, 240, 240, 240, 255, 106, 168, 255, 255);
  brighten(data, 17);
  assert.deepEqual([...data.slice(0, 8)], [255, 255, 255, 255, 16, 16, 16, 255]);
  const [r, g, b] = data.slice(8);
  assert.ok(b > g && g > r && r < 106, `${r} ${g} ${b}`);
});

/** Rows of colours as pixels with their opacity. */
const image = (colors, width) => ({
  data: Uint8ClampedArray.from(colors.flatMap((rgb) => [...rgb, 255])), width, height: colors.length / width,
});

test("a rare colour keeps its own place in the palette, and stays pure", () => {
  const greys = Array.from({ length: 1000 }, (_, i) => [i % 200, i % 200, i % 200]);
  const { palette, pixels } = indexed(image([...greys, [255, 0, 0], [255, 0, 0], [240, 60, 60]], 1).data, 8);
  assert.equal(palette.length, 8);
  assert.deepEqual(palette[pixels[1000]], [255, 0, 0]);
});

for (const [most, depth] of [[16, 4], [200, 8]]) {
  test(`a PNG of ${most} colours holds the image, at ${depth} bits for each pixel`, async () => {
    const colors = [[255, 255, 255], [0, 0, 0], [200, 30, 40], [0, 90, 200], [255, 255, 255], [0, 0, 0]];
    const content = Buffer.from(await png(image(colors, 3), most)), chunks = {};
    assert.deepEqual([...content.subarray(0, 8)], [137, 80, 78, 71, 13, 10, 26, 10]);
    for (let at = 8; at < content.length;) {
      const size = content.readUInt32BE(at);
      chunks[content.toString("latin1", at + 4, at + 8)] = content.subarray(at + 8, at + 8 + size);
      at += size + 12;
    }
    assert.deepEqual(Object.keys(chunks), ["IHDR", "PLTE", "IDAT", "IEND"]);
    assert.deepEqual([chunks.IHDR.readUInt32BE(0), chunks.IHDR.readUInt32BE(4), chunks.IHDR[8], chunks.IHDR[9]],
      [3, 2, depth, 3]);
    const rows = inflateSync(chunks.IDAT), line = rows.length / 2;
    const at = (x, y) => {
      const byte = rows[y * line + 1 + Math.floor((x * depth) / 8)], half = x % 2 ? byte & 15 : byte >> 4;
      const index = depth === 8 ? byte : half;
      return [...chunks.PLTE.subarray(3 * index, 3 * index + 3)];
    };
    assert.deepEqual([0, 1, 2, 3, 4, 5].map((i) => at(i % 3, Math.floor(i / 3))), colors);
  });
}
