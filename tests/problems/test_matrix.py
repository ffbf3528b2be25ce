"""Learning a matrix: texts to matrices, the exact loss, and three routes that begin at the same map."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.p4 import MergeSchedule, P4Inv, p4_modules
from p4lab.problems.linear_maps import TARGETS, linear_target
from p4lab.problems.matrix import NAMES, ROUTES, MatrixProblem, as_text, matrix, matrix_model

EYE = torch.eye(2, dtype=torch.float64)


def det(a: torch.Tensor) -> float:
    return float(torch.linalg.det(a))


def trained(problem: MatrixProblem, route: str, steps: int, rate: float = 0.1) -> torch.nn.Module:
    model = matrix_model(route, problem.start, dtype=problem.dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    schedule = MergeSchedule(model, optimizer, every=5) if route != "plain" else None
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss(model, problem.batch(64, generator)).backward()
        optimizer.step()
        if schedule:
            schedule.step()
    return model


# --- matrices from texts ---


@pytest.mark.parametrize("dim", [2, 3, 8, 32])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_gives_a_finite_matrix_that_depends_on_the_seed_alone(name: str, dim: int) -> None:
    made = matrix(name, dim, seed=3)
    assert made.shape == (dim, dim)
    assert made.dtype == torch.float64
    assert bool(torch.isfinite(made).all())
    assert torch.equal(made, matrix(f" {name} ", dim, seed=3))


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_names_keep_their_promises(dim: int) -> None:
    eye = torch.eye(dim, dtype=torch.float64)
    made = {name: matrix(name, dim, seed=1) for name in NAMES}
    torch.testing.assert_close(made["rotation"] @ made["rotation"].t(), eye)
    assert det(made["rotation"]) == pytest.approx(1)
    assert det(made["reflection"]) == pytest.approx(-1)
    assert det(made["shear"]) == pytest.approx(1)
    assert det(made["minus_identity"]) == (-1) ** dim
    assert float(torch.linalg.cond(made["nearly_singular"])) == pytest.approx(1e3)
    assert det(made["nearly_singular"]) > 0
    assert torch.linalg.eigvalsh(made["spd"])[0] >= 0.5
    torch.testing.assert_close(made["spd"], made["spd"].t())
    assert (made["scaling"].diagonal()[0], made["scaling"].diagonal()[-1]) == (0.5, 4.5)


def test_a_rotation_of_the_plane_is_by_120_degrees() -> None:
    angles = torch.linalg.eigvals(matrix("rotation", 2)).angle().rad2deg()
    assert sorted(angles.tolist()) == pytest.approx([-120, 120])


@pytest.mark.parametrize("text", ["1 -2; 0.5 3e-1", "1,-2;.5,0.3", " 1, -2 ;0.5 ,0.30 "])
def test_rows_may_be_typed(text: str) -> None:
    assert matrix(text, 2).tolist() == [[1, -2], [0.5, 0.3]]


@given(entries=st.lists(st.floats(-1e3, 1e3), min_size=9, max_size=9))
def test_text_round_trip_keeps_four_decimals(entries: list[float]) -> None:
    given_matrix = torch.tensor(entries, dtype=torch.float64).view(3, 3)
    again = matrix(as_text(given_matrix), 3)
    assert float((again - given_matrix).abs().max()) <= 0.5001e-4
    assert as_text(again) == as_text(given_matrix)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotaton", "'rotaton' is not known: expected one of identity"),
        ("", "is not known"),
        ("nan", "is not known"),
        ("1 0; 0", "rows of 2 [+] 1 numbers: expected .* 2 rows of 2 numbers"),
        ("1 0; 0 1; 1 1", "rows of 2 [+] 2 [+] 2 numbers"),
        ("1 0; 0 1;", "rows of 2 [+] 2 [+] 0 numbers"),
        ("1 x; 0 1", "'x' is not a number"),
        ("nan 0; 0 1", "'nan' is not finite"),
        ("1e999 0; 0 1", "'1e999' is not finite"),
    ],
    ids=["typo", "empty", "nan", "short_row", "three_rows", "trailing_semicolon", "letter", "nan_entry", "overflow"],
)
def test_a_bad_text_says_what_arrived_and_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        matrix(text, 2)


def test_the_papers_targets_are_as_before() -> None:
    spd, so, minus = (linear_target(kind, 5, seed=1) for kind in TARGETS)
    assert spd.dtype == so.dtype == minus.dtype == torch.float32
    torch.testing.assert_close(spd.double(), matrix("spd", 5, seed=1), atol=1e-6, rtol=0)
    torch.testing.assert_close(so.double(), matrix("rotation", 5, seed=1), atol=1e-6, rtol=0)
    assert torch.equal(minus, -torch.eye(5))
    with pytest.raises(OptionError, match="'x'"):
        linear_target("x", 5)


# --- the loss ---


@pytest.mark.parametrize("dim", [2, 7])
def test_exact_loss_is_the_mean_square_of_the_difference(dim: int) -> None:
    start, target = matrix("random", dim, seed=1), matrix("spd", dim, seed=2)
    problem = MatrixProblem(start, target, dtype=torch.float64)
    model = matrix_model("p4inv", start, dtype=torch.float64)
    exact = float((start - target).square().sum()) / dim
    assert float(problem.loss(model, problem.batch(99, torch.Generator())).detach()) == pytest.approx(exact)
    assert float(problem.test_loss(model)) == pytest.approx(exact)


def test_sampled_loss_has_the_exact_one_as_its_mean() -> None:
    start, target = matrix("identity", 3), matrix("spd", 3, seed=2)
    problem = MatrixProblem(start, target, sampled=True, dtype=torch.float64)
    model = matrix_model("plain", start, dtype=torch.float64)
    x = problem.batch(20_000, torch.Generator().manual_seed(0))
    assert x.shape == (20_000, 3)
    assert float(problem.loss(model, x).detach()) == pytest.approx(float(problem.test_loss(model)), rel=0.05)


def test_the_target_may_move_during_a_run() -> None:
    problem = MatrixProblem(EYE, EYE, dtype=torch.float64)
    model = matrix_model("plain", EYE, dtype=torch.float64)
    assert float(problem.test_loss(model)) == 0
    problem.set_target(-EYE)
    assert float(problem.test_loss(model)) == 4
    assert float(problem.loss(model, problem.batch(1, torch.Generator())).detach()) == pytest.approx(4)
    assert problem.pictures(model, torch.zeros(1))["target"].tolist() == (-EYE).tolist()


@pytest.mark.parametrize("shape", [(3, 3), (2, 3), (2,)], ids=["larger", "not_square", "vector"])
def test_a_target_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="2, 2"):
        MatrixProblem(EYE, torch.ones(shape))


# --- the routes ---


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_starts_at_the_start_and_reaches_the_target(route: str, sampled: bool) -> None:
    problem = MatrixProblem(matrix("shear", 2), matrix("2 0.5; 0 1", 2), sampled, dtype=torch.float64)
    torch.testing.assert_close(problem.watched(trained(problem, route, 0)), problem.start)
    # Through the inverse, the loss is steep where W is small: the rate must be, too.
    assert float(problem.test_loss(trained(problem, route, 2000, rate=0.02))) < 1e-4


@pytest.mark.parametrize("route", ROUTES)
def test_watched_is_the_matrix_of_the_map(route: str) -> None:
    problem = MatrixProblem(matrix("spd", 4, seed=1), matrix("rotation", 4, seed=2), dtype=torch.float64)
    model = trained(problem, route, 7)
    x = torch.randn(5, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x), x @ problem.watched(model).t())
    if route != "plain":
        torch.testing.assert_close(model.logabsdet(), torch.linalg.slogdet(problem.watched(model))[1])


@pytest.mark.parametrize(("route", "modules"), [("plain", 0), ("p4inv", 1), ("through_inverse", 1)])
def test_the_schedule_finds_the_p4_module(route: str, modules: int) -> None:
    layers = p4_modules(matrix_model(route, EYE, rank=2))
    assert len(layers) == modules
    assert all(isinstance(layer, P4Inv) and layer.rank == 2 and layer.bias is None for layer in layers)


def test_pictures_are_copies_that_make_up_the_weight() -> None:
    problem = MatrixProblem(EYE, -EYE)
    model = trained(problem, "p4inv", 7)
    pictures = problem.pictures(model, torch.zeros(1))
    whole = pictures["frozen"] + pictures["u"].t() @ pictures["v"]
    np.testing.assert_allclose(whole.numpy(), pictures["weight"].numpy(), atol=1e-6)
    kept = {name: tensor.clone() for name, tensor in pictures.items()}
    torch.nn.init.ones_(model.u)
    model.merge()
    assert all(torch.equal(kept[name], pictures[name]) for name in pictures)
    assert set(problem.pictures(matrix_model("plain", EYE), torch.zeros(1))) == {"start", "target", "weight"}


@pytest.mark.parametrize("route", ROUTES)
def test_a_singular_start_is_refused_but_a_singular_target_is_not(route: str) -> None:
    singular = matrix("1 0; 0 0", 2)
    with pytest.raises(SingularMatrixError, match="the start matrix is singular"):
        matrix_model(route, singular)
    problem = MatrixProblem(EYE, singular, dtype=torch.float64)
    assert bool(torch.isfinite(problem.test_loss(trained(problem, route, 20))))


def test_an_unknown_route_is_refused() -> None:
    with pytest.raises(OptionError, match="'detour'"):
        matrix_model("detour", EYE)
