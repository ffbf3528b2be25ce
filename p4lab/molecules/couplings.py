"""Layers of flows of molecules: couplings and affine maps that may depend on a context, such as torsions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.flows.linear import Linear, Permutation
from p4lab.molecules.layers import Carried, Layer, Network, carry_split, embedded, own
from p4lab.molecules.splines import circular, linear_tails, wrap

LARGEST_LOG_SCALE = 2.0


class Coupling(Layer):
    r"""The first half stays, and with the context says how the second half moves: affine, then a spline.

    .. math:: y_a = x_a, \qquad y_b = g(e^{s} x_b + t), \qquad (s, t, g) = N(x_a, c), \quad |s| < 2

    It starts at the identity.

    Args:
        dim: d, at least 2; the first ``d // 2`` coordinates stay.
        context: width c of the context (0: none).
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        bins: bins of the splines, which act on [-bound, bound]; 0: no splines.
        affine: whether there are scales and shifts.
        bound: of the splines.
        generator: CPU generator for the network.

    Raises:
        OptionError: something is out of range.
    """

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
        self.dim, self.bins, self.affine, self.bound = dim, bins, affine, bound
        self.cut = dim // 2
        self.each = 2 * affine + (3 * bins - 1) * bool(bins)
        self.network = Network(self.cut + context, hidden, self.each * (dim - self.cut), depth, generator)

    def move(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,)."""
        a, b = x.split((self.cut, self.dim - self.cut))
        b, log_slope = self._move(a, b, context, inverse)
        return torch.cat([a, b]), log_slope.sum(0)

    def carry(self, x: Tensor, context: Tensor | None, score: Tensor, inverse: bool) -> Carried:
        """Return what `move` does, and the score of y from that of x."""
        context = own(context)
        a, b = x.split((self.cut, self.dim - self.cut))
        moved, log_slope = self._move(a, b, context, inverse)
        of_a, of_b, of_context = carry_split((a, b, context), (moved, log_slope), score.split((len(a), len(b))))
        return Carried(torch.cat([a, moved]), log_slope.sum(0), torch.cat([of_a, of_b]), of_context)

    def _move(self, a: Tensor, b: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        p = self.network(a if context is None else torch.cat([a, context])).view(self.each, *b.shape)
        steps = ["affine"] * self.affine + ["spline"] * bool(self.bins)
        total: Tensor | None = None
        for step in reversed(steps) if inverse else steps:
            if step == "affine":
                s = LARGEST_LOG_SCALE * torch.tanh(p[0] / LARGEST_LOG_SCALE)
                log_slope = -s if inverse else s
                b = (b - p[1]) * log_slope.exp() if inverse else torch.addcmul(p[1], b, s.exp())
            else:
                b, log_slope = linear_tails(b, p[2 * self.affine :], self.bound, inverse)
            total = log_slope if total is None else total + log_slope
        assert total is not None
        return b, total


class CircularCoupling(Layer):
    """Some angles stay and say how the others rotate, then move by circular splines.

    Args:
        dim: number of angles.
        stay: which of them stay.
        hidden: width of the network's two hidden layers.
        bins: bins of the splines.
        harmonics: of the angles that stay, the network sees cosines and sines of so many multiples.
        generator: CPU generator for the network.
    """

    stay: Tensor
    go: Tensor
    back: Tensor

    def __init__(
        self, dim: int, stay: Sequence[int], hidden: int, bins: int, harmonics: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        if not 0 < len(set(stay)) < dim or bins < 2 or harmonics < 1:
            raise OptionError(f"stay={stay} of {dim}, bins={bins}, harmonics={harmonics}: expected some, >= 2 and >= 1")
        self.dim, self.bins, self.harmonics = dim, bins, harmonics
        stays = torch.tensor(sorted(set(stay)), device="cpu")
        goes = torch.tensor([i for i in range(dim) if i not in stay], device="cpu")
        self.register_buffer("stay", stays, persistent=False)
        self.register_buffer("go", goes, persistent=False)
        self.register_buffer("back", torch.cat([stays, goes]).argsort(), persistent=False)
        write = (3 * bins + 1) * len(goes)
        self.network = Network(2 * harmonics * len(stays), hidden, write, 2, generator)

    def move(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,); y in [-pi, pi)."""
        a, b = x[self.stay], x[self.go]
        b, log_slope = self._move(a, b, inverse)
        return torch.cat([a, b])[self.back], log_slope.sum(0)

    def carry(self, x: Tensor, context: Tensor | None, score: Tensor, inverse: bool) -> Carried:
        """Return what `move` does, and the score of y from that of x."""
        a, b = x[self.stay], x[self.go]
        moved, log_slope = self._move(a, b, inverse)
        of_a, of_b, _ = carry_split((a, b, None), (moved, log_slope), (score[self.stay], score[self.go]))
        y, score = torch.cat([a, moved])[self.back], torch.cat([of_a, of_b])[self.back]
        return Carried(y, log_slope.sum(0), score, None)

    def _move(self, a: Tensor, b: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        p = self.network(embedded(a, self.harmonics)).view(3 * self.bins + 1, *b.shape)
        if inverse:
            b, log_slope = circular(b, p[1:], inverse=True)
            return wrap(b - p[0]), log_slope
        return circular(b + p[0], p[1:])


class ConditionalAffine(Layer):
    r"""Whiten the data, with a centre and scales that depend on the context.

    .. math:: y = e^{s(c)} \odot L^{-1} (x - \mu(c))

    L is fixed: the Cholesky factor of the data's covariance. It starts as ``L^-1 x``.

    Args:
        covariance: of the data, shape (d, d).
        context: width c of the context.
        hidden: width of the network's two hidden layers.
        generator: CPU generator for the network.

    Cost for a batch of B: O(B d (d + hidden)), forward and inverse alike.
    """

    colouring: Tensor

    def __init__(self, covariance: Tensor, context: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.dim = len(covariance)
        self.register_buffer("colouring", torch.linalg.cholesky(covariance.detach().cpu().double()).float())
        self.network = Network(context, hidden, 2 * self.dim, 2, generator)

    def move(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,)."""
        y, log_slope = self._move(x, context, inverse)
        return y, self._logabsdet(log_slope, inverse)

    def carry(self, x: Tensor, context: Tensor | None, score: Tensor, inverse: bool) -> Carried:
        """Return what `move` does, and the score of y from that of x."""
        context = own(context)
        assert context is not None
        y, log_slope = self._move(x, context, inverse)
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

    def _move(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        assert context is not None
        centre, s = self.network(context).split(self.dim)
        if inverse:
            return self.colouring @ (x * (-s).exp()) + centre, -s
        return torch.linalg.solve_triangular(self.colouring, x - centre, upper=False) * s.exp(), s


class Mixed(Layer):
    """A linear layer of p4lab, such as a P4 layer or a permutation; the context has no part in it.

    Args:
        linear: acts on vectors of width d.
    """

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        self.linear: Any = linear
        self.dim: int = self.linear.dim

    def move(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,)."""
        logabsdet = self.linear.logabsdet().to(x.dtype).expand(x.shape[1])
        if inverse:
            return self.linear.inverse(x.t()).t(), -logabsdet
        return self.linear(x.t()).t(), logabsdet

    def carry(self, x: Tensor, context: Tensor | None, score: Tensor, inverse: bool) -> Carried:
        """Return what `move` does, and the score of y from that of x."""
        y, logabsdet = self.move(x, context, inverse)
        with torch.no_grad():
            if isinstance(self.linear, Permutation):
                return Carried(y, logabsdet, self.move(score, context, inverse)[0], None)
            back = self.linear.weight if inverse else self.linear.weight_inverse
            return Carried(y, logabsdet, back.t() @ score, None)


class Unrolled(Layer):
    r"""The first coordinates, which are angles, cut open and spread over the real line.

    .. math:: y = \Phi^{-1}\left(\frac{(x - c) \bmod 2 \pi}{2 \pi}\right)

    with the distribution function Phi of N(0, 1): a uniform angle becomes a normal number. Couplings of plain numbers
    cannot close the circle at c, so choose it where the density is low.

    Args:
        dim: d.
        cuts: c for each angle (radians).
    """

    cuts: Tensor

    def __init__(self, dim: int, cuts: Tensor) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("cuts", cuts.detach().cpu().float().unsqueeze(1))

    def move(self, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (d, B) and (B,)."""
        angles, rest = x.split((len(self.cuts), self.dim - len(self.cuts)))
        angles, log_slope = self._move(angles, inverse)
        return torch.cat([angles, rest]), log_slope.sum(0)

    def carry(self, x: Tensor, context: Tensor | None, score: Tensor, inverse: bool) -> Carried:
        """Return what `move` does, and the score of y from that of x."""
        sizes = (len(self.cuts), self.dim - len(self.cuts))
        angles, rest = x.split(sizes)
        moved, log_slope = self._move(angles, inverse)
        of_angles, of_rest = score.split(sizes)
        _, new, _ = carry_split((None, angles, None), (moved, log_slope), (of_angles[:0], of_angles))
        return Carried(torch.cat([moved, rest]), log_slope.sum(0), torch.cat([new, of_rest]), None)

    def _move(self, angles: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        normalizer = 0.5 * math.log(2 * math.pi) - math.log(2 * math.pi)
        if inverse:
            turned = torch.special.ndtr(angles) * (2 * math.pi) + self.cuts
            return wrap(turned), -(normalizer + 0.5 * angles.square())
        share = torch.remainder(angles - self.cuts, 2 * math.pi) / (2 * math.pi)
        tiny = torch.finfo(share.dtype).eps
        y = torch.special.ndtri(share.clamp(tiny, 1 - tiny))
        return y, normalizer + 0.5 * y.square()
