import assert from "node:assert/strict";
import { test } from "node:test";
import {
  Camera, normalsOf, outside, Pieces, project, projectAll, unproject,
} from "../../p4lab/widgets/js/projection.ts";

const BOX = [[-1, 3], [0, 2], [5, 6]];
const POINTS = [[-1, 0, 5], [3, 2, 6], [0.2, 1.1, 5.7]];
const near = (a, b, far = 1e-9) => a.every((value, i) => Math.abs(value - b[i]) < far);

function look(yaw = -55, pitch = 22, equal = false) {
  const camera = new Camera();
  camera.home([yaw, pitch]);
  return camera.eye(400, 300, BOX, equal);
}

for (const equal of [true, false]) {
  test(`what is at a point's place and depth is the point, ${equal ? "equal" : "free"} units`, () => {
    const eye = look(-55, 22, equal);
    for (const point of POINTS) assert.ok(near(unproject(eye, ...project(eye, point)), point));
  });
}

test("many points are projected as one is", () => {
  const eye = look(), { x, y, depth } = projectAll(Float32Array.from([...POINTS.flat(), Number.NaN, 0, 0]), eye);
  for (const [i, point] of POINTS.entries()) assert.ok(near([x[i], y[i], depth[i]], project(eye, point), 1e-3));
  assert.ok(Number.isNaN(x[3]) && Number.isNaN(depth[3]));
});

test("the outline of the box is in the middle of the canvas, and all of it is on it", () => {
  for (const yaw of [0, 40, 133, -90]) {
    const eye = look(yaw), corner = (c) => BOX.map((side, a) => side[(c >> a) & 1]);
    const corners = [...Array(8).keys()].map((c) => project(eye, corner(c)));
    for (const [i, size] of [[0, 400], [1, 300]]) {
      const values = corners.map((corner) => corner[i]), [low, high] = [Math.min(...values), Math.max(...values)];
      assert.ok(Math.abs(low + high - size) < 1e-9 && low > 0 && high < size);
    }
  }
});

test("from the front, right is right, up is up and near is near", () => {
  const eye = look(-90, 0), middle = project(eye, [1, 1, 5.5]);
  assert.ok(project(eye, [2, 1, 5.5])[0] > middle[0]);
  assert.ok(project(eye, [1, 1, 6])[1] < middle[1]);
  assert.ok(project(eye, [1, 0, 5.5])[2] > middle[2]);
});

test("a camera cannot be turned over, comes as near as it may, and goes home", () => {
  const camera = new Camera();
  camera.home([30, 20]);
  camera.turn(0.5, 9);
  camera.zoom(1e6);
  assert.deepEqual([camera.pitch, camera.near], [1.5, 8]);
  camera.home([30, 20]);
  assert.deepEqual([camera.yaw, camera.pitch, camera.near], [Math.PI / 6, Math.PI / 9, 1]);
});

test("zooming in makes the box larger", () => {
  const camera = new Camera(), width = () => {
    const eye = camera.eye(400, 300, BOX, true);
    return Math.abs(project(eye, POINTS[0])[0] - project(eye, POINTS[1])[0]);
  };
  camera.home([-55, 22]);
  const before = width();
  camera.zoom(2);
  assert.ok(Math.abs(width() / before - 2) < 1e-9);
});

test("normals stand upright on a level surface, have length one, and are NaN at a hole", () => {
  const level = [0, 0, 1, 1, 0, 1, 2, 0, 1, 0, 1, 1, 1, 1, 1, Number.NaN, 1, 1];
  const normals = [...normalsOf(level, [2, 3], [1, 1, 1])];
  assert.deepEqual(normals.slice(0, 3).map(Math.abs), [0, 0, 1]);
  assert.ok(normals.slice(3).some(Number.isNaN));
  const slope = [...normalsOf([0, 0, 0, 1, 0, 3, 0, 1, 0, 1, 1, 3], [2, 2], [1, 2, 3])];
  assert.ok(Math.abs(Math.hypot(...slope) - 1) < 1e-6);
  assert.equal(normalsOf([0, 0, 0, 1, 0, 0], [1, 2], [1, 1, 1]).length, 0);
});

test("what is outside of the bounds, but not what is on their edge", () => {
  const hidden = outside([0, 0, 0, 1, 1, 1.1, 1, 1, 1], [0, 1, 0, 1, 0, 1]);
  assert.deepEqual([0, 1, 2].map(hidden), [false, true, false]);
  assert.equal(outside([9, 9, 9], null)(0), false);
});

test("pieces are drawn from far to near, those of equal depth in their order", () => {
  const pieces = new Pieces(), drawn = [];
  for (const [name, depth] of [["near", 0.5], ["far", -0.9], ["first", 0.1], ["second", 0.1]]) {
    pieces.push(depth, (list) => list.push(name));
  }
  pieces.paint(drawn, 1);
  assert.deepEqual(drawn, ["far", "first", "second", "near"]);
});
