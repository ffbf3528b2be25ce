"""Layers of flows of molecules: couplings and affine maps that may depend on a context, such as torsions.

States are columns, shape (d, B): halves are then views, and the bins of splines lie first as
`p4lab.molecules.splines` wants them.
"""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.baselines.designed import coupling_network
from p4lab.errors import OptionError, SingularMatrixError
from p4lab.flows.bijection import Carried, Carrying, own
from p4lab.flows.coupling import Affine, Coupling, InTurn, Transformer
from p4lab.flows.linear_layers import Linear, Permutation, through
from p4lab.molecules.splines import circular, linear_tails, wrap


class Network(nn.Module):
    """A perceptron on columns, shape (read, B) to (write, B), that starts at 0.

    Args:
        read: number of inputs.
        hidden: width of the hidden layers.
        write: number of outputs.
        depth: number of hidden layers.
        generator: CPU generator for the start.
    """

    def __init__(self, read: int, hidden: int, write: int, depth: int, generator: torch.Generator) -> None:
        super().__init__()
        rows = coupling_network(read, hidden, write, generator, depth, torch.get_default_dtype())
        self.layers = nn.ModuleList(layer for layer in rows if isinstance(layer, nn.Linear))

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, shape (write, B)."""
        for i, linear in enumerate(self.layers):
            x = torch.addmm(linear.bias.unsqueeze(1), linear.weight, x if i == 0 else F.silu(x))  # type: ignore[operator, arg-type]
        return x


def embedded(angles: Tensor, harmonics: int) -> Tensor:
    """Return cosines and sines of multiples of angles (m, B), shape (2 m harmonics, B)."""
    multiples = [k * angles for k in range(1, harmonics + 1)]
    return torch.cat([f(angle) for angle in multiples for f in (torch.cos, torch.sin)])


class Spline:
    """A rational-quadratic spline on [-bound, bound]: see `p4lab.molecules.splines.linear_tails`.

    Args:
        bins: number of bins, at least 2.
        bound: B.
    """

    def __init__(self, bins: int, bound: float) -> None:
        self.bound, self.parameters = bound, 3 * bins - 1

    def __call__(self, b: Tensor, raw: Tensor, inverse: bool, axis: int) -> tuple[Tensor, Tensor]:
        """Return what becomes of columns b, and the logarithms of the slopes."""
        return linear_tails(b, raw.view(self.parameters, *b.shape), self.bound, inverse)


class CircularSpline:
    """A rotation, then a spline of the circle: see `p4lab.molecules.splines.circular`.

    Args:
        bins: number of bins, at least 2.
    """

    def __init__(self, bins: int) -> None:
        self.parameters = 3 * bins + 1

    def __call__(self, b: Tensor, raw: Tensor, inverse: bool, axis: int) -> tuple[Tensor, Tensor]:
        """Return what becomes of columns of angles b, and the logarithms of the slopes."""
        raw = raw.view(self.parameters, *b.shape)
        if inverse:
            b, log_slope = circular(b, raw[1:], inverse=True)
            return wrap(b - raw[0]), log_slope
        return circular(b + raw[0], raw[1:])


class ConditionalCoupling(Coupling):
    r"""The first half stays, and with the context says how the second half moves: affine, then a spline.

    .. math:: y_a = x_a, \qquad y_b = g(e^{s} x_b + t), \qquad (s, t, g) = N(x_a, c), \quad |s| < 2

    It starts at the identity.

    Args:
        dim: d, at least 2; the first ``d // 2`` coordinates stay.
        context: width c of the context (0: none).
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        bins: bins of the splines, which act on [-bound, bound]; 0: no splines.
        generator: CPU generator for the network.
        affine: whether there are scales and shifts.
        bound: of the splines.

    Raises:
        OptionError: something is out of range.
    """

    axis = 0

    def __init__(
        self,
        dim: int,
        context: int,
        hidden: int,
        depth: int,
        bins: int,
        generator: torch.Generator,
        affine: bool = True,
        bound: float = 5.0,
    ) -> None:
        super().__init__()
        if dim < 2 or hidden < 1 or depth < 1 or bins < 0 or bins == 1 or not (affine or bins):
            raise OptionError(
                f"dim={dim}, hidden={hidden}, depth={depth}, bins={bins}, affine={affine}: expected at least 2, 1, 1, "
                "bins of 0 or at least 2, and something that moves"
            )
        self.dim, self.cut, self.hidden, self.context = dim, dim // 2, hidden, context
        steps: list[Transformer] = [Affine()] * affine + [Spline(bins, bound)] * bool(bins)
        self.transformer = InTurn(*steps)
        write = self.transformer.parameters * (dim - self.cut)
        self.network = Network(self.cut + context, hidden, write, depth, generator)


class CircularCoupling(Coupling):
    """Some angles stay and say how the others rotate, then move by circular splines; they end in [-pi, pi).

    Args:
        dim: number of angles.
        stay: which of them stay; of a single angle none.
        hidden: width of the network's two hidden layers.
        bins: bins of the splines.
        harmonics: of the angles that stay, the network sees cosines and sines of so many multiples.
        generator: CPU generator for the network.
        context: width of the context (0: none).

    Raises:
        OptionError: something is out of range.
    """

    axis = 0
    stay: Tensor
    go: Tensor
    back: Tensor

    def __init__(
        self,
        dim: int,
        stay: Sequence[int],
        hidden: int,
        bins: int,
        harmonics: int,
        generator: torch.Generator,
        context: int = 0,
    ) -> None:
        super().__init__()
        if not min(1, dim - 1) <= len(set(stay)) < dim or bins < 2 or harmonics < 1:
            raise OptionError(f"stay={stay} of {dim}, bins={bins}, harmonics={harmonics}: expected some, >= 2 and >= 1")
        self.dim, self.harmonics, self.transformer, self.context = dim, harmonics, CircularSpline(bins), context
        stays = torch.tensor(sorted(set(stay)), dtype=torch.long, device="cpu")
        goes = torch.tensor([i for i in range(dim) if i not in stay], device="cpu")
        self.register_buffer("stay", stays, persistent=False)
        self.register_buffer("go", goes, persistent=False)
        self.register_buffer("back", torch.cat([stays, goes]).argsort(), persistent=False)
        write = self.transformer.parameters * len(goes)
        self.network = Network((2 * harmonics * len(stays) or 1) + context, hidden, write, 2, generator)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the angles that stay, and those that move."""
        return x[self.stay], x[self.go]

    def whole(self, a: Tensor, b: Tensor) -> Tensor:
        """Undo `parts`."""
        return torch.cat([a, b])[self.back]

    def read(self, a: Tensor, context: Tensor | None) -> Tensor:
        """Return what the network reads."""
        return super().read(embedded(a, self.harmonics) if len(a) else a.new_zeros(1, a.shape[1]), context)


