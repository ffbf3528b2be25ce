"""The stability lab without a browser: attacks and rescues in, settings, pictures and numbers out."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from attentive_page import drawn

from p4lab.errors import ConfigError
from p4lab.plots.layers import Points
from p4lab.training import Frame
from p4lab.training.stability import LANES, StabilityConfig
from p4lab.widgets.break_lab import ATTACKS, BreakLab, break_lab, settings


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[BreakLab]:
    lab = break_lab(name="break", **getattr(request, "param", {}))
    yield lab
    lab.close()


def train(lab: BreakLab, steps: int) -> Frame:
    # One command for all of them: nothing is drawn in between.
    lab.player.ask(lambda runs: [runs.active.advance() for _ in range(steps)], 60)
    lab.player.step()
    return drawn(lab)


def shown(lab: BreakLab, name: str) -> Any:
    return next(readout for readout in lab._readouts if readout.item.name == name).value(lab.player.frame(20))


def marks(lab: BreakLab, picture: int) -> dict[str, Any]:
    layers = lab._views[picture].widget._layers
    return {layer.label: layer.points for layer in layers if isinstance(layer, Points) and layer.label}


# --- attacks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_moves_the_push_of_a_running_run(lab: BreakLab, name: str) -> None:
    lab._touched("push", 0.3)
    train(lab, 3)
    lab._touched(name, None)
    frame = drawn(lab)
    assert frame.planned.push == frame.snapshot.config.push == ATTACKS[name].push
    assert frame.pending == ()
    assert lab._side._state["values"]["push"] == ATTACKS[name].push
    assert [lane.config.push for lane in frame.snapshot.lanes.values()] == [ATTACKS[name].push] * 2


def test_every_attack_is_a_notch_of_the_slider() -> None:
    lab = break_lab(name="break", push=0.5)
    choices = next(item for item in _items(lab) if item.name == "push").choices
    lab.close()
    assert {attack.push for attack in ATTACKS.values()} | {0.5} <= set(choices)
    assert list(choices) == sorted(choices)


def _items(lab: BreakLab) -> list[Any]:
    return [item for group in settings(lab.config) for item in group.items]


# --- damage and repair ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("damage", 0.05), ("wreck", 0.3)])
def test_damage_shows_in_both_lanes_and_recompute_mends_it(lab: BreakLab, name: str, least: float) -> None:
    train(lab, 20)
    assert float(shown(lab, "residual_float32")) < 1e-5
    lab._touched(name, None)
    drawn(lab)
    for lane in LANES:
        assert float(shown(lab, f"residual_{lane}")) > least
    lab._touched("recompute", None)
    frame = drawn(lab)
    assert float(shown(lab, "residual_float32")) < 1e-5
    assert float(shown(lab, "residual_float64")) < 1e-13
    texts = [event.text for event in frame.snapshot.events if event.kind == "set"]
    assert texts == [f"damage = {0.1 if name == 'damage' else 0.5:g}", "inverse = recomputed"]


def test_merges_are_refused_until_refinement_has_mended_the_inverse(lab: BreakLab) -> None:
    train(lab, 20)
    lab._touched("damage", None)
    train(lab, 20)
    refused = shown(lab, "skips")
    assert int(refused["value"]) >= 4
    lab._touched("refine_every", 1)
    train(lab, 30)
    assert float(shown(lab, "residual_float64")) < 1e-13
    merged = shown(lab, "merges")
    assert int(merged["value"]) >= 4 + 4


@pytest.mark.parametrize("name", ["damage", "wreck", "recompute"])
def test_the_past_cannot_be_changed(lab: BreakLab, name: str) -> None:
    train(lab, 40)
    lab.player.scrub(20)
    before = drawn(lab)
    lab._touched(name, None)
    frame = drawn(lab)
    told = lab._message(frame)
    assert told["level"] == "error"
    assert f"{name}: step {before.shown:,} is past; press Now, or Branch here" in told["text"]
    lab._touched("now", None)
    assert float(shown(lab, "residual_float32")) < 1e-4
    lab._touched(name, None)  # at present it is done, and the message is gone
    assert lab._message(drawn(lab))["level"] == "info"


def test_a_branch_can_be_damaged_while_its_origin_stays_whole(lab: BreakLab) -> None:
    train(lab, 40)
    lab.player.scrub(20)
    lab.player.branch()
    lab._touched("damage", None)
    frame = drawn(lab)
    assert len(frame.runs) == 2
    assert float(shown(lab, "residual_float64")) > 0.05
    lab.player.select(frame.runs[0].number)
    drawn(lab)
    assert float(shown(lab, "residual_float64")) < 1e-12


# --- what one sees ----------------------------------------------------------------------------------------------------


def test_pictures_show_both_lanes_and_the_target(lab: BreakLab) -> None:
    lab._touched("attack:cross", None)
    train(lab, 500)
    eigenvalues, singular = marks(lab, 0), marks(lab, 1)
    assert set(eigenvalues) == {"target", *LANES}
    np.testing.assert_allclose(eigenvalues["float32"], eigenvalues["float64"], atol=1e-3)
    for lane in LANES:
        assert np.linalg.norm(eigenvalues[lane][:, None] - eigenvalues["target"][None], axis=-1).min(0).max() < 1e-2
    assert shown(lab, "det") == {"value": "−", "unit": ""}
    np.testing.assert_allclose(singular["float64"][:, 1], 0, atol=1e-2)
    lab._touched("attack:singular", None)
    train(lab, 400)
    assert marks(lab, 1)["float64"][-1, 1] < -3
    assert float(shown(lab, "smallest")) < 1e-3


@pytest.mark.parametrize("lab", [{"skip": False}], ids=["skip_off"], indirect=True)
def test_a_lane_that_carries_the_wrong_sign_says_so(lab: BreakLab) -> None:
    train(lab, 5)
    lab.player.engine.engines["float32"].model.frozen_sign.neg_()
    lab.player.poke()
    drawn(lab)
    assert shown(lab, "det") == {"value": "+", "unit": "carried 32 bit: −"}


def test_a_lane_that_is_not_finite_stops_and_the_pictures_stay(lab: BreakLab) -> None:
    train(lab, 5)
    lab.player.engine.engines["float32"].model.frozen_weight[0, 0] = np.nan
    frame = train(lab, 5)
    told = lab._message(frame)
    assert told["level"] == "error"
    assert told["text"].startswith("float32 stopped: step ")
    assert shown(lab, "residual_float32") == shown(lab, "smallest") == "–"
    assert shown(lab, "det")["value"] == "?"
    assert float(shown(lab, "residual_float64")) < 1e-12
    assert not np.isfinite(marks(lab, 0)["float32"]).any()
    assert np.isfinite(marks(lab, 0)["float64"]).all()
    lab.player.reset()
    drawn(lab)
    assert shown(lab, "det")["value"] == "+"


def test_curves_have_one_line_for_each_lane(lab: BreakLab) -> None:
    frame = train(lab, 30)
    traces = lab._curves(frame)["data"]
    assert [trace["name"] for trace in traces if trace.get("showlegend")] == ["float64", "float32"]
    loss = next(trace for trace in traces if trace["name"] == "float32" and trace.get("showlegend"))
    np.testing.assert_allclose(loss["y"], frame.snapshot.curves["loss"][1])


def test_time_travel_shows_the_inverse_of_then(lab: BreakLab) -> None:
    train(lab, 30)
    lab._touched("damage", None)
    train(lab, 10)
    assert float(shown(lab, "residual_float64")) > 0.05
    lab.player.scrub(20)
    drawn(lab)
    assert float(shown(lab, "residual_float64")) < 1e-12


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"push": 3.0}, "push=3.0: expected"), ({"target": "identity"}, "target='identity': there is no such setting")],
    ids=["range", "name"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        break_lab(name="break", **changes)


def test_every_setting_is_one_of_the_config_and_holds_its_value(lab: BreakLab) -> None:
    drawn(lab)
    values = lab._side._state["values"]
    fields = StabilityConfig().to_dict()
    for item in _items(lab):
        if item.kind != "button" and item.name != "speed":
            assert item.name in fields
            assert values[item.name] == fields[item.name]
            if item.choices:
                assert fields[item.name] in item.choices
    assert values["speed"] == 100


def test_live_settings_act_at_once_and_others_wait(lab: BreakLab) -> None:
    train(lab, 3)
    for name, value in {
        "skip": False,
        "penalty": True,
        "refine_every": 5,
        "refine_order": 7,
        "merge_every": 20,
    }.items():
        lab._touched(name, value)
        assert getattr(drawn(lab).snapshot.config, name) == value
    lab._touched("dim", 8)
    assert drawn(lab).pending == ("dim",)
    lab.player.reset()
    assert drawn(lab).snapshot.pictures["singular"].shape == (8,)


def test_config_text_pastes_into_another_lab(lab: BreakLab) -> None:
    lab._touched("config", "stability?push=-1.0&skip=false&dim=8")
    frame = drawn(lab)
    assert (frame.planned.push, frame.planned.skip, frame.planned.dim) == (-1.0, False, 8)
    assert frame.planned.to_text() == "stability?skip=false&dim=8&push=-1.0"
