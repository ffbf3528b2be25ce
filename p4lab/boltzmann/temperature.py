"""Flows whose temperature can be chosen after training."""

import math
from typing import Any, cast

import torch
from torch import Tensor

from p4lab.boltzmann.losses import ReducedEnergy
from p4lab.errors import OptionError, ShapeError
from p4lab.flows import Flow, Standardize, coupling_flow
from p4lab.flows.bijection import Bijection
from p4lab.flows.coupling import VolumePreservingCoupling
from p4lab.flows.latent import LatentDensity, positive
from p4lab.flows.linear_layers import is_linear
from p4lab.flows.mixing import check_mixing_options
from p4lab.flows.torus import BesideAngles, TorusCoupling
from p4lab.p4 import RECOMMENDED, Preset
from p4lab.p4.validate import check_tensor, seed_from

CONSTANT = (VolumePreservingCoupling, TorusCoupling, BesideAngles, Standardize)
"""Layers beside linear ones whose determinant is the same everywhere."""


class SteerableFlow(LatentDensity):
    r"""A flow with a constant determinant and the prior N(0, T I): its temperature is a dial.

    .. math:: \log p_T(y) = \log N(F(y); 0, T I) + \log|\det \partial F|, \qquad
        \log p_{T'}(y) = \frac{T}{T'} \log p_T(y) + \text{const}

    This is how Boltzmann distributions depend on temperature, so what is learnt at one temperature holds at all. It is
    exact for whatever the flow has learnt: y = (x, v) with positions x and auxiliary momenta v, whose energy is
    |v|^2 / 2. Without momenta the flow has little reach: it maps the level sets of a Gaussian to those of p, volumes
    kept. With them it may trade the one for the other, and their energy fills the gaps between levels.

    Angles have a prior of their own, the uniform distribution on the circle, which is that of no energy at any
    temperature: the law holds as it stands, with D the number of all other coordinates.

    Args:
        flow: data to latent; of linear layers, `VolumePreservingCoupling` and `Standardize`; with angles of
            `TorusCoupling` and `BesideAngles`.
        momenta: how many of its coordinates, the last ones, are momenta.
        angles: how many of its coordinates, the first ones, are angles (radians); their samples are in no range, and
            stand for the angle that they are.

    Attributes:
        dim: width of y, positions and momenta; samples have them in this order.
        positions: width of x.
        context: length of the context, that of the flow: the law then holds for each.

    Raises:
        OptionError: a layer whose determinant is not constant, or that does not know of angles; no coordinates left
            for positions.

    Source: Dibak, Klein, Krämer, Noé, arXiv:2108.01590.

    Example:
        >>> flow = steerable_flow(2, momenta=2, blocks=2)
        >>> flow.sample(5, temperature=2.0).shape
        torch.Size([5, 4])
    """

    def __init__(self, flow: Flow, momenta: int = 0, angles: int = 0) -> None:
        super().__init__()
        for layer in flow.layers:
            if getattr(layer, "angles", 0) != angles:
                raise OptionError(
                    f"{type(layer).__name__} knows of {getattr(layer, 'angles', 0)} angles, the flow has {angles}: use "
                    "TorusCoupling and BesideAngles with as many"
                )
            if not (is_linear(layer) or isinstance(layer, CONSTANT)):
                raise OptionError(
                    f"{type(layer).__name__} has a determinant that depends on the point, so its flow has no "
                    "temperature: use linear layers, VolumePreservingCoupling and Standardize"
                )
        if not 0 <= momenta < flow.dim:
            raise OptionError(f"momenta={momenta} of {flow.dim} coordinates: expected 0 to {flow.dim - 1}")
        if not 0 <= angles <= flow.dim - momenta:
            raise OptionError(f"angles={angles} of {flow.dim - momenta} positions: expected 0 to as many")
        self.flow, self.momenta, self.angles = flow, momenta, angles
        self.turns = angles
        self.dim, self.positions, self.context = flow.dim, flow.dim - momenta, flow.context

    def forward(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dy|)`` of shapes (..., dim) and (...); the latter is the same for all y."""
        return self.flow(y, context)

    def inverse_with_logabsdet(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dz|)`` of shapes (..., dim) and (...)."""
        return self.flow.inverse_with_logabsdet(z, context)

    def rescaled(self, log_prob: Tensor, temperature: float, of: float = 1.0) -> Tensor:
        r"""Return log p_T'(y) from log p_T(y) without evaluating the flow: the law, with its constant.

        .. math:: \log p_{T'}(y) = \frac{T}{T'} \left(\log p_T(y) - \ell + \tfrac{D}{2} \log 2 \pi T\right)
            + \ell - \tfrac{D}{2} \log 2 \pi T', \qquad \ell = \log|\det \partial F|

        Args:
            log_prob: log p_T(y) in nats, any shape.
            temperature: T'.
            of: T.
        """
        there, here = positive(temperature), positive(of)
        like = self.like()
        anywhere = [like.new_zeros(1, width) for width in (self.dim, self.context) if width]
        logabsdet = self.flow(*anywhere)[1]
        return (here / there) * (log_prob - logabsdet + self.log_norm(here)) + logabsdet - self.log_norm(there)

    def draw(self, n: int, **kind: Any) -> Tensor:
        """Draw latent points at T = 1, shape (n, dim): numbers, then turns of the angles."""
        numbers = torch.randn(n, self.dim - self.angles, **kind)
        if not self.angles:
            return numbers
        return torch.cat([2 * math.pi * (torch.rand(n, self.angles, **kind) - 0.5), numbers], -1)

    def augment(self, x: Tensor, generator: torch.Generator | None = None, temperature: float = 1.0) -> Tensor:
        """Return positions with momenta drawn from N(0, T I), shape (n, dim) for x of shape (n, positions).

        Raises:
            ShapeError, DtypeError: x has another width, or is no tensor.
        """
        check_tensor("SteerableFlow.augment", x)
        t = positive(temperature)
        if x.dim() != 2 or x.shape[1] != self.positions:
            raise ShapeError(f"positions of shape {tuple(x.shape)}: expected (n, {self.positions})")
        if not self.momenta:
            return x
        v = math.sqrt(t) * torch.randn(len(x), self.momenta, generator=generator, dtype=x.dtype, device="cpu")
        return torch.cat([x, v.to(x.device)], -1)

    def joint(self, energy: ReducedEnergy) -> ReducedEnergy:
        """Return the energy of positions and momenta, ``u(x) + |v|^2 / 2``, at the reference temperature."""

        def total(y: Tensor) -> Tensor:
            x, v = y[..., : self.positions], y[..., self.positions :]
            return energy(x) + 0.5 * v.square().sum(-1)

        return total

    def logabsdet(self) -> Tensor:
        """Return log|det| of the linear layers (nats), a differentiable scalar."""
        return self.flow.logabsdet()

    def extra_repr(self) -> str:
        """Return the widths."""
        return f"positions={self.positions}, momenta={self.momenta}, angles={self.angles}"


