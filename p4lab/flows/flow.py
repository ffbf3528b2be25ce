"""Normalizing flows of linear layers that know their inverse and determinant, and of any other bijections."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError
from p4lab.flows import fused
from p4lab.flows.bijection import Bijection
from p4lab.flows.context import length_of, paired
from p4lab.flows.latent import LatentDensity
from p4lab.flows.linear_layers import Linear, folded, is_linear, sum_of_logabsdets
from p4lab.p4.validate import no_tensor

Layer = Linear | Bijection


class Flow(LatentDensity):
    r"""A density given by an invertible map of the data onto a standard normal distribution.

    .. math:: \log p(x | c) = \log N(z; 0, I) + \log\left|\det \frac{\partial z}{\partial x}\right|, \qquad z = F(x; c)

    ``forward`` runs from the data to the latent space, so that training by maximum likelihood needs the cheap products
    ``W x`` only; sampling uses the inverses, which P4Inv layers know anyway. Layers built with ``context=c`` read the
    context, of shape (..., c), all others are the same for each: `LatentDensity` says how shapes are broadcast.

    Args:
        layers: linear layers (`Linear`: log|det| is one number) and bijections (`Bijection`: log|det| belongs to each
            sample) in the order in which the data passes them. Another flow stands for its layers.
        dim: width d (None: that of the layers).

    Attributes:
        context: length c of the context, that of the layers which read one; 0 if none does.

    Raises:
        OptionError: no layer that tells its dim, or layers of different dim, or that read contexts of different length;
            from all methods, if there is no context where one is needed, or one where none is taken, or a layer gives
            no log|det|.
        ShapeError, DtypeError, DeviceError: from all methods, if points or context do not fit.

    Cost for a batch of B: that of its layers; log|det| of a P4Inv layer is O(d k^2), whatever B is.
    Source: arXiv:2010.07033, section 3.2.

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> from p4lab.flows import BentIdentity
        >>> flow = Flow([P4Inv(2, seed=0), BentIdentity()])
        >>> flow.log_prob(torch.zeros(1, 2)).detach()  # -log(2 pi)
        tensor([-1.8379])
    """

    def __init__(self, layers: Iterable["Layer | Flow"], dim: int | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_flat(layers))
        dims: set[int] = {cast(Any, layer).dim for layer in self.layers if hasattr(layer, "dim")}
        if dim is not None:
            dims.add(dim)
        if len(dims) != 1:
            raise OptionError(f"layers of dims {sorted(dims)}: a flow needs at least one, all of the same dim")
        (self.dim,) = dims
        lengths = {length_of(layer) for layer in self.layers} - {0}
        if len(lengths) > 1:
            raise OptionError(f"layers with contexts of length {sorted(lengths)}: a flow has one for all of them")
        self.context = max(lengths, default=0)

    def linear_layers(self) -> list[Any]:
        """Return the linear layers in order."""
        return [layer for layer in self.layers if is_linear(layer)]

    def logabsdet(self) -> Tensor:
        """Return the sum of log|det W| over the linear layers (nats), a differentiable scalar (float64 for P4Inv)."""
        total = sum_of_logabsdets(self.linear_layers())
        return torch.zeros((), device=self.like().device) if total is None else total

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(z, log|det dz/dx|)`` of shapes (..., d) and (...)."""
        x, context = self._paired(x, context)
        layers = list(self.layers)
        # No layer that is fusible reads a context, and where none does, there is none.
        return fused.run(layers, x, self.layered) if fused.fusible(layers, x) else self.layered(x, False, context)

    def layered(self, x: Tensor, inverse: bool = False, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `forward` or `inverse_with_logabsdet` does, layer by layer whatever the layers are."""
        total = sum_of_logabsdets(self.linear_layers())
        if total is not None:
            total = (-total if inverse else total).to(x.dtype)
        layers: Iterable[Any] = reversed(self.layers) if inverse else self.layers
        for layer in layers:
            image = _image(layer, x, inverse, context)
            if is_linear(layer):
                x = image
            else:
                x, logabsdet = image
                total = logabsdet if total is None else total + logabsdet
        total = x.new_zeros(()) if total is None else total
        return x, total.expand(x.shape[:-1])

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the data that belong to latent ``z`` of shape (..., d)."""
        z, context = self._paired(z, context)
        layers = list(self.layers)
        if fused.fusible(layers, z, gradients=False):
            return fused.undo(layers, z)
        return self.stages(z, context=context)[-1]

    def inverse_with_logabsdet(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return ``(x, log|det dx/dz|)`` of shapes (..., d) and (...): training by energy needs both."""
        z, context = self._paired(z, context)
        return self.layered(z, True, context)

    def stages(
        self, points: Tensor, to: Literal["data", "latent"] = "data", context: Tensor | None = None
    ) -> list[Tensor]:
        """Return what each layer makes of points, for a look into the depth of the flow.

        Args:
            points: latent z (``to="data"``) or data x (``to="latent"``), shape (..., d).
            to: direction.
            context: shape (..., c), None for a flow without.

        Returns:
            ``len(layers) + 1`` tensors of shape (..., d): the points themselves, then what is left after each layer.

        Raises:
            OptionError: unknown direction.
        """
        if to not in ("data", "latent"):
            raise OptionError(f"to={to!r}: expected 'data' or 'latent'")
        points, context = self._paired(points, context)
        path, back = [points], to == "data"
        layers: Iterable[Any] = reversed(self.layers) if back else self.layers
        for layer in layers:
            image = _image(layer, path[-1], back, context)
            path.append(image if is_linear(layer) else image[0])
        return path

    def joined(self, z: Tensor, logabsdet: Tensor, temperature: float = 1.0) -> Tensor:
        """Return log p(x) from the prior at z and log|det dz/dx|."""
        square = 0.5 * z.square().sum(-1)
        return logabsdet - (square if temperature == 1.0 else square / temperature) - self.log_norm(temperature)

    @torch.no_grad()
    def fold(self) -> "Flow":
        """Return a plain flow of the same density, for use after training: nothing of P4 is left in it.

        Linear layers become frozen `FoldedLinear` ones, of which the inverse is stored; other layers and permutations
        are copied. This flow is not changed. Cost O(d^3) per linear layer.

        Raises:
            SingularMatrixError: a linear layer is singular or not finite.
        """
        twins = {layer: folded(layer) for layer in self.layers}  # shared ones stay shared
        return Flow((twins[layer] for layer in self.layers), self.dim).train(self.training)

    def _paired(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not isinstance(x, Tensor):
            raise no_tensor("Flow", x, self.like())
        return paired("Flow", self.context, x, context)


def _image(layer: Any, x: Tensor, inverse: bool, context: Tensor | None) -> Any:
    """Return what a layer makes of x, with the context if it reads one.

    Raises:
        OptionError: the layer is none of a flow: it has neither a log|det| nor returns one.
    """
    move = layer.inverse if inverse else layer
    image = move(x) if context is None or not length_of(layer) else move(x, context)
    if not isinstance(image, tuple | list) and not is_linear(layer):
        raise OptionError(
            f"a layer of class {type(layer).__name__} returned {type(image).__name__}: a flow expects (y, log|det|) of "
            "it, or a linear layer with logabsdet(), such as P4Inv; a zuko flow becomes a layer by FromZuko"
        )
    return image


def _flat(layers: Iterable[Layer | Flow]) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, Flow):
            yield from layer.layers
        else:
            yield cast(nn.Module, layer)