class Unrolled(Coupling):
    r"""The first coordinates, which are angles, cut open and spread over the real line; the others stay.

    .. math:: y = \Phi^{-1}\left(\frac{(x - c) \bmod 2 \pi}{2 \pi}\right)

    with the distribution function Phi of N(0, 1): a uniform angle becomes a normal number. Couplings of plain numbers
    cannot close the circle at c, so choose it where the density is low.

    Args:
        dim: d.
        cuts: c for each angle (radians).
    """

    axis = 0
    cuts: Tensor

    def __init__(self, dim: int, cuts: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("cuts", cuts.detach().cpu().float().unsqueeze(1))

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the numbers, and the angles."""
        angles, rest = x.split((len(self.cuts), self.dim - len(self.cuts)))
        return rest, angles

    def whole(self, a: Tensor, b: Tensor) -> Tensor:
        """Undo `parts`."""
        return torch.cat([b, a])

    def transform(self, a: Tensor, b: Tensor, inverse: bool, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the angles b become, or b as angles again, and the logarithms of the slopes."""
        normalizer = 0.5 * math.log(2 * math.pi) - math.log(2 * math.pi)
        if inverse:
            turned = torch.special.ndtr(b) * (2 * math.pi) + self.cuts
            return wrap(turned), -(normalizer + 0.5 * b.square())
        share = torch.remainder(b - self.cuts, 2 * math.pi) / (2 * math.pi)
        tiny = torch.finfo(share.dtype).eps
        y = torch.special.ndtri(share.clamp(tiny, 1 - tiny))
        return y, normalizer + 0.5 * y.square()


class ConditionalAffine(Carrying):
    r"""Whiten the data, with a centre and scales that depend on the context.

    .. math:: y = e^{s(c)} \odot L^{-1} (x - \mu(c))

    L is fixed: the Cholesky factor of the data's covariance. It starts as ``L^-1 (x - mean)``. With a temperature,
    whose logarithm is the last number of the context, the data's deviations start as its root:
    :math:`y = e^{s(c)} \odot L^{-1} (x - \mu(c)) / \sqrt{T}`.

    Args:
        covariance: of the data, shape (d, d).
        context: width c of the context.
        hidden: width of the network's two hidden layers.
        generator: CPU generator for the network.
        tempered: whether there is a temperature.
        mean: of the data, shape (d,) (None: 0).

    Raises:
        SingularMatrixError: the covariance has no inverse: fewer data than numbers.

    Cost for a batch of B: O(B d (d + hidden)), forward and inverse alike.
    """

    axis = 0
    colouring: Tensor

    def __init__(
        self,
        covariance: Tensor,
        context: int,
        hidden: int,
        generator: torch.Generator,
        tempered: bool = False,
        mean: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.context, self.tempered = len(covariance), context, tempered
        root, failed = torch.linalg.cholesky_ex(covariance.detach().cpu().double())
        if failed:
            raise SingularMatrixError(
                f"the covariance of {self.dim} numbers has no inverse: train with more than {self.dim} different frames"
            )
        self.register_buffer("colouring", root.float())
        self.network = Network(context, hidden, 2 * self.dim, 2, generator)
        if mean is not None:
            with torch.no_grad():
                cast(Any, self.network.layers[-1]).bias[: self.dim] = mean

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,)."""
        y, log_slope = self._map(x, context, inverse)
        return y, self._logabsdet(log_slope, inverse)

    def carry(self, x: Tensor, score: Tensor, inverse: bool = False, context: Tensor | None = None) -> Carried:
        """Return what `map` does, and the score of y from that of x; the context must require a gradient."""
        context = own(context)
        assert context is not None
        y, log_slope = self._map(x, context, inverse)
        with torch.no_grad():
            if inverse:
                new = torch.linalg.solve_triangular(self.colouring.t(), score / log_slope.exp(), upper=True)
            else:
                new = (self.colouring.t() @ score) / log_slope.exp()
        ones = torch.ones_like(log_slope)
        (of_context,) = torch.autograd.grad((y, log_slope), (context,), (new, ones), retain_graph=True)
        return Carried(y, self._logabsdet(log_slope, inverse), new, -of_context)

    def _logabsdet(self, log_slope: Tensor, inverse: bool) -> Tensor:
        fixed = self.colouring.diagonal().log().sum()
        return log_slope.sum(0) + (fixed if inverse else -fixed)

    def _map(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        assert context is not None
        centre, s = self.network(context).split(self.dim)
        if self.tempered:
            s = s - 0.5 * context[-1:]
        if inverse:
            return self.colouring @ (x * (-s).exp()) + centre, -s
        return torch.linalg.solve_triangular(self.colouring, x - centre, upper=False) * s.exp(), s


class Mixed(Carrying):
    """A linear layer of p4lab, such as a P4 layer or a permutation; the context has no part in it.

    Args:
        linear: acts on vectors of width d.
    """

    axis = 0

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear: Any = linear
        self.dim: int = self.linear.dim

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,)."""
        y, logabsdet = through(self.linear, x.t(), inverse)
        return y.t(), logabsdet

    def carry(self, x: Tensor, score: Tensor, inverse: bool = False, context: Tensor | None = None) -> Carried:
        """Return what `map` does, and the score of y from that of x."""
        y, logabsdet = self.map(x, inverse)
        with torch.no_grad():
            if isinstance(self.linear, Permutation):
                return Carried(y, logabsdet, self.map(score, inverse)[0], None)
            back = self.linear.weight if inverse else self.linear.weight_inverse
            return Carried(y, logabsdet, back.t() @ score, None)
