"""Boltzmann generators in the plane, with and without a temperature: what is trained, drawn and told."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from lab_tools import as_number, opened, table, train

from p4lab import boltzmann
from p4lab.boltzmann import Estimate
from p4lab.errors import ConfigError
from p4lab.labs.boltzmann import BOLTZMANN, DRAWN, BoltzmannConfig
from p4lab.labs.estimates import COARSE, FINE, estimate_text
from p4lab.labs.temperature import TEMPERATURE, TemperatureConfig
from p4lab.plots.layers import Heatmap, Path, Points
from p4lab.problems.energies import PLANE_ENERGIES, DoubleWell, plane_energy
from p4lab.training import RunConfig, State, run

SMALL: dict[str, Any] = {"blocks": 2, "hidden": 8, "batch_size": 32, "measure_every": 5, "merge_every": 4}
KINDS = {"boltzmann": BoltzmannConfig, "temperature": TemperatureConfig}
CONFIGS = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
FLOWS = BoltzmannConfig.settings["flow"].offered(BoltzmannConfig(), "realnvp")


def losses(engine: Any) -> list[float]:
    return list(engine.records.steps.columns["loss"])


def layers(drawing: Any, kind: Any) -> Any:
    return [layer for layer in drawing.layers if isinstance(layer, kind)]


# --- configs ----------------------------------------------------------------------------------------------------------


@CONFIGS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": "triple_well"}, "energy='triple_well'"),
        ({"share": 1.1}, r"share=1\.1: expected a number from 0 \(by example\) to 1"),
        ({"threshold": 0.0}, "threshold=0"),
        ({"path_gradient": 2}, "path_gradient=2"),
        ({"blocks": 0}, "blocks=0"),
        ({"hidden": 0}, "hidden=0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_values_out_of_range_are_refused(kind: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind().replace(**changes)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (BoltzmannConfig(), {"flow": "glow"}),
        (TemperatureConfig(), {"momenta": -1}),
        (TemperatureConfig(), {"mixing": "shaken"}),
    ],
    ids=["flow", "momenta", "mixing"],
)
def test_architectures_that_are_none_are_refused(config: RunConfig, changes: dict[str, Any]) -> None:
    ((name, value),) = changes.items()
    with pytest.raises(ConfigError, match=f"{name}={value!r}"):
        config.replace(**changes)


@CONFIGS
def test_config_texts_name_settings_in_their_order(kind: Any) -> None:
    text = kind(threshold=30.0, merge_every=7, hidden=16, energy="mueller_brown", share=0.5).to_text()
    assert text == f"{kind.problem}?merge_every=7&energy=mueller_brown&share=0.5&threshold=30.0&hidden=16"


@CONFIGS
def test_the_slider_of_the_mixture_reads_like_what_is_learnt_and_knows_a_share_of_ones_own(kind: Any) -> None:
    texts = kind.settings["share"].offered(kind(share=0.37), 0.37)
    assert (texts[0.0], texts[0.37], texts[1.0]) == ("by example", "37 % energy", "by energy")
    assert list(texts) == sorted(texts)


# --- flows and losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", PLANE_ENERGIES)
@pytest.mark.parametrize("flow", FLOWS)
def test_flows_start_as_a_gaussian_over_the_picture(flow: str, energy: str) -> None:
    config = BoltzmannConfig(flow=flow, energy=energy, **SMALL)
    x0, x1, y0, y1 = config.truth().bounds
    x = config.model().sample(4000, generator=torch.Generator().manual_seed(0))
    middle, quarter = torch.tensor([x0 + x1, y0 + y1]) / 2, torch.tensor([x1 - x0, y1 - y0]) / 4
    torch.testing.assert_close(x.mean(0), middle, rtol=0, atol=0.1 * float(quarter.max()))
    torch.testing.assert_close(x.std(0), quarter, rtol=0.06, atol=0)


@pytest.mark.parametrize(
    ("energy", "share"),
    # By energy, the mean over the start's samples has too heavy a tail on Müller and Brown's potential.
    [("double_well", 0.0), ("double_well", 0.5), ("double_well", 1.0), ("mueller_brown", 0.0)],
)
@pytest.mark.parametrize("momenta", [0, 2])
def test_the_loss_is_a_divergence_in_nats(share: float, momenta: int, energy: str) -> None:
    # Of the Gaussian at the start from the truth: both divergences by the law of large numbers.
    config = TemperatureConfig(energy=energy, momenta=momenta, share=share, threshold=1e6, dtype="float64", **SMALL)
    problem, model = config.parts()
    config.update(problem)
    truth, n = config.truth(), 20_000
    loss = float(problem.loss(model, problem.batch(n, torch.Generator().manual_seed(1))).detach())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        y = model.augment(truth.sample(n, generator), generator)
        of_v = -0.5 * y[:, 2:].square().sum(-1) - 0.5 * momenta * math.log(2 * math.pi)
        forward = (truth.log_prob(y[:, :2]) + of_v - model.log_prob(y)).mean()
        z, log_q = model.sample_with_log_prob(n, generator=generator)
        of_v = -0.5 * z[:, 2:].square().sum(-1) - 0.5 * momenta * math.log(2 * math.pi)
        reverse = (log_q - truth.log_prob(z[:, :2]) - of_v).mean()
    expected = (1 - share) * float(forward) + share * float(reverse)
    assert loss == pytest.approx(expected, rel=0.1)
    assert loss > 0


@CONFIGS
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_divergence_falls(kind: Any, share: float) -> None:
    engine = run(kind(share=share, blocks=3, hidden=8, batch_size=64, measure_every=60, learning_rate=1e-2), 120)
    values = engine.records.measures.columns["reverse_kl" if share else "test_loss"]
    assert 0 < values[-1] < 0.75 * values[0]


def test_a_perfect_flow_has_no_divergence_and_every_sample() -> None:
    problem, _ = BoltzmannConfig(dtype="float64").parts()

    class Perfect:
        """The truth as a model."""

        @staticmethod
        def log_prob(x: torch.Tensor) -> torch.Tensor:
            return problem.energy.log_prob(x)

        @classmethod
        def sample_with_log_prob(cls, n: int, generator: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
            x = problem.energy.sample(n, generator)
            return x, cls.log_prob(x)

    assert float(problem.test_loss(Perfect)) == pytest.approx(0.0, abs=1e-12)
    assert problem.figures(Perfect) == pytest.approx({"ess": 1.0, "clipped_ess": 1.0, "reverse_kl": 0.0}, abs=1e-12)


@CONFIGS
def test_figures_are_those_of_the_flows_samples(kind: Any) -> None:
    engine = run(kind(**SMALL), 10)
    problem, model = engine.problem, engine.model
    with torch.no_grad():
        y, log_q = model.sample_with_log_prob(DRAWN, generator=torch.Generator().manual_seed(0))
    log_w = boltzmann.log_weights(problem.target(model)(y), log_q)
    measures = engine.records.measures.columns
    assert measures["ess"][-1] == pytest.approx(float(boltzmann.ess(log_w)), rel=1e-5)
    assert measures["clipped_ess"][-1] >= measures["ess"][-1]
    assert list(measures["step"]) == [0, 5, 10]


@CONFIGS
@pytest.mark.parametrize(
    ("name", "value"), [("share", 1.0), ("threshold", 1.0), ("path_gradient", False), ("learning_rate", 1e-4)]
)
def test_live_changes_change_the_loss_from_then_on(kind: Any, name: str, value: Any) -> None:
    changed, alone = (run(kind(share=0.5, **SMALL), 5) for _ in range(2))
    changed.set(name, value)
    for engine in (changed, alone):
        engine.run(5)
    assert losses(changed)[:5] == losses(alone)[:5]
    assert losses(changed)[6:] != losses(alone)[6:]


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_training_and_time_travel_change_the_flow_and_not_the_energy() -> None:
    with opened(BOLTZMANN, **SMALL) as lab:

        def images() -> list[Any]:
            drawings = lab.drawings()
            return [layers(drawings[area], Heatmap)[0].values for area in ("potential", "density")]

        energy, flow = images()
        train(lab, 5)
        trained = images()
        lab.touch("scrub", 0)
        past = images()
        for other, changed in ((trained, True), (past, False)):
            np.testing.assert_array_equal(other[0], energy)
            assert np.array_equal(other[1], flow) != changed


def test_densities_are_coarser_while_training() -> None:
    with opened(BOLTZMANN, **SMALL) as lab:
        for state, side in ((State.RUNNING, COARSE), (State.PAUSED, FINE)):
            frame = dataclasses.replace(lab.player.frame(10), state=state)
            assert layers(lab.drawings(frame)["density"], Heatmap)[0].values.shape == (side, side)


def test_the_density_that_is_drawn_is_the_flows() -> None:
    with opened(BOLTZMANN, **SMALL) as lab:
        train(lab, 3)
        heatmap = layers(lab.drawings()["density"], Heatmap)[0]
        x0, x1, y0, y1 = DoubleWell().bounds
        mass = float(np.sum(heatmap.values)) * (x1 - x0) * (y1 - y0) / FINE**2
        assert 0.7 < mass < 1.02  # the rest lies outside of the picture
        lab.touch("log", True)
        logs = layers(lab.drawings()["density"], Heatmap)[0]
        above = logs.values > logs.low
        np.testing.assert_allclose(np.exp(logs.values[above]), heatmap.values[above], rtol=1e-4)


def test_samples_can_be_hidden() -> None:
    with opened(BOLTZMANN, **SMALL) as lab:
        assert layers(lab.drawings()["potential"], Points)
        lab.touch("samples", False)
        assert not layers(lab.drawings()["potential"], Points)


def test_profiles_energies_and_sizes_have_the_truth_the_flow_and_its_correction() -> None:
    with opened(BOLTZMANN, **SMALL) as lab:
        train(lab, 20)
        drawings = lab.drawings()
        for area in ("profile", "energies"):
            assert [path.label for path in layers(drawings[area], Path) if path.label] == ["exact", "flow"]
            assert [points.label for points in layers(drawings[area], Points)] == ["reweighted"]
        exact = layers(drawings["profile"], Path)[0].points
        assert np.nanmin(exact[:, 1]) == pytest.approx(0.0, abs=1e-6)
        clipped, raw = layers(drawings["sizes"], Path)
        assert raw.points[:, 0].tolist() == [0, 5, 10, 15, 20]
        assert (raw.points[:, 1] <= clipped.points[:, 1] + 1e-4).all()
        assert lab.numbers()["ess"] == f"{raw.points[-1, 1]:.1f}"


@pytest.mark.parametrize("flow", FLOWS)
def test_every_flow_can_be_drawn(flow: str) -> None:
    with opened(BOLTZMANN, flow=flow, energy="mueller_brown", dtype="float64", **SMALL) as lab:
        assert layers(lab.drawings()["density"], Heatmap)[0].values.shape == (FINE, FINE)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_the_table_says_what_is_exact_and_what_reweighting_makes_of_the_flow() -> None:
    with opened(BOLTZMANN, **SMALL) as lab:
        train(lab, 60)
        exact, raw, weighted = table(lab)
        truth = DoubleWell()
        assert exact["ΔF, right − left (kT)"] == f"{truth.free_energy_difference():.3f}"
        assert exact["share of right"] == f"{100 * truth.share_of_b():.2f} %"
        assert raw["log Z (nats)"] == "–"
        assert as_number(weighted["log Z (nats)"]) == pytest.approx(truth.log_z(), abs=0.2)
        correct, flow, corrected = (as_number(row["mean energy (kT)"]) for row in (exact, raw, weighted))
        assert corrected == pytest.approx(correct, abs=0.25)
        assert abs(corrected - correct) < abs(flow - correct)


@pytest.mark.parametrize(
    ("error", "text"), [(0.0, "−1.250"), (0.5, "−1.250 ± 0.500"), (math.inf, "−1.250"), (math.nan, "−1.250")]
)
def test_errors_that_say_nothing_are_left_out(error: float, text: str) -> None:
    assert estimate_text(Estimate(-1.25, error)) == text


@pytest.mark.parametrize("name", PLANE_ENERGIES)
def test_basins_have_names_that_the_labs_show(name: str) -> None:
    a, b = plane_energy(name).basins
    with opened(TEMPERATURE, energy=name, momenta=0, **SMALL) as lab:
        assert {f"ΔF, {b} − {a} (kT)", f"share of {b}"} <= set(table(lab)[0])
