"""Couplings: some coordinates stay, and with a network they say how the others move, each by itself."""

from typing import Protocol

import torch
from torch import Tensor, nn

from p4lab.baselines.designed import coupling_network
from p4lab.baselines.layer import device_of
from p4lab.errors import OptionError
from p4lab.flows.bijection import Bijective, Carried, Carrying, carry_split, own
from p4lab.flows.context import check_length
from p4lab.p4.validate import check_options, seed_from

LARGEST_LOG_SCALE = 2.0
"""Logarithms of scales stay within plus and minus this."""


class Transformer(Protocol):
    """How a coupling moves coordinates, each by itself and as its parameters say."""

    @property
    def parameters(self) -> int:
        """How many numbers each coordinate needs; where all are 0, it stays."""

    def __call__(self, b: Tensor, raw: Tensor, inverse: bool, axis: int) -> tuple[Tensor, Tensor]:
        """Return what b becomes and the logarithms of the slopes, both of the shape of b.

        Args:
            b: the coordinates that move, m along the axis.
            raw: what a network puts out for them, m times ``parameters`` along the axis.
            inverse: whether to go back.
            axis: of the coordinates.
        """


class Affine:
    r"""Scale and shift: :math:`y = e^s b + t` with :math:`|s| < 2`.

    Args:
        balanced: whether scales multiply to 1: their logarithms' mean is taken away.
    """

    parameters = 2

    def __init__(self, balanced: bool = False) -> None:
        self.balanced = balanced

    def __call__(self, b: Tensor, raw: Tensor, inverse: bool, axis: int) -> tuple[Tensor, Tensor]:
        """Return the scaled and shifted b, and the logarithms of the scales."""
        s, t = raw.chunk(2, axis)
        s = LARGEST_LOG_SCALE * torch.tanh(s / LARGEST_LOG_SCALE)
        if self.balanced:
            s = s - s.mean(axis, keepdim=True)
        if not inverse:
            return torch.addcmul(t, b, s.exp()), s
        s = -s
        return (b - t) * s.exp(), s


class InTurn:
    """Some transformers, one after the other.

    Args:
        steps: the transformers.
    """

    def __init__(self, *steps: Transformer) -> None:
        self.steps, self.parameters = steps, sum(step.parameters for step in steps)

    def __call__(self, b: Tensor, raw: Tensor, inverse: bool, axis: int) -> tuple[Tensor, Tensor]:
        """Return what b becomes, and the sum of the logarithms of the slopes."""
        total: Tensor | None = None
        parts = raw.split([step.parameters * b.shape[axis] for step in self.steps], axis)
        pairs = list(zip(self.steps, parts, strict=True))
        for step, part in reversed(pairs) if inverse else pairs:
            b, log_slope = step(b, part, inverse, axis)
            total = log_slope if total is None else total + log_slope
        return b, torch.zeros_like(b) if total is None else total


