"""Flows that read their temperature, and how they learn to follow it."""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.boltzmann.losses import ReducedEnergy, by_energy
from p4lab.boltzmann.weights import clipped, log_weights, normalized
from p4lab.errors import OptionError, ShapeError
from p4lab.flows.latent import LatentDensity, positive

KINDS = ("trade", "energy")
"""How other temperatures than that of the data are learnt: by consistency, or from energies and forces there."""
STEP = 0.02
"""Distance in log T over which a derivative is a difference."""
KNEE = 1.0
"""Residuals (nats) above it count by their size, and not by its square."""
PULL = 0.3
"""Weight of the loss of consistency beside that of examples."""
MORE = 4
"""Mean energies are of so many times the samples that are asked to be consistent."""
GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, less whole numbers, fill an interval evenly."""


class Steered(Protocol):
    """What has a dial for its temperature: `SteerableFlow`, `TemperedFlow`, and a `GroupAverage` of them."""

    @property
    def dim(self) -> int:
        """Width d."""

    def log_prob(self, x: Tensor, context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Return log q_T(x) in nats, shape (...) for x of shape (..., d)."""

    def sample_with_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return samples of shape (n, d) and log q_T of them, shape (n,)."""


class TemperedFlow(nn.Module):
    r"""A flow whose context is log T: it has a dial as `SteerableFlow` has, any layers, and has to learn what T does.

    .. math:: \log q_T(x) = \log q(x \mid c = \log T)

    Args:
        flow: with a context of length 1.

    Attributes:
        dim: width d.
        context: 0: the context is spoken for.

    Raises:
        OptionError: the flow's context has another length; from all methods, if a temperature is not positive, or if
            there is a context.

    Example:
        >>> from p4lab.flows import realnvp
        >>> TemperedFlow(realnvp(2, blocks=2, context=1)).log_prob(torch.zeros(3, 2), temperature=2.0).shape
        torch.Size([3])
    """

    context = 0

    def __init__(self, flow: LatentDensity) -> None:
        super().__init__()
        context = getattr(flow, "context", None)
        if context != 1:
            raise OptionError(f"a flow with a context of length {context}: expected 1, for the logarithm of T")
        self.flow, self.dim = flow, flow.dim

    def at(self, temperature: float) -> Tensor:
        """Return the context of a temperature, shape (1,)."""
        return self.flow.like().new_full((1,), math.log(positive(temperature)))

    def log_prob(self, x: Tensor, context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Return log q_T(x) in nats, shape (...) for x of shape (..., d)."""
        at = self._only(context, temperature)
        # Like the points, so that it is these that are found not to fit the flow.
        return self.flow.log_prob(x, at.to(x) if isinstance(x, Tensor) else at)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Draw the samples of `sample_with_log_prob`, which has the same arguments, without gradient and log q_T."""
        return self.flow.sample(n, self._only(context, temperature), generator)

    def sample_with_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return n samples of shape (n, d), differentiable in the parameters, and log q_T of them, shape (n,)."""
        return self.flow.sample_with_log_prob(n, self._only(context, temperature), generator)

    def like(self) -> Tensor:
        """Return a tensor with the flow's dtype and device."""
        return self.flow.like()

    def _only(self, context: Tensor | None, temperature: float) -> Tensor:
        if context is not None:
            raise OptionError("TemperedFlow got a context: say temperature=... by name, it is the only one")
        return self.at(temperature)


class AtTemperature:
    """A density with a dial, held at one temperature: what `by_energy` and `by_example` take.

    Args:
        model: the density.
        temperature: T.
    """

    def __init__(self, model: Steered, temperature: float) -> None:
        self.model, self.temperature, self.dim = model, positive(temperature), model.dim

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log q_T(x) in nats."""
        return self.model.log_prob(x, temperature=self.temperature)

    def sample_with_log_prob(self, n: int, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return samples and log q_T of them."""
        return self.model.sample_with_log_prob(n, generator=generator, temperature=self.temperature)


def mean_energy(energy: Tensor, log_w: Tensor, share: float = 0.01) -> Tensor:
    r"""Return the mean energy at the temperature that weights belong to, a scalar; NaN if all weights vanish.

    .. math:: E_T[u] \approx \frac{\sum_i w_i u_i}{\sum_i w_i}

    Args:
        energy: u of samples, shape (n,).
        log_w: their `log_weights` at T, shape (n,); the largest are `clipped`.
        share: how many are.

    Raises:
        ShapeError: shapes differ.
    """
    if energy.shape != log_w.shape:
        raise ShapeError(f"energies {tuple(energy.shape)}, log-weights {tuple(log_w.shape)}: expected equal shapes")
    w = normalized(clipped(log_w, share)).to(energy)
    return torch.where(w > 0, w * energy, 0.0).sum() / w.sum()


