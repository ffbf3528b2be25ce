import assert from "node:assert/strict";
import { globSync, readFileSync } from "node:fs";
import { test } from "node:test";

test("no line is longer than 120 characters", () => {
  const files = globSync(["p4lab/widgets/js/*.ts", "tests/js/*.js"]);
  const long = files.flatMap((file) => readFileSync(file, "utf8").split("\n").flatMap((line, i) => (
    [...line].length > 120 ? [`${file}:${i + 1}`] : [])));
  assert.ok(files.length > 20);
  assert.deepEqual(long, []);
});