def steerable_flow(
    positions: int,
    momenta: int = 2,
    blocks: int = 8,
    mixing: str = "p4inv",
    hidden: int = 64,
    depth: int = 2,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    seed: int | torch.Generator | None = 0,
    preset: Preset = RECOMMENDED,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    context: int = 0,
    **options: Any,
) -> SteerableFlow:
    """Return volume-preserving couplings with mixing layers between and around them, as a flow with a temperature.

    Args:
        positions: width of x.
        momenta: number of auxiliary momenta.
        blocks: number of couplings, at least 1.
        mixing: a name of `p4lab.flows.MIXINGS`; "p4inv" can also learn how much volume there is.
        hidden, depth: of the couplings' networks.
        mean, std: shape (positions,): the positions are shifted and scaled by them first (None: they are not).
        seed: seed of everything random.
        preset: settings of P4 mixing layers.
        dtype: float32 or float64 (None: torch's default).
        device: device of all tensors.
        context: length c of the context that the couplings read, 0 for none.
        options: further options of the mixing layers.

    Raises:
        OptionError: something is out of range, fewer than two coordinates, or an option that neither this function nor
            the mixing knows.
    """
    check_mixing_options(steerable_flow, mixing, options)
    dim, seed = positions + momenta, seed_from(seed)

    def coupling(generator: torch.Generator) -> Bijection:
        return VolumePreservingCoupling(dim, hidden, depth, generator, dtype, device, context)

    middle = coupling_flow(dim, blocks, coupling, mixing, seed, preset, dtype=dtype, device=device, **options)
    # A linear layer at the data's side, too: it learns the overall volume, and which coordinates go first.
    outer = coupling_flow(dim, 2, coupling, mixing, seed + 1, preset, dtype=dtype, device=device, **options)
    layers: list[Any] = [outer.layers[1], *middle.layers]
    if mean is not None and std is not None:
        shift, scale = (fill(dim, dtype=dtype, device=device) for fill in (torch.zeros, torch.ones))
        shift[:positions], scale[:positions] = mean.to(shift), std.to(scale)
        layers.insert(0, Standardize(shift, scale))
    return SteerableFlow(Flow(cast(Any, layers), dim), momenta)
