"""Posteriors with a known density: what conditional flows learn from pairs of parameters and observations."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.p4.validate import check_tensor

ANGLES = 1024
"""Angles at which `TwoMoons.log_evidence` sums; with 400,000 of them an evidence of 0.1 or more differs by rounding."""
BLOCK = 1024
"""Observations that it looks at together; points of a crescent that `TwoMoons.sample` draws together, at least."""
ROUNDS = 100
"""So many times it draws before it gives up."""


class Pairs(NamedTuple):
    """Parameters and what was observed of them.

    Attributes:
        theta: parameters, shape (n, d).
        x: observations, shape (n, c).
    """

    theta: Tensor
    x: Tensor


class Posterior(ABC):
    r"""A model whose posterior is known.

    .. math:: p(\theta | x) = \frac{p(\theta)\, p(x | \theta)}{p(x)}

    Attributes:
        name: heading.
        dim: number d of parameters.
        context: length c of an observation.

    Raises:
        ShapeError, DtypeError: from all methods, if points do not fit, or are no tensors.
    """

    name: str
    dim: int
    context: int

    @abstractmethod
    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw parameters, shape (n, d), float64, on the CPU."""

    @abstractmethod
    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an observation for each row of parameters, shape (n, c) for (n, d)."""

    @abstractmethod
    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(theta | x) in nats, shape (n,), float64.

        Args:
            theta: parameters, shape (n, d).
            x: their observations, shape (n, c), or one of all of them, (c,).
        """

    @abstractmethod
    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw parameters from p(theta | x) for one observation of shape (c,); shape (n, d), float64, on the CPU."""

    def pairs(self, n: int, generator: torch.Generator) -> Pairs:
        """Draw n pairs from the joint distribution, float64, on the CPU.

        Raises:
            ShapeError: n < 0.
        """
        if n < 0:
            raise ShapeError(f"n={n}: expected at least 0 pairs")
        theta = self.prior(n, generator)
        return Pairs(theta, self.simulate(theta, generator))

    def parameters(self, theta: Tensor) -> Tensor:
        """Return parameters of shape (n, d) in float64 on the CPU."""
        return _table(f"the parameters of {type(self).__name__}", theta, self.dim)

    def observations(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return the observations of parameters, in float64 on the CPU: of shape (n, c), or (1, c) if it is one."""
        check_tensor(f"the observations of {type(self).__name__}", x)
        x = _table(f"the observations of {type(self).__name__}", x[None] if x.dim() == 1 else x, self.context)
        if len(x) not in (1, len(theta)):
            raise ShapeError(f"{len(x)} observations of {len(theta)} parameters: expected as many, or one")
        return x

    def observation(self, x: Tensor) -> Tensor:
        """Return one observation of shape (c,) in float64 on the CPU."""
        check_tensor("an observation", x)
        if x.shape != (self.context,):
            raise ShapeError(f"an observation of shape {tuple(x.shape)}: expected ({self.context},)")
        return x.detach().to("cpu", torch.float64)


