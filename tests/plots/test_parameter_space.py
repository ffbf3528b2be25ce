"""The slice of 2 x 2 matrices, the principal plane and the rank-one loss map, against brute force in float64."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from p4lab.plots.eigenvalues import eigenvalue_paths
from p4lab.plots.parameter_space import Slice, orthonormal_pair, principal_plane
from p4lab.plots.rank_one import SIDE, loss_map

EYE = np.eye(2)
MIRROR = np.diag([1.0, -1.0])
SHEAR = np.array([[1.0, 1.0], [0.0, 1.0]])
TURN = np.array([[-0.5, -(0.75**0.5)], [0.75**0.5, -0.5]])

entries = st.floats(-5, 5, allow_subnormal=False).map(lambda x: round(x, 6))
matrices = st.lists(entries, min_size=4, max_size=4).map(lambda row: np.array(row).reshape(2, 2))
points = st.lists(entries, min_size=3, max_size=3).map(np.array)


# --- the slice ---


@given(start=matrices, target=matrices)
def test_start_and_target_lie_in_the_slice(start: np.ndarray, target: np.ndarray) -> None:
    both = np.stack([start, target])
    plane = Slice.through(start, target)
    np.testing.assert_allclose(plane.offset(both), 0, atol=1e-6)
    np.testing.assert_allclose(plane.lift(plane.project(both)), both, atol=1e-6)


@given(start=matrices, target=matrices, point=points, other=matrices)
def test_lift_and_project_are_inverse_and_keep_distances(
    start: np.ndarray, target: np.ndarray, point: np.ndarray, other: np.ndarray
) -> None:
    plane = Slice.through(start, target)
    lifted = plane.lift(point)
    np.testing.assert_allclose(plane.project(lifted), point, atol=1e-12)
    assert plane.offset(lifted) == pytest.approx(0, abs=1e-12)
    # Pythagoras: within the slice, and away from it.
    within = 2 * np.square(plane.project(other) - point).sum()
    assert np.square(other - lifted).sum() == pytest.approx(within + plane.offset(other) ** 2)


@pytest.mark.parametrize(
    ("start", "target", "level"),
    [(EYE, TURN, 0), (EYE, -EYE, 0), (EYE, MIRROR, 0), (EYE, SHEAR, 0), (MIRROR, SHEAR, None), (SHEAR, SHEAR, 0)],
    ids=["rotation", "minus", "mirror", "shear", "mirror_to_shear", "same"],
)
def test_the_surface_is_where_the_determinant_vanishes(start: np.ndarray, target: np.ndarray, level: float) -> None:
    plane = Slice.through(start, target)
    if level is not None:
        assert plane.level == pytest.approx(level)
    surface = plane.surface(3.0)
    assert surface.shape == (41, 49, 3)
    np.testing.assert_allclose(np.linalg.det(plane.lift(surface)), 0, atol=1e-12)
    np.testing.assert_allclose(surface[:, 0], surface[:, -1], atol=1e-12)
    assert surface[:, :, 2].min() == -3
    assert surface[:, :, 2].max() == 3


def test_inside_of_the_surface_determinants_are_negative() -> None:
    plane = Slice.through(MIRROR, SHEAR)
    assert abs(plane.level) > 0.1
    waist = plane.level * np.array([[0.99, 0, 0], [1.01, 0, 0]])
    assert np.linalg.det(plane.lift(waist)).round(6).tolist() == [-0.003980, 0.004020]


@given(start=matrices, target=matrices, u=points, v=points, t=st.floats(0, 1))
def test_a_rank_one_segment_is_straight(
    start: np.ndarray, target: np.ndarray, u: np.ndarray, v: np.ndarray, t: float
) -> None:
    plane = Slice.through(start, target)
    ends = plane.project(np.stack([start, start + np.outer(u[:2], v[:2])]))
    between = plane.project(start + t * np.outer(u[:2], v[:2]))
    np.testing.assert_allclose(between, (1 - t) * ends[0] + t * ends[1], atol=1e-12)


def test_the_slice_stays_while_the_target_is_dragged_in_it() -> None:
    plane = Slice.through(MIRROR, SHEAR)
    beyond_start = plane.project(MIRROR) - [0, 0, 1.0]
    assert Slice.through(MIRROR, plane.lift(beyond_start).round(4), plane) is plane
    # A matrix elsewhere turns the slice by less than a right angle.
    for turn in np.linspace(0, 2 * math.pi, 24):
        target = np.array([[math.cos(turn), math.sin(turn)], [math.sin(turn), -math.cos(turn)]])
        after = Slice.through(EYE, target, plane)
        assert math.cos(after.angle - plane.angle) > -1e-9
        assert after.offset(np.stack([EYE, target])).max() < 1e-9
        plane = after


# --- the principal plane ---


def path(n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target, first, second = rng.normal(size=(3, d, d))
    t = np.linspace(1, 0, n)[:, None, None]
    return target + 3 * t * first + np.sin(5 * t) * second + 0.01 * rng.normal(size=(n, d, d)), target


@pytest.mark.parametrize(("n", "d"), [(5, 8), (200, 3), (256, 8), (700, 2)])
def test_principal_axes_are_those_of_the_singular_value_decomposition(n: int, d: int) -> None:
    matrices, target = path(n, d)
    plane = principal_plane(matrices, target)
    points = (matrices - target).reshape(n, -1)
    _, values, axes = np.linalg.svd(points, full_matrices=False)
    flat = plane.axes.reshape(2, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(2), atol=1e-12)
    exact = n <= 256
    np.testing.assert_allclose(abs((flat * axes[:2]).sum(1)), 1, atol=1e-9 if exact else 1e-3)
    np.testing.assert_allclose(plane.explained, values[:2] ** 2 / (values**2).sum(), rtol=1e-9 if exact else 1e-2)
    rest = points - plane.coordinates @ flat
    np.testing.assert_allclose(plane.offset, np.linalg.norm(rest, axis=1))
    np.testing.assert_allclose(plane.coordinates, points @ flat.T, atol=1e-12)


def test_a_growing_path_does_not_flip() -> None:
    matrices, target = path(200, 6)
    axes = None
    for n in range(10, 200, 10):
        plane = principal_plane(matrices[:n], target, axes)
        if axes is not None:
            overlap = (plane.axes * axes).sum((1, 2))
            assert overlap.min() > 0.5
        else:
            assert plane.coordinates[0, 0] < 0
        axes = plane.axes


@pytest.mark.parametrize("steps", [0.0, 1.0], ids=["at_the_target", "on_a_line"])
def test_paths_without_a_plane_still_get_one(steps: float) -> None:
    target = np.arange(9.0).reshape(3, 3)
    matrices = target + steps * np.arange(4, 0, -1.0)[:, None, None] * np.ones((3, 3))
    plane = principal_plane(matrices, target)
    flat = plane.axes.reshape(2, -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(plane.coordinates[:, 0], -3 * steps * np.arange(4, 0, -1.0), atol=1e-9)
    np.testing.assert_allclose(plane.explained, [steps, 0], atol=1e-12)
    np.testing.assert_allclose(plane.offset, 0, atol=1e-9)


@pytest.mark.parametrize("rows", [np.zeros((2, 3)), np.ones((2, 3)), np.eye(2, 4)], ids=["none", "one", "two"])
def test_a_pair_is_always_orthonormal_and_begins_with_the_rows(rows: np.ndarray) -> None:
    pair = orthonormal_pair(rows)
    np.testing.assert_allclose(pair @ pair.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(rows - rows @ pair.T @ pair, 0, atol=1e-12)


# --- the rank-one map ---


def brute(frozen: np.ndarray, a: np.ndarray, v: np.ndarray, target: np.ndarray, inverse: bool) -> float:
    w = frozen + np.outer(a, v / np.linalg.norm(v))
    return float(np.square((np.linalg.inv(w) if inverse else w) - target).sum() / len(target))


@pytest.mark.parametrize("inverse", [False, True], ids=["direct", "through_inverse"])
@given(seed=st.integers(0, 10_000), pixel=st.tuples(*[st.integers(0, SIDE - 1)] * 2), rank=st.integers(1, 2))
def test_every_pixel_is_the_loss_there(inverse: bool, seed: int, pixel: tuple[int, int], rank: int) -> None:
    rng = np.random.default_rng(seed)
    frozen, target = rng.normal(size=(2, 2, 2)) + 2 * np.eye(2)
    u, v = rng.normal(size=(2, rank, 2)) / 3
    base = frozen + u[1:].T @ v[1:]
    assume(np.linalg.cond(base) < 1e3)
    found = loss_map(frozen, u, v, target, inverse)
    line = np.linspace(-found.half, found.half, SIDE)
    a = np.array([line[pixel[1]], line[pixel[0]]])
    assume(abs(np.linalg.det(base + np.outer(a, v[0] / np.linalg.norm(v[0])))) > 1e-6)
    assert found.values[pixel] == pytest.approx(np.log10(brute(base, a, v[0], target, inverse)), abs=1e-6)
    here = brute(base, found.present, v[0], target, inverse)
    whole = frozen + u.T @ v
    assert here == pytest.approx(np.square((np.linalg.inv(whole) if inverse else whole) - target).sum() / 2)
    assert found.offset == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("inverse", [False, True], ids=["direct", "through_inverse"])
@pytest.mark.parametrize("d", [2, 8])
def test_the_best_point_is_a_minimum_over_all_u(inverse: bool, d: int) -> None:
    rng = np.random.default_rng(d)
    frozen, target = np.eye(d) + 0.3 * rng.normal(size=(2, d, d))
    u, v = rng.normal(size=(2, 1, d)) / 10
    found = loss_map(frozen, u, v, target, inverse)
    w = v[0] / np.linalg.norm(v)
    back = np.linalg.inv(frozen)
    wall = back.T @ w
    pull = (target - frozen) @ w if not inverse else None
    if inverse:
        b = (back - target) @ wall / (wall @ wall)
        pull = frozen @ b / (1 - w @ b)
    least = brute(frozen, pull, v[0], target, inverse)
    assert np.linalg.norm(found.best) == pytest.approx(np.linalg.norm(pull))
    for step in 1e-3 * rng.normal(size=(20, d)):
        assert brute(frozen, pull + step, v[0], target, inverse) > least
    assert (10**found.values).min() > least


@pytest.mark.parametrize("d", [2, 8])
def test_the_wall_is_where_the_determinant_vanishes(d: int) -> None:
    rng = np.random.default_rng(3)
    frozen = np.eye(d) + 0.1 * rng.normal(size=(d, d))
    v = rng.normal(size=(1, d))
    found = loss_map(frozen, np.zeros((1, d)), v, -3 * np.eye(d))
    assert found.wall.shape == (2, 2)
    assert np.abs(found.wall).max() == pytest.approx(found.half)
    assert np.abs(found.wall).max(axis=1) == pytest.approx(found.half)
    w = v[0] / np.linalg.norm(v)
    normal = np.linalg.inv(frozen).T @ w
    # The nearest point of the wall is as far from A as in the whole space of u.
    along = found.wall[1] - found.wall[0]
    nearest = found.wall[0] - along * (found.wall[0] @ along) / (along @ along)
    assert np.linalg.norm(nearest) == pytest.approx(1 / np.linalg.norm(normal))


def test_a_far_wall_is_not_drawn() -> None:
    u, v = np.array([[0.1, 0.0]]), np.array([[1.0, 0.0]])
    assert loss_map(EYE, u, v, EYE).wall.shape == (0, 2)
    # a = (-1, 0) makes the first diagonal entry 0.
    wall = loss_map(EYE, 10 * u, v, EYE).wall
    np.testing.assert_allclose(wall[:, 0], -1)
    assert sorted(wall[:, 1]) == pytest.approx([-2, 2])


def test_windows_grow_in_steps() -> None:
    v = np.array([[3.0, 4.0]])
    halves = [loss_map(EYE, size * v / 25, v, EYE).half for size in (0, 1e-4, 0.04, 0.3, 0.7, 1.5, 7)]
    np.testing.assert_allclose(halves, [0.02, 0.02, 0.05, 0.5, 1, 2, 10])


# --- eigenvalues ---


@pytest.mark.parametrize("d", [2, 5])
def test_eigenvalue_paths_undo_any_reordering(d: int) -> None:
    rng = np.random.default_rng(0)
    start = 3 * np.exp(2j * np.pi * np.arange(d) / d)
    paths = start * np.exp(1j * np.linspace(0, 4, 60))[:, None] + 0.01 * rng.normal(size=(60, d))
    shuffled = np.concatenate([paths[:1], rng.permuted(paths[1:], axis=1)])
    np.testing.assert_array_equal(eigenvalue_paths(shuffled), paths)


def test_a_real_pair_that_meets_goes_on_as_a_complex_pair() -> None:
    t = np.linspace(-1, 1, 41)
    values = np.sqrt(-t.astype(complex))[:, None] * [1, -1]
    assert np.abs(np.diff(eigenvalue_paths(values), axis=0)).max() < 0.4


def test_eigenvalues_that_are_not_finite_lose_none() -> None:
    values = np.array([[1, 2, 3], [np.nan, 1, 3.1], [3, 1, 2]], dtype=complex)
    ordered = eigenvalue_paths(values)
    np.testing.assert_array_equal(np.sort(ordered.real, axis=1), np.sort(values.real, axis=1))
    assert ordered[1, [0, 2]].tolist() == [1, 3.1]