class Coupling(Carrying):
    r"""Base class of couplings of any transformer g and network N.

    .. math:: y_a = x_a, \qquad y_b = g(x_b; N(x_a, c))

    A subclass sets the attributes. Which coordinates stay it says by `parts` and `whole`, by default the first ones,
    and what the network reads by `read`.

    Attributes:
        cut: how many coordinates stay.
        network: N.
        transformer: g.
    """

    cut: int
    network: nn.Module
    transformer: Transformer

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates that stay, and those that move."""
        a, b = x.split((self.cut, self.dim - self.cut), self.axis)
        return a, b

    def whole(self, a: Tensor, b: Tensor) -> Tensor:
        """Undo `parts`."""
        return torch.cat([a, b], self.axis)

    def read(self, a: Tensor, context: Tensor | None) -> Tensor:
        """Return what the network reads."""
        return a if context is None else torch.cat([a, context], self.axis)

    def transform(self, a: Tensor, b: Tensor, inverse: bool, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what b becomes and the logarithms of the slopes, both of the shape of b."""
        return self.transformer(b, self.network(self.read(a, context)), inverse, self.axis)

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...), unchecked."""
        a, b = self.parts(x)
        b, log_slope = self.transform(a, b, inverse, context)
        return self.whole(a, b), self.volume(log_slope)

    def carry(self, x: Tensor, score: Tensor, inverse: bool = False, context: Tensor | None = None) -> Carried:
        """Return what `map` does, and the score of y from that of x; x (and the context) must require a gradient."""
        context, (a, b) = own(context), self.parts(x)
        image, log_slope = self.transform(a, b, inverse, context)
        of_a, of_b, gain = carry_split((a, b, context), (image, log_slope), self.parts(score))
        return Carried(self.whole(a, image), self.volume(log_slope), self.whole(of_a, of_b), gain)

    def volume(self, log_slope: Tensor) -> Tensor:
        """Return log|det dy/dx| from the logarithms of the slopes."""
        return log_slope.sum(self.axis)


class AffineCoupling(Coupling):
    r"""One coupling layer of RealNVP: the first half stays and says how the second half is scaled and shifted.

    .. math:: y_a = x_a, \qquad y_b = x_b \odot e^{s(x_a, c)} + t(x_a, c), \qquad |s| < 2

    It starts at the identity (the last layer of its network starts at 0). `p4lab.baselines.Coupling` moves both halves,
    one after the other.

    Args:
        dim: width d, at least 2; the first ``d // 2`` coordinates stay.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        seed: seed of the network, or a CPU generator to draw it from (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.
        context: length c of the context that the network reads beside x_a, 0 for none.

    Raises:
        OptionError, DtypeError: dim, hidden, depth, context or dtype out of range.

    Cost for a batch of B: O(B hidden (d + c + depth hidden)), forward and inverse alike.
    Source: Dinh et al., arXiv:1605.08803.

    Example:
        >>> y, logabsdet = AffineCoupling(3, hidden=8)(torch.ones(5, 3))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    transformer = Affine()

    def __init__(
        self,
        dim: int,
        hidden: int = 64,
        depth: int = 2,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        context: int = 0,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_options(dim, 1, dtype)
        if dim < 2 or hidden < 1 or depth < 1:
            raise OptionError(
                f"dim={dim}, hidden={hidden}, depth={depth}: expected dim >= 2 (two halves), hidden >= 1, depth >= 1"
            )
        self.dim, self.hidden, self.depth, self.cut = dim, hidden, depth, dim // 2
        self.context = check_length(context)
        generator = torch.Generator().manual_seed(seed_from(seed))
        write = self.transformer.parameters * (dim - self.cut)
        self.network = coupling_network(self.cut + context, hidden, write, generator, depth)
        self.to(dtype=dtype, device=device_of(device))

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        context = f", context={self.context}" if self.context else ""
        return f"dim={self.dim}, hidden={self.hidden}, depth={self.depth}{context}"


class VolumePreservingCoupling(AffineCoupling):
    r"""An `AffineCoupling` whose scales multiply to 1 for each sample: it moves and shears, but never compresses.

    .. math:: y_a = x_a, \qquad y_b = x_b \odot e^{s(x_a, c)} + t(x_a, c), \qquad \sum_i s_i = 0, \qquad |s_i| < 4

    Where the second half has one coordinate only, its scale is 1 (NICE). Arguments, errors and cost are the same.

    Source: Dinh et al., arXiv:1410.8516 (NICE); Sorrenson et al., arXiv:2001.04872 (scales that sum to zero);
    Dibak et al., arXiv:2108.01590 (temperature steering).

    Example:
        >>> y, logabsdet = VolumePreservingCoupling(4, hidden=8)(torch.ones(5, 4))
        >>> y.shape, logabsdet
        (torch.Size([5, 4]), tensor([0., 0., 0., 0., 0.]))
    """

    transformer = Affine(balanced=True)

    def volume(self, log_slope: Tensor) -> Tensor:
        """Return 0, shape (...): the slopes sum to it but for rounding."""
        return log_slope.new_zeros(log_slope.shape[:-1])


class ContextAffine(Bijective):
    r"""Scale and shift of each coordinate that a network reads from the context alone.

    .. math:: y = x \odot e^{s(c)} + t(c), \qquad |s| < 2

    Between layers that know nothing of a context, such as P4Inv layers and Bent identities, it makes a flow
    conditional. It starts at the identity (the last layer of its network starts at 0).

    Args:
        dim: width d.
        context: length c of the context, at least 1.
        hidden: width of the network's hidden layers.
        depth: number of hidden layers.
        seed: seed of the network, or a CPU generator to draw it from (None: torch's default generator).
        dtype: float32 or float64.
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: something is out of range.

    Cost for a batch of B: O(B hidden (c + d + depth hidden)), forward and inverse alike.
    Source: ours; an `ActNorm` whose numbers depend on the context.

    Example:
        >>> y, logabsdet = ContextAffine(3, context=2, hidden=8)(torch.ones(5, 3), torch.zeros(2))
        >>> y.shape, logabsdet.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    transformer = Affine()

    def __init__(
        self,
        dim: int,
        context: int,
        hidden: int = 64,
        depth: int = 1,
        seed: int | torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_options(dim, 1, dtype)
        if check_length(context) < 1 or hidden < 1 or depth < 1:
            raise OptionError(f"context={context}, hidden={hidden}, depth={depth}: expected at least 1 of each")
        self.dim, self.context, self.hidden, self.depth = dim, context, hidden, depth
        generator = torch.Generator().manual_seed(seed_from(seed))
        self.network = coupling_network(context, hidden, self.transformer.parameters * dim, generator, depth)
        self.to(dtype=dtype, device=device_of(device))

    def map(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., d) and (...), unchecked."""
        y, log_slope = self.transformer(x, self.network(context), inverse, self.axis)
        return y, log_slope.sum(self.axis)

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"dim={self.dim}, context={self.context}, hidden={self.hidden}, depth={self.depth}"
