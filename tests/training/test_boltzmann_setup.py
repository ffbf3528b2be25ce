"""The setups of Boltzmann generators in the plane, with and without a temperature: configs, losses, runs, files."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from p4lab import boltzmann
from p4lab.errors import ConfigError
from p4lab.problems.energies import PLANE_ENERGIES
from p4lab.training import RunConfig, load_run, run, save_run
from p4lab.training.boltzmann_setup import COLUMNS, DRAWN, FLOWS, BoltzmannConfig, BoltzmannEngine, preset_of
from p4lab.training.runs import Runs
from p4lab.training.temperature_setup import TemperatureConfig

SMALL: dict[str, Any] = {"blocks": 2, "hidden": 8, "batch_size": 32, "measure_every": 5, "merge_every": 4}
KINDS = {"boltzmann": BoltzmannConfig, "temperature": TemperatureConfig}
CONFIGS = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def losses(engine: Any) -> list[float]:
    return list(engine.records.steps.columns["loss"])


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        BoltzmannConfig(),
        BoltzmannConfig(energy="mueller_brown", flow="spline_p4inv", share=0.35, threshold=30.0, seed=4),
        TemperatureConfig(),
        TemperatureConfig(energy="mueller_brown", momenta=4, mixing="permutation", path_gradient=False, hidden=16),
    ],
    ids=lambda config: f"{config.problem}-{config.seed}",
)
def test_a_config_survives_text_and_json(config: RunConfig) -> None:
    assert RunConfig.from_text(config.to_text()) == config
    assert RunConfig.from_json(config.to_json()) == config


@CONFIGS
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": "triple_well"}, "energy='triple_well'"),
        ({"share": 1.1}, r"share=1\.1"),
        ({"share": -0.1}, "from 0 .* to 1"),
        ({"threshold": 0.0}, "threshold=0"),
        ({"path_gradient": 2}, "path_gradient=2"),
        ({"blocks": 0}, "blocks=0"),
        ({"hidden": 0}, "hidden=0"),
        ({"push": 1}, "push=1: there is no such setting"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
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
def test_what_can_change_while_it_runs_does_not_change_the_architecture(kind: Any) -> None:
    config = kind(**SMALL)
    for name, value in (("share", 0.5), ("threshold", 20.0), ("path_gradient", False), ("learning_rate", 1e-4)):
        assert name in kind.live
        assert config.replace(**{name: value}).architecture == config.architecture
    assert config.replace(hidden=9).architecture != config.architecture


def test_p4_layers_get_the_configs_settings() -> None:
    preset = preset_of(BoltzmannConfig(rank=1, merge_every=7, reset="gaussian", train_v=True))
    assert (preset.rank, preset.every, preset.reset, preset.train_v) == (1, 7, "gaussian", True)


# --- flows and losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("energy", PLANE_ENERGIES)
@pytest.mark.parametrize("flow", FLOWS)
def test_flows_start_as_a_gaussian_over_the_picture(flow: str, energy: str) -> None:
    config = BoltzmannConfig(flow=flow, energy=energy, **SMALL)
    x0, x1, y0, y1 = config.truth().bounds
    x = config.model().sample(4000, torch.Generator().manual_seed(0))
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
        z, log_q = model.sample_with_log_prob(n, generator)
        of_v = -0.5 * z[:, 2:].square().sum(-1) - 0.5 * momenta * math.log(2 * math.pi)
        reverse = (log_q - truth.log_prob(z[:, :2]) - of_v).mean()
    expected = (1 - share) * float(forward) + share * float(reverse)
    assert loss == pytest.approx(expected, rel=0.1)
    assert loss > 0


@CONFIGS
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_divergence_falls(kind: Any, share: float) -> None:
    config = kind(share=share, blocks=3, hidden=8, batch_size=64, measure_every=60, learning_rate=1e-2)
    engine = BoltzmannEngine(config)
    engine.run(120)
    name = "reverse_kl" if share else "test_loss"
    values = engine.records.measures.columns[name]
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
    found = problem.figures(Perfect)
    assert set(found) == set(COLUMNS)
    assert found["ess"] == pytest.approx(1.0)
    assert found["clipped_ess"] == pytest.approx(1.0)
    assert found["reverse_kl"] == pytest.approx(0.0, abs=1e-12)


@CONFIGS
def test_figures_are_those_of_the_flows_samples(kind: Any) -> None:
    engine = BoltzmannEngine(kind(**SMALL))
    engine.run(10)
    problem, model = engine.problem, engine.model
    with torch.no_grad():
        y, log_q = model.sample_with_log_prob(DRAWN, torch.Generator().manual_seed(0))
    log_w = boltzmann.log_weights(problem.target(model)(y), log_q)
    measures = engine.records.measures.columns
    assert measures["ess"][-1] == pytest.approx(float(boltzmann.ess(log_w)), rel=1e-5)
    assert measures["clipped_ess"][-1] >= measures["ess"][-1]
    assert list(measures["step"]) == [0, 5, 10]


# --- runs -------------------------------------------------------------------------------------------------------------


@CONFIGS
def test_the_same_config_gives_the_same_numbers(kind: Any) -> None:
    config = kind(share=0.5, **SMALL)
    one, two, other = (run(c, 9) for c in (config, config, config.replace(seed=1)))
    assert losses(one) == losses(two)
    assert losses(one) != losses(other)
    assert all(map(torch.equal, one.model.parameters(), two.model.parameters()))


@CONFIGS
def test_looking_costs_a_copy_of_the_weights_and_changes_nothing(kind: Any) -> None:
    looked, alone = (BoltzmannEngine(kind(**SMALL)) for _ in range(2))
    for _ in range(6):
        pictures = looked.snapshot().pictures
        looked.run()
        alone.run()
    assert losses(looked) == losses(alone)
    assert set(pictures) == {name for name, value in looked.model.state_dict().items() if torch.is_tensor(value)}


@CONFIGS
@pytest.mark.parametrize(
    ("name", "value"), [("share", 1.0), ("threshold", 1.0), ("path_gradient", False), ("learning_rate", 1e-4)]
)
def test_live_changes_change_the_loss_from_then_on(kind: Any, name: str, value: Any) -> None:
    changed, alone = (BoltzmannEngine(kind(share=0.5, **SMALL)) for _ in range(2))
    for engine in (changed, alone):
        engine.run(5)
    changed.set(name, value)
    assert changed.config.to_dict()[name] == value
    for engine in (changed, alone):
        engine.run(5)
    assert losses(changed)[:5] == losses(alone)[:5]
    assert losses(changed)[6:] != losses(alone)[6:]
    assert [event.kind for event in changed.records.all_events()].count("set") == 1


@CONFIGS
def test_what_needs_a_reset_is_refused_while_it_runs(kind: Any) -> None:
    engine = BoltzmannEngine(kind(**SMALL))
    with pytest.raises(ConfigError, match="hidden"):
        engine.set("hidden", 9)


@CONFIGS
def test_a_run_goes_on_from_its_file(kind: Any, tmp_path: Any) -> None:
    runs = Runs(BoltzmannEngine, kind(share=0.5, **SMALL))
    runs.active.engine.run(6)
    save_run(runs.active, tmp_path / "a.p4run")
    loaded = load_run(tmp_path / "a.p4run", BoltzmannEngine)
    assert loaded.engine.config == runs.active.engine.config
    for name in COLUMNS:
        one, other = (engine.records.measures.columns[name] for engine in (runs.active.engine, loaded.engine))
        np.testing.assert_array_equal(one, other)
    for engine in (runs.active.engine, loaded.engine):
        engine.run(3)
    assert losses(runs.active.engine) == losses(loaded.engine)


@CONFIGS
def test_a_branch_shares_the_past_and_has_its_own_future(kind: Any) -> None:
    runs = Runs(BoltzmannEngine, kind(**SMALL))
    for _ in range(12):
        runs.active.advance()
    parent = runs.active.engine
    runs.scrub(5)
    runs.branch(parent.config.replace(share=1.0), name="by energy")
    branch = runs.active.engine
    start = branch.step
    assert 0 < start <= 6
    assert (runs.active.name, branch.config.share) == ("by energy", 1.0)
    branch.run(4)
    assert losses(branch)[:start] == losses(parent)[:start]
    assert losses(branch)[start:] != losses(parent)[start : start + 4]


def test_a_new_run_without_changes_repeats_the_branch_it_came_from() -> None:
    runs = Runs(BoltzmannEngine, TemperatureConfig(share=0.3, **SMALL))
    for _ in range(12):
        runs.active.advance()
    parent = runs.active.engine
    runs.scrub(5)
    runs.branch(parent.config)
    branch = runs.active.engine
    branch.run(12 - branch.step)
    assert losses(branch) == losses(parent)
