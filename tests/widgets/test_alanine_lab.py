"""The lab of alanine dipeptide, without a browser."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from attentive_page import attend

from p4lab.errors import ConfigError
from p4lab.molecules import alanine
from p4lab.training import Frame
from p4lab.widgets.alanine_lab import AlanineLab, alanine_lab
from p4lab.widgets.alanine_pictures import DEPTH, aligned, reference_map

SMALL: dict[str, Any] = {"initial": "new", "batch_size": 16, "measure_every": 5}


@pytest.fixture
def lab() -> Iterator[AlanineLab]:
    lab = alanine_lab(name="alanine", **SMALL)
    attend(lab)
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def drawn(lab: AlanineLab) -> Frame:
    frame = lab.player.frame(60)
    for view in lab._views:
        view.draw(frame)
    return frame


def readouts(lab: AlanineLab) -> dict[str, str]:
    values = lab._head._state["values"]
    return {name: values[name] for name in ("count", "ess", "shift", "rare")}


def test_what_is_seen_follows_training_and_time_travel(lab: AlanineLab) -> None:
    drawn(lab)
    drawn(lab)  # the numbers are those of the pictures before
    start = readouts(lab)
    assert start["ess"].count("|") == 1
    lab.player.ask(lambda runs: [runs.active.advance() for _ in range(10)], 120)
    drawn(lab)
    drawn(lab)
    trained = readouts(lab)
    assert trained["count"] == "10"
    assert trained["shift"] != start["shift"]
    lab.player.scrub(0)
    drawn(lab)
    drawn(lab)
    assert readouts(lab) == start


def test_two_runs_of_one_lab_are_looked_at_each_by_itself(lab: AlanineLab) -> None:
    drawn(lab)
    drawn(lab)
    first = readouts(lab)
    lab.player.set(seed=1)
    drawn(lab)
    drawn(lab)
    assert readouts(lab) != first


def test_closing_frees_what_the_pictures_hold() -> None:
    lab = alanine_lab(name="closing", **SMALL)
    drawn(lab)
    assert lab._looks_with._energy.context is not None
    lab.close()
    assert lab._looks_with._energy.context is None


def test_setting_out_of_range_is_refused_with_its_name() -> None:
    with pytest.raises(ConfigError, match="by_energy=2"):
        alanine_lab(by_energy=2.0)


def test_reference_map_is_highest_at_0_and_cut_at_its_depth() -> None:
    shown = reference_map()
    assert shown.max() == 0
    assert shown.min() == -DEPTH
    assert np.isfinite(shown).all()
    row, column = np.unravel_index(shown.argmax(), shown.shape)
    assert column < 32  # phi < 0 is where most molecules are
    assert row != column


def test_aligned_positions_keep_their_distances_and_do_not_jump() -> None:
    x = alanine.start().numpy()
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    turned = x @ (turn * torch.linalg.det(turn)).numpy() + 3.0
    a, b = aligned(x), aligned(turned)
    assert np.allclose(a, b, atol=1e-6)
    assert np.allclose(np.linalg.norm(a[0] - a[21]), np.linalg.norm(x[0] - x[21]), atol=1e-9)
    assert np.allclose(a.mean(0), 0, atol=1e-9)


def test_positions_that_are_not_finite_are_drawn_as_nothing() -> None:
    x = np.full((22, 3), np.nan)
    assert np.isnan(aligned(x)).all()


def test_only_one_architecture_starts_pretrained(lab: AlanineLab) -> None:
    for name, value, wanted in (
        ("initial", "pretrained", ("spline_p4", "pretrained")),
        ("architecture", "realnvp", ("realnvp", "new")),
        ("initial", "pretrained", ("spline_p4", "pretrained")),
        ("initial", "new", ("spline_p4", "new")),
    ):
        lab._touched(name, value)
        planned = lab.player.frame(60).planned.to_dict()
        assert (planned["architecture"], planned["initial"]) == wanted


def test_the_first_picture_is_of_the_flow_that_comes_with_p4lab() -> None:
    lab = alanine_lab(name="alanine")
    attend(lab)
    try:
        drawn(lab)
        drawn(lab)
        assert lab.config.initial == "pretrained"
        assert float(readouts(lab)["ess"].split("|")[0]) > 50
        assert lab.error is None
    finally:
        lab.close()
