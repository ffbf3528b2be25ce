"""Flows that read log T, and the loss that is 0 where they follow it as a Boltzmann distribution does."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from p4lab.boltzmann import (
    AtTemperature,
    TemperedFlow,
    by_consistency,
    by_energy,
    mean_energy,
    of_temperature,
    self_consistency,
    spread_out,
    steerable_flow,
    widening,
)
from p4lab.boltzmann.tempered import KINDS
from p4lab.errors import DtypeError, OptionError, ShapeError
from p4lab.flows import realnvp

DOUBLE = torch.float64


class Gaussian(nn.Module):
    """N(0, T^power I): the Boltzmann distribution of |x|^2 / 2 if the power is 1."""

    dim = 3

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power

    def log_prob(self, x: torch.Tensor, context: Any = None, temperature: float = 1.0) -> torch.Tensor:
        variance = temperature**self.power
        return -0.5 * x.square().sum(-1) / variance - 1.5 * math.log(2 * math.pi * variance)

    def sample_with_log_prob(
        self, n: int, context: Any = None, generator: Any = None, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        x = temperature ** (self.power / 2) * torch.randn(n, 3, generator=generator, dtype=DOUBLE)
        return x, self.log_prob(x, temperature=temperature)


def harmonic(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.square().sum(-1)


def consistent(energy: Any) -> torch.Tensor:
    return self_consistency(Gaussian(), energy, 1.5, 4)


def tempered(**options: Any) -> TemperedFlow:
    return TemperedFlow(realnvp(2, 2, hidden=8, seed=0, context=1, dtype=DOUBLE, **options))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("power", [1.0, 0.8])
def test_the_loss_is_zero_for_the_boltzmann_distribution_alone(temperature: float, power: float) -> None:
    model = Gaussian(power)
    x, _ = model.sample_with_log_prob(500, generator=torch.Generator().manual_seed(0), temperature=temperature)
    loss = float(by_consistency(model, x, harmonic(x), temperature, 1.5 * temperature))
    assert (loss < 1e-6) == (power == 1.0)
    assert power == 1.0 or loss > 0.01
    own = self_consistency(
        model, lambda y: (harmonic(y), torch.zeros(len(y))), temperature, 2000, torch.Generator().manual_seed(1)
    )
    assert (float(own) < 1e-3) == (power == 1.0)


def test_a_volume_element_does_not_matter() -> None:
    # y = exp(x) has a density with a factor 1 / y that no temperature changes.
    class Log(Gaussian):
        def log_prob(self, x: torch.Tensor, context: Any = None, temperature: float = 1.0) -> torch.Tensor:
            return super().log_prob(x.log(), context, temperature) - x.log().sum(-1)

    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    assert float(by_consistency(Log(), x.exp(), harmonic(x), 1.3, 1.5 * 1.3)) < 1e-6


def test_points_without_energy_are_left_out_and_gradients_reach_the_flow() -> None:
    model = tempered()
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    u = harmonic(x)
    u[3], x[7] = torch.inf, torch.nan
    loss = by_consistency(model, x, u, 1.5, 1.5)
    loss.backward()
    kept = torch.tensor([i not in (3, 7) for i in range(50)])
    torch.testing.assert_close(loss, by_consistency(model, x[kept], u[kept], 1.5, 1.5))
    assert bool(by_consistency(model, x, torch.full_like(u, torch.nan), 1.5, 1.5).isnan())  # nothing is learnt
    assert sum(bool(p.grad is not None and p.grad.abs().max() > 0) for p in model.parameters()) >= 2


def test_mean_energies_are_weighted() -> None:
    x, log_q = Gaussian().sample_with_log_prob(100_000, generator=torch.Generator().manual_seed(0), temperature=1.3)
    u = harmonic(x)
    assert float(mean_energy(u, -u - log_q)) == pytest.approx(1.5, abs=0.02)
    u[0] = torch.inf
    assert math.isfinite(float(mean_energy(u, -u - log_q)))


def test_a_tempered_flow_has_a_dial_and_can_be_held_at_a_temperature() -> None:
    model = tempered()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    x, log_q = model.sample_with_log_prob(5, generator=torch.Generator().manual_seed(0), temperature=1.7)
    torch.testing.assert_close(model.log_prob(x, temperature=1.7), log_q)
    torch.testing.assert_close(model.flow.log_prob(x, torch.tensor([math.log(1.7)], dtype=DOUBLE)), log_q)
    assert not torch.allclose(model.log_prob(x), log_q)
    held = AtTemperature(model, 1.7)
    torch.testing.assert_close(held.log_prob(x), log_q)
    assert torch.equal(model.sample(5, generator=torch.Generator().manual_seed(0), temperature=1.7), x)
    assert torch.isfinite(by_energy(held, lambda y: harmonic(y) / 1.7, 32, torch.Generator().manual_seed(0)))


def test_a_flow_at_a_temperature_is_one_graph() -> None:
    model, x = tempered(), torch.zeros(3, 2, dtype=DOUBLE)
    held = torch.compile(lambda x: model.log_prob(x, temperature=1.7), backend="eager", fullgraph=True)
    torch.testing.assert_close(held(x), model.log_prob(x, temperature=1.7))


@pytest.mark.parametrize("kind", KINDS)
def test_other_temperatures_are_learnt_where_they_are_wrong_alone(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    right, wrong = (of_temperature(kind, model, harmonic, 1.5, 500, generator) for model in (Gaussian(), tempered()))
    assert float(wrong.detach()) > float(right) + 0.01


def test_temperatures_spread_over_their_range_evenly() -> None:
    logs = torch.tensor([math.log(spread_out(step, 0.5, 2.0)) for step in range(1, 401)])
    assert float(torch.histc(logs, 8, -math.log(2), math.log(2)).min()) >= 48
    assert spread_out(5, 0.5, 2.0, reach=0.0) == 1.0
    assert [widening(step, 8) for step in (0, 2, 4, 8)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        pytest.param(lambda: TemperedFlow(realnvp(2, 2)), OptionError, "length 0: expected 1", id="no-context"),
        pytest.param(
            lambda: tempered().log_prob(torch.zeros(1, 2), torch.zeros(1)), OptionError, "say temperature", id="context"
        ),
        pytest.param(lambda: AtTemperature(tempered(), -1.0), OptionError, "temperature=-1", id="temperature"),
        pytest.param(
            lambda: by_consistency(Gaussian(), torch.zeros(2, 3), torch.zeros(2), 1.0, 0.0, step=0.0),
            OptionError,
            "step=0",
            id="step",
        ),
        pytest.param(
            lambda: by_consistency(Gaussian(), torch.zeros(2, 3), torch.zeros(3), 1.0, 0.0), ShapeError, "n", id="shape"
        ),
        pytest.param(
            lambda: by_consistency(Gaussian(), torch.zeros(2, 3), torch.zeros(2), 1.0, 0.0, step=1e-9),
            OptionError,
            "from 0.001 to 1",
            id="step-below-rounding",
        ),
        pytest.param(
            lambda: by_consistency(Gaussian(), torch.zeros(2, 3), torch.zeros(2), 1.0, torch.zeros(2, 1)),
            ShapeError,
            r"mean energy of shape \(2, 1\): expected a scalar",
            id="mean",
        ),
        pytest.param(lambda: consistent(harmonic), OptionError, "returned Tensor: expected a pair", id="no-volume"),
        pytest.param(
            lambda: consistent(lambda x: (harmonic(x)[:, None], torch.zeros(len(x)))),
            ShapeError,
            r"energies \(16, 1\), volume elements \(16,\): expected \(16,\)",
            id="column-of-energies",
        ),
        pytest.param(
            lambda: consistent(lambda x: (harmonic(x), torch.zeros(3))), ShapeError, r"elements \(3,\)", id="volumes"
        ),
        pytest.param(
            lambda: of_temperature("trade", Gaussian(), harmonic, 1.5, 0), OptionError, "n=0: .* 1 sample", id="samples"
        ),
        pytest.param(lambda: TemperedFlow(nn.Linear(2, 2)), OptionError, "length None: expected 1", id="no-flow"),
        pytest.param(lambda: tempered().sample(2, temperature="2"), OptionError, "temperature='2'", id="text"),
        pytest.param(
            lambda: tempered().log_prob(torch.zeros(1, 2), temperature=torch.ones(3)),
            OptionError,
            r"temperature=tensor\(\[1",
            id="several-temperatures",
        ),
        pytest.param(
            lambda: tempered().log_prob(torch.zeros(1, 2)), DtypeError, "AffineCoupling.*got torch.float32", id="dtype"
        ),
        pytest.param(lambda: tempered().log_prob([0.0, 0.0]), DtypeError, "got list", id="list"),
        pytest.param(lambda: mean_energy(torch.zeros(2), torch.zeros(3)), ShapeError, "equal shapes", id="weights"),
        pytest.param(
            lambda: of_temperature("both", Gaussian(), harmonic, 1.5, 4), OptionError, "kind='both' is not", id="kind"
        ),
        pytest.param(lambda: spread_out(1, 0.0, 1.0), OptionError, "temperature=0", id="ends"),
        pytest.param(lambda: spread_out(1, 0.5, 2.0, reach=5), OptionError, "reach=5: .* 0 to 1", id="reach"),
        pytest.param(lambda: widening(0, 0), OptionError, "step 0 of 0", id="no-steps"),
        pytest.param(lambda: widening(-3, 10), OptionError, "step -3 of 10", id="before-the-first-step"),
    ],
)
def test_errors(call, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call()


def test_a_steerable_flow_is_consistent_with_what_it_has_learnt() -> None:
    # Its energy is -log p_1 whatever its parameters are.
    flow = steerable_flow(2, 1, 3, hidden=8, dtype=DOUBLE)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
        y, _ = flow.sample_with_log_prob(300, generator=torch.Generator().manual_seed(0), temperature=1.4)
        z, _ = flow(y)
        loss = by_consistency(flow, y, harmonic(z), 1.4, 1.5 * 1.4)
    assert float(loss) < 1e-6
