"""The labs of Boltzmann generators and of temperatures: pictures, tables, dials, settings, without a browser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from attentive_page import drawn, items, layers

from p4lab.boltzmann import steerable_flow
from p4lab.errors import ConfigError
from p4lab.plots.layers import Heatmap, Path, Points
from p4lab.problems.energies import DoubleWell, plane_energy
from p4lab.training import State
from p4lab.training.boltzmann_setup import FLOWS, BoltzmannConfig
from p4lab.training.runs import Runs
from p4lab.training.temperature_setup import TemperatureConfig
from p4lab.widgets.boltzmann_lab import FLOW_TEXTS, BoltzmannLab, boltzmann_lab
from p4lab.widgets.boltzmann_pictures import COARSE, FINE, bars, number
from p4lab.widgets.temperature_lab import TemperatureLab, temperature_lab
from p4lab.widgets.temperature_pictures import TEMPERATURES, MarginalTable, momenta_grid, side_of

SMALL: dict[str, Any] = {"blocks": 2, "hidden": 8, "batch_size": 32, "measure_every": 5}
LANDSCAPE, DENSITY, PROFILE, ENERGIES, SIZES = range(5)
EXACT, STEERED, STEERED_PROFILE, OVER_SIZES, OVER_DIFFERENCES = range(5)


@pytest.fixture
def lab() -> Iterator[BoltzmannLab]:
    lab = boltzmann_lab(name="boltzmann", **SMALL)
    yield lab
    error = lab.error
    lab.close()
    assert error is None


@pytest.fixture
def dial() -> Iterator[TemperatureLab]:
    lab = temperature_lab(name="temperature", **SMALL)
    yield lab
    error = lab.error
    lab.close()
    assert error is None


def train(lab: Any, steps: int) -> None:
    def advance(runs: Runs) -> None:
        for _ in range(steps):
            runs.active.advance()

    lab.player.ask(advance, 60)
    lab.player.poke()


def board(lab: Any) -> list[list[str]]:
    return [row["cells"] for row in lab._board.widget._state["values"]["board"]["rows"]]


def value(cell: str) -> float:
    return float(cell.split(" ")[0].replace("−", "-"))


# --- Boltzmann generators ---------------------------------------------------------------------------------------------


def test_training_changes_the_flow_and_not_the_energy(lab: BoltzmannLab) -> None:
    drawn(lab)
    before = [layers(lab, index, Heatmap)[0].values for index in (LANDSCAPE, DENSITY)]
    train(lab, 5)
    drawn(lab)
    after = [layers(lab, index, Heatmap)[0].values for index in (LANDSCAPE, DENSITY)]
    assert [np.array_equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False]


def test_densities_are_coarser_while_training(lab: BoltzmannLab) -> None:
    for state, side in ((State.RUNNING, COARSE), (State.PAUSED, FINE)):
        drawn(lab, state)
        assert layers(lab, DENSITY, Heatmap)[0].values.shape == (side, side)


def test_the_density_that_is_drawn_is_the_flows(lab: BoltzmannLab) -> None:
    train(lab, 3)
    drawn(lab)
    heatmap = layers(lab, DENSITY, Heatmap)[0]
    x0, x1, y0, y1 = DoubleWell().bounds
    mass = float(np.sum(heatmap.values)) * (x1 - x0) * (y1 - y0) / FINE**2
    assert 0.7 < mass < 1.02  # the rest lies outside of the picture
    lab._touched("log", True)
    drawn(lab)
    logs = layers(lab, DENSITY, Heatmap)[0]
    seen = logs.values > logs.low
    np.testing.assert_allclose(np.exp(logs.values[seen]), heatmap.values[seen], rtol=1e-4)


def test_samples_can_be_hidden(lab: BoltzmannLab) -> None:
    drawn(lab)
    assert layers(lab, LANDSCAPE, Points)
    lab._touched("samples", False)
    drawn(lab)
    assert not layers(lab, LANDSCAPE, Points)
    assert lab._bar._state["values"]["samples"] is False


def test_the_table_says_what_is_exact_and_what_reweighting_makes_of_the_flow(lab: BoltzmannLab) -> None:
    train(lab, 60)
    drawn(lab)
    exact, raw, weighted = board(lab)
    truth = DoubleWell()
    assert exact[1] == f"{truth.free_energy_difference():.3f}"
    assert exact[2] == f"{100 * truth.share_of_b():.2f} %"
    assert raw[-1] == "–"
    assert value(weighted[3]) == pytest.approx(value(exact[3]), abs=0.25)
    assert value(weighted[4]) == pytest.approx(truth.log_z(), abs=0.2)
    assert abs(value(weighted[3]) - value(exact[3])) < abs(value(raw[3]) - value(exact[3]))


def test_profiles_and_energies_have_the_truth_the_flow_and_its_correction(lab: BoltzmannLab) -> None:
    train(lab, 20)
    drawn(lab)
    for index in (PROFILE, ENERGIES):
        assert [path.label for path in layers(lab, index, Path) if path.label] == ["exact", "flow"]
        assert [points.label for points in layers(lab, index, Points)] == ["reweighted"]
    exact = layers(lab, PROFILE, Path)[0].points
    assert np.nanmin(exact[:, 1]) == pytest.approx(0.0, abs=1e-6)


def test_the_curve_of_sizes_has_a_point_for_each_measurement(lab: BoltzmannLab) -> None:
    train(lab, 20)
    drawn(lab)
    clipped, raw = layers(lab, SIZES, Path)
    assert raw.points[:, 0].tolist() == [0, 5, 10, 15, 20]
    assert (raw.points[:, 1] <= clipped.points[:, 1] + 1e-4).all()
    assert lab._head._state["values"]["ess"] == f"{raw.points[-1, 1]:.1f}"


def test_time_travel_shows_the_flow_of_then(lab: BoltzmannLab) -> None:
    drawn(lab)
    first = layers(lab, DENSITY, Heatmap)[0].values
    train(lab, 20)
    drawn(lab)
    now = layers(lab, DENSITY, Heatmap)[0].values
    lab.player.scrub(0)
    assert drawn(lab).shown == 0
    np.testing.assert_array_equal(layers(lab, DENSITY, Heatmap)[0].values, first)
    assert not np.array_equal(first, now)


def test_the_mixture_changes_while_it_trains(lab: BoltzmannLab) -> None:
    train(lab, 2)
    lab.player.step()
    lab._touched("share", 0.5)
    frame = drawn(lab)
    assert frame.snapshot.config.to_dict()["share"] == 0.5
    assert frame.pending == ()
    assert lab._bar._state["values"]["share"] == 0.5


@pytest.mark.parametrize(
    ("name", "new"),
    [("flow", "p4inv_bent"), ("flow", "spline_p4inv"), ("energy", "mueller_brown"), ("dtype", "float64")],
)
def test_another_problem_waits_for_reset_and_can_be_drawn(lab: BoltzmannLab, name: str, new: str) -> None:
    train(lab, 1)
    lab.player.step()
    lab._touched(name, new)
    assert drawn(lab).pending == (name,)
    lab._touched("restart", True)
    assert drawn(lab).snapshot.config.to_dict()[name] == new
    assert layers(lab, DENSITY, Heatmap)[0].values.shape == (FINE, FINE)


# --- temperatures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [TEMPERATURES[0], 1.0, TEMPERATURES[-1]])
def test_the_dial_steers_pictures_and_table(dial: TemperatureLab, temperature: float) -> None:
    dial._touched("temperature", temperature)
    drawn(dial)
    truth = DoubleWell()
    exact = layers(dial, EXACT, Heatmap)[0].values
    x0, x1, y0, y1 = truth.bounds
    inside = float(np.sum(exact)) * (x1 - x0) * (y1 - y0) / exact.size
    assert inside == pytest.approx(1.0, abs=0.06)
    assert board(dial)[0][1] == f"{truth.free_energy_difference(temperature):.3f}"
    lines = [path for path in layers(dial, OVER_DIFFERENCES, Path) if path.label == "the dial"]
    assert lines[0].points[:, 0].tolist() == pytest.approx([temperature, temperature])
    assert dial._bar._state["values"]["temperature"] == temperature


def test_turning_the_dial_moves_the_flow_without_training_it(dial: TemperatureLab) -> None:
    train(dial, 10)
    seen = []
    for temperature in (0.5, 1.0, 2.0):
        dial._touched("temperature", temperature)
        frame = drawn(dial)
        seen.append(layers(dial, STEERED, Heatmap)[0].values)
        assert frame.snapshot.step == 10
    assert seen[0].max() > seen[1].max() > seen[2].max()  # colder is sharper


def test_exact_free_energies_stand_beside_the_flows(dial: TemperatureLab) -> None:
    train(dial, 20)
    drawn(dial)
    labels = [path.label for path in layers(dial, OVER_DIFFERENCES, Path) if path.label]
    assert labels == ["the dial", "exact, right minus left", "flow"]
    exact = layers(dial, OVER_DIFFERENCES, Path)[1].points
    expected = [DoubleWell().free_energy_difference(t) for t in exact[:, 0]]
    assert exact[:, 1].tolist() == pytest.approx(expected)
    for path in layers(dial, OVER_SIZES, Path)[1:]:
        assert ((path.points[:, 1] > 0) & (path.points[:, 1] <= 100.001)).all()


@pytest.mark.parametrize(("momenta", "tolerance"), [(0, 1e-5), (1, 0.01), (2, 0.01)])
def test_the_table_of_densities_is_the_marginal_at_every_temperature(momenta: int, tolerance: float) -> None:
    flow = steerable_flow(2, momenta, 2, hidden=8, dtype=torch.float64, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    truth = DoubleWell()
    table = MarginalTable(flow, truth, 72)  # with this side the barrier lies between two cells
    x0, x1, y0, y1 = truth.bounds
    cell = (x1 - x0) * (y1 - y0) / 72**2
    for temperature in (0.5, 1.0):
        density = np.exp(table.log_density(temperature))
        x = flow.sample(40_000, temperature, generator)[:, :2]
        inside = (x[:, 0] > x0) & (x[:, 0] < x1) & (x[:, 1] > y0) & (x[:, 1] < y1)
        share = float(inside.double().mean())
        assert density.sum() * cell == pytest.approx(share, abs=0.01 + tolerance)
        in_b = truth.in_b(x[inside]).double().mean()
        assert table.difference(truth, temperature) == pytest.approx(float(-torch.logit(in_b)), abs=0.06)


@pytest.mark.parametrize("momenta", [0, 1, 2, 4])
@pytest.mark.parametrize("temperature", [TEMPERATURES[0], 1.0])
def test_momenta_are_integrated_out(momenta: int, temperature: float) -> None:
    nodes, log_weights = momenta_grid(momenta)
    log_p = -0.5 * nodes.square().sum(-1) / temperature - 0.5 * momenta * math.log(2 * math.pi * temperature)
    total = float((log_p + log_weights).logsumexp(0))
    assert total == pytest.approx(0.0, abs=0.05 if momenta <= 2 else 0.5)  # beyond two momenta it is rough
    assert side_of(momenta, True) <= side_of(momenta, False)


@pytest.mark.parametrize(("name", "new"), [("momenta", 0), ("momenta", 4), ("mixing", "swap"), ("hidden", 16)])
def test_another_flow_waits_for_reset_and_can_be_drawn(dial: TemperatureLab, name: str, new: Any) -> None:
    train(dial, 1)
    dial.player.step()
    dial._touched(name, new)
    assert drawn(dial).pending == (name,)
    dial._touched("restart", True)
    assert drawn(dial).snapshot.config.to_dict()[name] == new


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "config"),
    [(boltzmann_lab, BoltzmannConfig(**SMALL)), (temperature_lab, TemperatureConfig(**SMALL))],
    ids=["boltzmann", "temperature"],
)
def test_every_setting_holds_the_value_of_the_config(make: Any, config: Any) -> None:
    lab = make(config, name="settings")
    try:
        drawn(lab)
        shown, fields = lab._side._state["values"], config.to_dict()
        names = {item["name"] for item in items(lab)}
        assert {"energy", "learning_rate", "seed", "blocks", "hidden"} <= names
        for item in items(lab):
            if item["name"] in fields:
                assert shown[item["name"]] == fields[item["name"]]
                assert not item["choices"] or fields[item["name"]] in item["choices"]
    finally:
        lab.close()
    assert set(FLOW_TEXTS) == set(FLOWS)


@pytest.mark.parametrize("make", [boltzmann_lab, temperature_lab], ids=["boltzmann", "temperature"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": "x"}, "energy='x'"),
        ({"share": 3.0}, r"share=3\.0"),
        ({"push": 1}, "push=1: there is no such setting"),
    ],
    ids=["value", "range", "name"],
)
def test_settings_that_do_not_fit_are_refused(make: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(name="refused", **changes)


def test_a_share_of_ones_own_is_on_the_slider() -> None:
    lab = boltzmann_lab(name="own", share=0.37, **SMALL)
    try:
        drawn(lab)
        assert lab._bar._state["values"]["share"] == 0.37
    finally:
        lab.close()


def test_numbers_and_bars_that_are_not_there_are_left_out() -> None:
    assert number(math.nan, ".3f") == "–"
    assert number(-1.25, ".1f") == "−1.2"
    path = bars(np.array([1.0, 2.0]), np.array([5.0, 6.0]), np.array([0.5, np.inf]))
    assert path[:2].tolist() == [[1.0, 4.5], [1.0, 5.5]]
    assert np.isnan(path[2]).all()
    assert np.isnan(path[3:5, 1]).all()


@pytest.mark.parametrize("name", ["double_well", "mueller_brown"])
def test_basins_have_names_that_the_labs_show(name: str) -> None:
    assert len(set(plane_energy(name).basins)) == 2