def by_consistency(
    model: Steered, x: Tensor, energy: Tensor, temperature: float, mean: Tensor | float, step: float = STEP
) -> Tensor:
    r"""Return by how much a density at a temperature does not follow it as a Boltzmann distribution does.

    .. math:: r(x) = \frac{\partial \log q_T(x)}{\partial \log T} - \frac{u(x) - E_T[u]}{T}, \qquad
        L = E_x\, \text{Huber}(r(x))

    It is 0 for :math:`q_T \propto e^{-u / T + \text{const}(x)}`, whatever the last term, such as a volume element, is.
    So a flow that is right at one temperature, and for which L is 0 at all, is right at all. No force is needed. The
    derivative is a difference over ``2 step``; that of the energy term is taken over the same distance.

    Args:
        model: q.
        x: points, shape (n, d), such as samples of q at T without their graph.
        energy: u of them at T = 1, nats, shape (n,); points where it is not finite are left out (NaN if all are).
        temperature: T.
        mean: the mean energy there, a number or scalar, see `mean_energy`.
        step: half the distance in log T, from 0.001, below which rounding would be seen, to 1.

    Raises:
        OptionError: a temperature that is not positive, or a step out of range.
        ShapeError: shapes do not fit.

    Cost: two log q with gradient. Source: Wahl et al., arXiv:2410.19492 (TRADE), whose derivative is exact, and whose
    mean energies are running averages on a grid.
    """
    if not 0.001 <= step <= 1:
        raise OptionError(f"step={step}: expected a number from 0.001 to 1")
    if x.dim() != 2 or energy.shape != x.shape[:1]:
        raise ShapeError(f"points {tuple(x.shape)}, energies {tuple(energy.shape)}: expected (n, d) and (n,)")
    if isinstance(mean, Tensor) and mean.dim():
        raise ShapeError(f"a mean energy of shape {tuple(mean.shape)}: expected a scalar, one mean for all points")
    t = positive(temperature)
    there = torch.isfinite(energy) & torch.isfinite(x).all(-1)
    at = torch.where(there[:, None], x, 0.0)
    warmer, colder = (model.log_prob(at, temperature=t * math.exp(side)) for side in (step, -step))
    wanted = math.sinh(step) / step * (energy - mean) / t
    residual = torch.where(there, (warmer - colder) / (2 * step) - wanted.to(warmer), 0.0)
    total = F.huber_loss(residual, torch.zeros_like(residual), reduction="sum", delta=KNEE)
    return total / torch.where(there.any(), there.sum(), torch.nan)


def self_consistency(
    model: Steered,
    energy: Callable[[Tensor], tuple[Tensor, Tensor]],
    temperature: float,
    n: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return `by_consistency` of n samples of a density, with the mean energy that these and 3 n more of them tell.

    Args:
        model: the density.
        energy: u at T = 1 and log of the volume element (nats) of points of shape (m, d), both of shape (m,).
        temperature: T.
        n: number of samples.
        generator: CPU generator.

    Raises:
        OptionError: n < 1, the energy returns no pair, or as `by_consistency`.
        ShapeError: what the energy returns does not fit, or as `by_consistency`.

    Cost: 4 n samples and energies, and two log q with gradient of n points.
    """
    if n < 1:
        raise OptionError(f"n={n}: expected at least 1 sample")
    with torch.no_grad():
        x, log_q = model.sample_with_log_prob(MORE * n, generator=generator, temperature=temperature)
        pair = energy(x)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise OptionError(f"energy returned {type(pair).__name__}: expected a pair, u and log of the volume")
        u, volume = pair
        shapes = [tuple(getattr(part, "shape", ())) for part in pair]
        if shapes != [tuple(log_q.shape)] * 2:
            raise ShapeError(
                f"energies {shapes[0]}, volume elements {shapes[1]}: expected {tuple(log_q.shape)}, one per row"
            )
        mean = mean_energy(u, log_weights(u / temperature - volume, log_q.to(u)))
    return by_consistency(model, x[:n], u[:n], temperature, mean)


def of_temperature(
    kind: str,
    model: Steered,
    energy: ReducedEnergy,
    temperature: float,
    n: int,
    generator: torch.Generator | None = None,
    threshold: float = 1e3,
    path_gradient: bool = True,
) -> Tensor:
    r"""Return the loss by which a density learns a temperature that there are no data of (nats).

    .. math:: L = \tfrac{3}{10}\, L_{\text{TRADE}}(T) \quad\text{or}\quad L = E_{x \sim q_T} [u(x) / T + \log q_T(x)]

    Args:
        kind: "trade" (`self_consistency`) or "energy" (`by_energy` of an `AtTemperature`).
        model: the density.
        energy: u at T = 1 of points, without a volume element.
        temperature: T.
        n: number of samples.
        generator: CPU generator.
        threshold, path_gradient: of `by_energy`.

    Raises:
        OptionError: an unknown kind; as `by_energy` and `self_consistency`.
        ShapeError: as these.

    Cost: as these.
    """
    if kind not in KINDS:
        raise OptionError(f"kind={kind!r} is not known: choose one of {KINDS}")
    if kind == "energy":
        at = AtTemperature(model, temperature)
        return by_energy(at, lambda x: energy(x) / temperature, n, generator, threshold, path_gradient)

    def with_volume(x: Tensor) -> tuple[Tensor, Tensor]:
        return energy(x), x.new_zeros(len(x))

    return PULL * self_consistency(model, with_volume, temperature, n, generator)


def widening(step: int, steps: int) -> float:
    """Return the ``reach`` of `spread_out` in a training that spreads from the known temperature in its first half.

    Args:
        step: the number of a step, at least 0.
        steps: how many there are, at least 1.

    Raises:
        OptionError: a number out of range.
    """
    if step < 0 or steps < 1:
        raise OptionError(f"step {step} of {steps}: expected at least 0 of at least 1")
    return min(1.0, 2 * step / steps)


def spread_out(step: int, coldest: float, hottest: float, reach: float = 1.0) -> float:
    """Return a temperature for a step of a training; those of many steps lie evenly in log T.

    Args:
        step: its number.
        coldest, hottest: the ends, in units of the temperature that is known.
        reach: the share of both ends' logarithms that temperatures stay within: 0 is the one that is known.

    Raises:
        OptionError: an end that is not positive, or a reach that is not from 0 to 1.
    """
    if not 0 <= reach <= 1:
        raise OptionError(f"reach={reach}: expected a number from 0 to 1")
    cold, hot = math.log(positive(coldest)), math.log(positive(hottest))
    return math.exp(reach * (cold + (hot - cold) * (step * GOLDEN % 1)))