class LinearGaussian(Posterior):
    r"""A linear model with Gaussian prior and noise.

    .. math:: \theta \sim N(0, I), \quad x = A \theta + \sigma \epsilon, \qquad
              p(\theta | x) = N(\Sigma A^T x / \sigma^2, \Sigma), \quad \Sigma = (I + A^T A / \sigma^2)^{-1}

    Args:
        dim: number d of parameters.
        context: length c of an observation.
        noise: sigma.
        seed: of A, whose entries are drawn from N(0, 1/d).

    Raises:
        OptionError: something is not positive.

    Source: Bishop, Pattern Recognition and Machine Learning (2006), equations 2.113 to 2.117.

    Example:
        >>> model = LinearGaussian(dim=1, context=1, noise=1.0)
        >>> model.log_prob(torch.zeros(1, 1), torch.zeros(1, 1)).shape
        torch.Size([1])
    """

    name = "linear Gaussian"

    def __init__(self, dim: int = 4, context: int = 6, noise: float = 0.5, seed: int = 0) -> None:
        if dim < 1 or context < 1 or not 0 < noise < math.inf:
            raise OptionError(
                f"dim={dim}, context={context}, noise={noise}: expected at least 1, 1 and a number above 0"
            )
        self.dim, self.context, self.noise = dim, context, noise
        generator = torch.Generator().manual_seed(seed)
        self.matrix = _normal(context, dim, generator) / math.sqrt(dim)
        precision = torch.eye(dim, dtype=torch.float64, device="cpu") + self.matrix.t() @ self.matrix / noise**2
        self.covariance = torch.linalg.inv(precision)
        self.root = torch.linalg.cholesky(self.covariance)
        self.gain = self.covariance @ self.matrix.t() / noise**2

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw parameters from N(0, I), shape (n, d)."""
        return _normal(n, self.dim, generator)

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an observation for each row of parameters, shape (n, c) for (n, d)."""
        theta = self.parameters(theta)
        return theta @ self.matrix.t() + self.noise * _normal(len(theta), self.context, generator)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(theta | x) in nats, shape (n,); the observations may be one, of shape (c,)."""
        theta = self.parameters(theta)
        away = (theta - self.observations(x, theta) @ self.gain.t()).t()
        white = torch.linalg.solve_triangular(self.root, away, upper=False)
        norm = 0.5 * self.dim * math.log(2 * math.pi) + self.root.diagonal().log().sum()
        return -0.5 * white.square().sum(0) - norm

    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw parameters from p(theta | x) for one observation of shape (c,); shape (n, d)."""
        return self.observation(x) @ self.gain.t() + _normal(n, self.dim, generator) @ self.root.t()


