"""The lab of stability: targets by the push, lanes by precision, damage and repair, and what one sees of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import as_number, opened, train
from torch import Tensor

from p4lab.errors import ConfigError, ShapeError
from p4lab.labs.break_it import (
    BREAK,
    BUTTONS,
    DAMAGE,
    LANES,
    WRECK,
    StabilityConfig,
    StabilityProblem,
    damage,
    precisions,
    recompute,
)
from p4lab.linalg import residual
from p4lab.p4 import P4Inv
from p4lab.plots.layers import Points
from p4lab.training import Engine, Lanes, RunConfig

PUSHES = {"safe": 1.0, "edge": 1e-6, "singular": 0.0, "mirror": -1.0}
ATTACKS = {"attack:singular": 0.0, "attack:hover": 1e-3, "attack:cross": -1.0, "attack:safety": 1.0}


def layer(lanes: Lanes, name: str) -> P4Inv:
    model = lanes.engines[name].model
    assert isinstance(model, P4Inv)
    return model


def pair(lanes: Lanes, read: str) -> tuple[Tensor, Tensor]:
    """What both lanes have, in float64."""
    first, second = (getattr(layer(lanes, name), read).detach().double() for name in LANES)
    return first, second


def pictures(lanes: Lanes, name: str) -> dict[str, Tensor]:
    engine = lanes.engines[name]
    problem: StabilityProblem = engine.problem
    return problem.pictures(engine.model, torch.zeros(0))


def marks(lab: Any, area: str) -> dict[str, Any]:
    layers = lab.drawings()[area].layers
    return {layer.label: layer.points for layer in layers if isinstance(layer, Points) and layer.label}


def number(lab: Any, name: str) -> float:
    return as_number(lab.numbers()[name])


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 16])
@pytest.mark.parametrize("push", PUSHES.values(), ids=PUSHES)
def test_the_push_is_the_determinant_and_the_least_singular_value(push: float, dim: int) -> None:
    target = StabilityConfig(push=push, dim=dim).target()
    expected = torch.ones(dim, dtype=torch.float64)
    expected[-1] = abs(push)
    torch.testing.assert_close(torch.linalg.svdvals(target), expected, atol=1e-14, rtol=1e-12)
    torch.testing.assert_close(torch.linalg.det(target).item(), push, atol=1e-14, rtol=1e-9)


def test_targets_of_all_pushes_lie_on_a_line_and_the_seed_turns_it() -> None:
    a, b, c = (StabilityConfig(push=push).target() for push in (-1.0, 0.0, 1.0))
    torch.testing.assert_close(b, (a + c) / 2)
    assert torch.linalg.matrix_rank(c - a) == 1
    assert not torch.allclose(c, StabilityConfig(seed=1).target(), atol=0.1)


def test_rotations_keep_clear_of_minus_one() -> None:
    # The way from the identity to a rotation by at most 60 degrees stays far from det = 0.
    for seed in range(5):
        eigenvalues = torch.linalg.eigvals(StabilityConfig(seed=seed).target())
        assert eigenvalues.real.min() > 0.5 - 1e-9


def test_a_text_says_what_differs() -> None:
    config = StabilityConfig(push=-1e-6, dim=8, skip=False, refine_order=7, seed=3)
    assert config.to_text() == "stability?seed=3&refine_order=7&skip=false&dim=8&push=-1e-06"
    assert RunConfig.from_text(config.to_text()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"push": 2.5}, r"push=2.5: expected a number from -2 to 2"),
        ({"push": math.nan}, r"push=nan: expected"),
        ({"dim": 1}, r"dim=1: expected"),
        ({"reset": "gradient"}, r"reset='gradient': expected"),
    ],
    ids=["far", "nan", "narrow", "gradient"],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StabilityConfig(**changes)


def test_the_push_acts_while_the_run_goes_on() -> None:
    lanes = precisions(StabilityConfig())
    lanes.run(10)
    weights = pair(lanes, "weight")
    lanes.set("push", -1.0)
    for name, weight in zip(LANES, weights, strict=True):
        engine = lanes.engines[name]
        torch.testing.assert_close(engine.problem.target, StabilityConfig(push=-1.0).target(), rtol=0, atol=1e-7)
        torch.testing.assert_close(layer(lanes, name).weight.detach().double(), weight, rtol=0, atol=0)
        assert pictures(lanes, name)["target"].square().sum(-1).sqrt().prod().item() == pytest.approx(1)
    lanes.run(1)
    assert lanes.records.steps.columns["loss"][-1] > 4 / 16
    with pytest.raises(ConfigError, match="dim=8: applies at reset"):
        lanes.set("dim", 8)


def test_a_target_of_another_shape_is_refused() -> None:
    problem, _ = StabilityConfig().parts()
    with pytest.raises(ShapeError):
        problem.set_target(torch.eye(3, dtype=torch.float64))


def test_both_lanes_start_alike() -> None:
    lanes = precisions(StabilityConfig())
    assert [layer(lanes, name).u.dtype for name in LANES] == [torch.float32, torch.float64]
    for read in ("weight", "frozen_weight", "frozen_inverse"):
        for matrix in pair(lanes, read):
            torch.testing.assert_close(matrix, torch.eye(16, dtype=torch.float64), rtol=0, atol=0)
    targets = [lanes.engines[name].problem.target.double() for name in LANES]
    torch.testing.assert_close(*targets, rtol=0, atol=1e-7)


def test_both_lanes_draw_the_same_directions_merge_after_merge() -> None:
    lanes = precisions(StabilityConfig(merge_every=2))
    seen = []
    for _ in range(4):
        first, second = pair(lanes, "v")
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)
        seen.append(first.clone())
        lanes.run(2)
    assert all((seen[i] - seen[i + 1]).abs().max() > 0.1 for i in range(3))
    torch.testing.assert_close(*pair(lanes, "weight"), rtol=0, atol=1e-5)


def test_a_rank_above_the_width_is_cut() -> None:
    _, model = StabilityConfig(dim=4, rank=8).parts()
    assert model.rank == 4


def test_pictures_agree_with_the_matrix() -> None:
    lanes = precisions(StabilityConfig(push=-1.0))
    lanes.run(300)
    for name in LANES:
        seen, weight = pictures(lanes, name), layer(lanes, name).weight.detach().double()
        assert seen["eigenvalues"].shape == seen["target"].shape == (16, 2)
        product = torch.view_as_complex(seen["eigenvalues"]).prod()
        torch.testing.assert_close(product.real, torch.linalg.det(weight), rtol=1e-9, atol=0)
        torch.testing.assert_close(seen["singular"], torch.linalg.svdvals(weight))
        assert seen["det"] == seen["sign"] == -1
        bound = 1e-4 if name == "float32" else 1e-11
        assert seen["residual"] < bound
        assert seen["logabsdet_error"] < bound


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "inf"])
def test_weights_that_are_not_finite_give_nan_and_no_error(value: float) -> None:
    lanes = precisions(StabilityConfig())
    with torch.no_grad():
        layer(lanes, "float32").u[0, 0] = value
    seen = pictures(lanes, "float32")
    assert all(picture.isnan().all() for name, picture in seen.items() if name != "target")
    assert seen["target"].isfinite().all()
    assert not any(picture.isnan().any() for picture in pictures(lanes, "float64").values())
    assert {name: picture.shape for name, picture in seen.items()} == {
        name: picture.shape for name, picture in pictures(lanes, "float64").items()
    }


# --- damage and repair ------------------------------------------------------------------------------------------------


def test_damage_is_the_same_in_both_lanes_and_spares_weight_and_determinant() -> None:
    lanes = precisions(StabilityConfig())
    lanes.run(22)
    before = {read: [t.clone() for t in pair(lanes, read)] for read in ("weight", "frozen_logabsdet", "frozen_inverse")}
    damage(lanes)
    for read in ("weight", "frozen_logabsdet"):
        for old, new in zip(before[read], pair(lanes, read), strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=0)
    single, double = (
        new / old - 1 for new, old in zip(pair(lanes, "frozen_inverse"), before["frozen_inverse"], strict=True)
    )
    torch.testing.assert_close(single, double, rtol=1e-2, atol=1e-6)
    assert 0.8 * DAMAGE < double.std() < 1.2 * DAMAGE
    for name in LANES:
        assert layer(lanes, name).violation() > 0.05
        # What follows from the inverse follows from the damaged one.
        model = layer(lanes, name)
        assert model.q is not None
        torch.testing.assert_close(model.q, model.v @ model.frozen_inverse)
        assert lanes.engines[name].records.all_events()[-1].text == "damage = 0.1"


def test_recompute_mends_inverse_and_determinant() -> None:
    lanes = precisions(StabilityConfig(skip=False))
    lanes.run(20)
    damage(lanes, WRECK)
    lanes.run(20)
    model = layer(lanes, "float64")
    assert residual(model.frozen_weight, model.frozen_inverse) > 0.1
    exact = torch.linalg.slogdet(model.frozen_weight).logabsdet
    assert abs(model.frozen_logabsdet - exact) > 1e-3
    weight = model.weight.detach().clone()
    recompute(lanes)
    assert residual(model.frozen_weight, model.frozen_inverse) < 1e-13
    assert abs(model.frozen_logabsdet - exact) < 1e-13
    torch.testing.assert_close(model.weight.detach(), weight, rtol=0, atol=0)
    assert lanes.records.all_events()[-1].text == "inverse = recomputed"


@pytest.mark.parametrize("order", [2, 3, 7])
def test_refinement_mends_damage_but_not_a_wreck(order: int) -> None:
    config = StabilityConfig(dtype="float64", refine_every=1, refine_order=order, merge_every=1)
    steps = {2: 6, 3: 4, 7: 3}[order]
    mended, wrecked = Engine(config), Engine(config)
    for engine, amount in ((mended, DAMAGE), (wrecked, WRECK)):
        engine.run(20)
        damage(engine, amount)
        engine.run(steps)
    assert mended.model.violation() < 1e-14
    assert wrecked.model.violation() > 0.1
    skipped = wrecked.records.counts["skip"]
    assert skipped == steps  # an inverse that is wrong along the perturbation lets no merge pass


def near_zero(**changes: bool) -> Engine:
    engine = Engine(StabilityConfig(**changes))
    for steps, push in ((200, 1.0), (500, 0.0)):
        engine.set("push", push)
        engine.run(steps)
    return engine


def test_without_skip_det_zero_ruins_the_float32_inverse() -> None:
    engine = near_zero(skip=False)
    assert engine.model.violation() > 1
    engine.set("push", 1.0)
    engine.run(300)
    assert engine.records.steps.columns["loss"][-1] < 1e-6  # the weights come back
    assert engine.model.violation() > 1  # the inverse does not


def test_skip_keeps_the_inverse() -> None:
    engine = near_zero(skip=True)
    assert engine.records.counts["skip"] > 5
    assert engine.model.violation() < 0.1


def test_penalty_keeps_away_from_det_zero() -> None:
    engine = near_zero(penalty=True, skip=False)
    assert torch.linalg.svdvals(engine.model.weight.detach())[-1] > 1e-2
    assert engine.model.violation() < 1e-3


# --- attacks, deeds, and what one sees --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_moves_the_push_of_a_run_that_has_begun(name: str) -> None:
    with opened(BREAK) as lab:
        lab.player.step()
        lab.touch("push", 0.3)
        lab.touch(name)
        push = ATTACKS[name]
        assert push in BREAK.config.settings["push"].offered(lab.config, 0.3)
        assert [lane.config.push for lane in lab.sight().lanes.values()] == [push] * 2
        assert lab.values()["push"] == push


@pytest.mark.parametrize(("name", "least"), [("damage", 0.05), ("wreck", 0.3)])
def test_damage_shows_in_both_lanes_and_recompute_mends_it(name: str, least: float) -> None:
    with opened(BREAK) as lab:
        train(lab, 20)
        assert number(lab, "residual_float32") < 1e-5
        lab.touch(name)
        assert min(number(lab, f"residual_{lane}") for lane in LANES) > least
        lab.touch("recompute")
        assert number(lab, "residual_float32") < 1e-5
        assert number(lab, "residual_float64") < 1e-13
        texts = [event.text for event in lab.sight().snapshot.events if event.kind == "set"]
        assert texts == [f"damage = {DAMAGE if name == 'damage' else WRECK:g}", "inverse = recomputed"]


def test_merges_are_refused_until_refinement_has_mended_the_inverse() -> None:
    with opened(BREAK) as lab:
        train(lab, 20)
        lab.touch("damage")
        train(lab, 20)
        refused = lab.numbers()["skips"]
        assert min(int(refused["value"]), int(refused["unit"].strip("| "))) >= 4
        lab.touch("refine_every", 1)
        train(lab, 45)
        assert number(lab, "residual_float64") < 1e-13
        assert int(lab.numbers()["merges"]["value"]) >= 4 + 4


@pytest.mark.parametrize("name", [name for name in BUTTONS if name not in ATTACKS])
def test_the_past_cannot_be_changed_but_a_branch_of_it_can(name: str) -> None:
    with opened(BREAK) as lab:
        train(lab, 40)
        lab.touch("scrub", 20)
        step = lab.sight().frame.shown
        with pytest.raises(ConfigError, match=f"{name}: step {step} is past; press Now, or Branch here"):
            lab.touch(name)
        assert "is past" in lab.message()
        lab.touch("branch")
        lab.touch(name)
        assert "is past" not in lab.message()
        assert (number(lab, "residual_float64") > 0.05) == (name != "recompute")
        lab.touch("runs", {"action": "select", "number": lab.sight().frame.runs[0].number})
        assert number(lab, "residual_float64") < 1e-12


def test_pictures_show_both_lanes_and_the_target_of_now_and_then() -> None:
    with opened(BREAK) as lab:
        lab.touch("attack:cross")
        train(lab, 500)
        points = marks(lab, "eigenvalues")
        assert set(points) == {"target", *LANES}
        np.testing.assert_allclose(points["float32"], points["float64"], atol=1e-3)
        for lane in LANES:
            assert np.linalg.norm(points[lane][:, None] - points["target"][None], axis=-1).min(0).max() < 1e-2
        assert lab.numbers()["det"] == {"value": "−", "unit": ""}
        np.testing.assert_allclose(marks(lab, "singular")["float64"][:, 1], 0, atol=1e-2)
        lab.touch("scrub", 0)
        np.testing.assert_allclose(marks(lab, "eigenvalues")["float32"], [[1, 0]] * 16, atol=1e-6)
        assert lab.numbers()["det"] == {"value": "+", "unit": ""}
        lab.touch("now")
        lab.touch("attack:singular")
        train(lab, 400)
        assert marks(lab, "singular")["float64"][-1, 1] < -3
        assert number(lab, "smallest") < 1e-3


def test_a_lane_that_carries_the_wrong_sign_says_so() -> None:
    with opened(BREAK, skip=False) as lab:
        train(lab, 5)
        lab.player.ask(lambda runs: runs.active.engine.engines["float32"].model.frozen_sign.neg_(), 10)
        assert lab.numbers()["det"] == {"value": "+", "unit": "carried 32 bit: −"}


def test_a_lane_that_is_not_finite_stops_and_the_pictures_stay() -> None:
    with opened(BREAK) as lab:
        train(lab, 5)
        lab.player.ask(lambda runs: runs.active.engine.engines["float32"].model.frozen_weight.fill_(math.nan), 10)
        train(lab, 5)
        assert lab.message().startswith("float32 stopped: step ")
        numbers = lab.numbers()
        assert (numbers["residual_float32"], numbers["smallest"], numbers["det"]["value"]) == ("–", "–", "?")
        assert number(lab, "residual_float64") < 1e-12
        points = marks(lab, "eigenvalues")
        assert not np.isfinite(points["float32"]).any()
        assert np.isfinite(points["float64"]).all()


def test_curves_are_the_exact_losses_of_both_lanes() -> None:
    with opened(BREAK) as lab:
        train(lab, 30)
        lines = {trace["name"]: trace for trace in BREAK.curves(lab.sight())["data"] if trace.get("showlegend")}
        assert set(lines) == set(LANES)
        for lane, snapshot in lab.sight().lanes.items():
            np.testing.assert_allclose(lines[lane]["y"], snapshot.curves["loss"][1])