class TwoMoons(Posterior):
    r"""Two crescents, each as thin as a hundredth of the prior's width: the two moons of the benchmark of simulators.

    .. math:: \theta \sim U[-1, 1]^2, \quad x = (r \cos \alpha + \tfrac14 - |a|, \; r \sin \alpha + b), \quad
              a = \frac{\theta_1 + \theta_2}{\sqrt 2}, \quad b = \frac{\theta_2 - \theta_1}{\sqrt 2}, \quad
              \alpha \sim U[-\pi/2, \pi/2], \quad r \sim N(0.1, 0.01^2)

    A point u = r (cos, sin) has density N(r; 0.1, 0.01^2) / (pi |u|), where r has the sign of u_1, so that the
    likelihood is known. So is the evidence, up to one integral over the angle:

    .. math:: p(x) = \frac{1}{2 \pi} \int_{-\pi/2}^{\pi/2} P_r(0 < a(r, \alpha), \; a + |b| < \sqrt 2)\, d\alpha, \qquad
              a = r \cos \alpha + \tfrac14 - x_1, \quad b = x_2 - r \sin \alpha

    Source: Greenberg et al., arXiv:1905.07488, appendix A.2.1; Lueckmann et al., arXiv:2101.04653, task T.8. The
    formula of the evidence is ours.

    Example:
        >>> moons = TwoMoons()
        >>> moons.sample(torch.zeros(2), 3, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 2])
    """

    name = "two moons"
    dim = 2
    context = 2
    radius, width, shift = 0.1, 0.01, 0.25

    def prior(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw parameters from the square [-1, 1]^2, shape (n, 2)."""
        return 2 * _uniform(n, 2, generator) - 1

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Draw an observation for each row of parameters, shape (n, 2) for (n, 2)."""
        a, b = self.turned(self.parameters(theta))
        u = self.crescent(len(a), generator)
        return torch.stack([u[:, 0] + self.shift - a.abs(), u[:, 1] + b], -1)

    def log_prob(self, theta: Tensor, x: Tensor) -> Tensor:
        """Return log p(theta | x) in nats, shape (n,), -inf off the square; the observations may be one."""
        theta = self.parameters(theta)
        x, (a, b) = self.observations(x, theta), self.turned(theta)
        u1, u2 = x[:, 0] - self.shift + a.abs(), x[:, 1] - b
        distance = torch.hypot(u1, u2)
        away = (torch.copysign(distance, u1) - self.radius) / self.width
        log_likelihood = -0.5 * away.square() - math.log(self.width * math.sqrt(2 * math.pi) * math.pi) - distance.log()
        inside = theta.abs().amax(-1) <= 1
        return torch.where(inside, log_likelihood - math.log(4) - self.log_evidence(x), -math.inf)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Return log p(x) in nats, shape (n,) for shape (n, 2), float64. Cost O(n `ANGLES`)."""
        x = _table("the observations of TwoMoons", x, self.context)
        return torch.cat([self._log_evidence(block) for block in x.split(BLOCK)])

    def sample(self, x: Tensor, n: int, generator: torch.Generator) -> Tensor:
        """Draw parameters from p(theta | x) for one observation of shape (2,); shape (n, 2), by rejection.

        Raises:
            OptionError: an observation that has no probability to speak of.
        """
        x, drawn, rounds = self.observation(x), torch.empty(0, 2, dtype=torch.float64, device="cpu"), 0
        while len(drawn) < n:
            u = self.crescent(max(n, BLOCK), generator)
            a, b = u[:, 0] + self.shift - x[0], x[1] - u[:, 1]
            fits = (a > 0) & (a + b.abs() <= math.sqrt(2))
            a = torch.where(_uniform(len(u), 1, generator)[:, 0] < 0.5, -a, a)
            drawn = torch.cat([drawn, (torch.stack([a - b, a + b], -1) / math.sqrt(2))[fits]])
            rounds += 1
            if rounds == ROUNDS and not len(drawn):
                raise OptionError(f"x={x.tolist()}: none of {ROUNDS * len(u)} points of a crescent leads there")
        return drawn[:n]

    def turned(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, shape (n,) each."""
        first, second = theta.unbind(-1)
        return (first + second) / math.sqrt(2), (second - first) / math.sqrt(2)

    def crescent(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw u = r (cos, sin), shape (n, 2)."""
        angle = math.pi * (_uniform(n, 1, generator) - 0.5)
        return (self.radius + self.width * _normal(n, 1, generator)) * torch.cat([angle.cos(), angle.sin()], -1)

    def _log_evidence(self, x: Tensor) -> Tensor:
        """Sum over angles, at each of which the radii that fit are an interval."""
        i = torch.arange(ANGLES, dtype=torch.float64, device=x.device)
        angle = math.pi * ((i + 0.5) / ANGLES - 0.5)
        cos, sin = angle.cos(), angle.sin()
        x1, x2 = (x[:, :1] - self.shift), x[:, 1:]
        least, most = x1 / cos, torch.full_like(x1, math.inf)
        for slope, room in ((cos - sin, math.sqrt(2) + x1 - x2), (cos + sin, math.sqrt(2) + x1 + x2)):
            bound = room / slope
            most = torch.where(slope > 0, torch.minimum(most, bound), most)
            least = torch.where(slope > 0, least, torch.maximum(least, bound))
        low, high = (torch.special.ndtr((bound - self.radius) / self.width) for bound in (least, most))
        return ((high - low).clamp(min=0).mean(-1) / 2).log()


POSTERIORS: dict[str, Callable[[], Posterior]] = {"linear_gaussian": LinearGaussian, "two_moons": TwoMoons}
"""Name to maker."""


def _table(what: str, points: Tensor, width: int) -> Tensor:
    check_tensor(what, points)
    if points.dim() != 2 or points.shape[1] != width:
        raise ShapeError(f"{what} have shape {tuple(points.shape)}: expected (n, {width})")
    return points.detach().to("cpu", torch.float64)


def _normal(n: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, width, generator=generator, dtype=torch.float64, device="cpu")


def _uniform(n: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, width, generator=generator, dtype=torch.float64, device="cpu")
