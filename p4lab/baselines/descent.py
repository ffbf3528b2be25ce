"""Steps on GL(n) and O(n): the relative gradient, and the Cayley retraction. All in O(batch d^2) for batch < d."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from p4lab.baselines.riemannian import CayleyLinear, FactoredLinear, RelativeLinear
from p4lab.errors import OptionError
from p4lab.options import takes_options_of


class GroupDescent(Optimizer):
    """Base of optimizers that step the matrices of some layers of a model; all other parameters get plain SGD.

    Args:
        model: a module that contains layers of ``layer_type``.
        lr: learning rate.

    Attributes:
        layers: the layers whose ``matrix`` is stepped.

    Raises:
        OptionError: lr <= 0, or no such layers.
    """

    layer_type: type[FactoredLinear]

    def __init__(self, model: nn.Module, lr: float) -> None:
        check_rate(lr)
        self.layers = layers_of(model, self.layer_type)
        self._others = without(model, self.layers)
        super().__init__(model.parameters(), {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every layer and parameter once; return what ``closure`` returned, if there is one."""
        loss = value_of(closure)
        lr = self.param_groups[0]["lr"]
        for layer in self.layers:
            self.move(layer, lr)
        for parameter in self._others:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-lr)
        return loss

    def move(self, layer: Any, lr: float) -> None:
        """Move the weights of one layer."""
        raise NotImplementedError


class FactoredDescent(GroupDescent):
    """Base of optimizers that step layers along their group by the factors of their gradients.

    The optimizer adopts the layers. A step consumes what they kept from backward passes since the last one, whether
    `zero_grad` was called or not. Arguments and errors as for `GroupDescent`.

    Attributes:
        dense_steps: how many layer steps had to fall back to O(d^3).
    """

    def __init__(self, model: nn.Module, lr: float) -> None:
        super().__init__(model, lr)
        adopt(self.layers)
        self.dense_steps = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every layer and parameter once, and have the layers forget; return what ``closure`` returned."""
        loss = super().step(closure)
        for layer in self.layers:
            layer.forget()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, and what the layers kept."""
        super().zero_grad(set_to_none)
        for layer in self.layers:
            layer.forget()


class RelativeGradient(FactoredDescent):
    r"""The relative (natural) gradient on GL(n), for models with `RelativeLinear` layers.

    .. math:: W \leftarrow (I - \eta\, E)\, W, \qquad E = G W^T = g^T z + c I, \qquad z = W x, \quad
              c = \frac{\partial L}{\partial \ln|\det W|}

    .. math:: \ln|\det W| \leftarrow \ln|\det W| + d \ln|s| + \ln|\det(I_B - \tfrac{\eta}{s} z g^T)|, \qquad
              s = 1 - \eta c

    Equivariant: data mixed by an invertible matrix, ``x = A a``, give the same trajectory of W A for every A. Cost
    2 B d^2 + O(B^2 d) while the B samples since the last step are fewer than d and the loss depends on W through
    `forward` and `logabsdet` only; otherwise O(d^3) for the determinant of the d x d factor, counted in `dense_steps`.

    Source: Cardoso and Laheld, IEEE Trans. Signal Process. 44 (1996); Gresele et al., arXiv:2006.15090. Tracking the
    determinant by the B x B capacitance matrix is p4lab's.

    Example:
        >>> layer = RelativeLinear(3)
        >>> optimizer = RelativeGradient(layer, lr=0.1)
        >>> (layer(torch.ones(2, 3)).square().mean() - layer.logabsdet()).backward()
        >>> optimizer.step()
        >>> bool(torch.isclose(layer.logabsdet(), torch.linalg.slogdet(layer.weight.double()).logabsdet))
        True
    """

    layer_type = RelativeLinear

    def move(self, layer: RelativeLinear, lr: float) -> None:
        """Move the weights of one layer, and its log|det| along with them."""
        before, (z, g) = layer.tracked(), layer.factors()
        shrink = 1 - lr * torch.as_tensor(layer.pull, dtype=torch.float64, device=z.device)
        if layer.matrix.grad is None and len(z) < layer.dim:
            c = _eye(z, len(z)) - (lr / shrink) * (z.double() @ g.double().t())
            change = layer.dim * shrink.abs().log() + torch.linalg.slogdet(c).logabsdet
            update = z @ layer.matrix
            layer.matrix.mul_(shrink.to(z.dtype)).addmm_(g.t(), update, alpha=-lr)
        else:
            self.dense_steps += 1
            factor = shrink * _eye(z, layer.dim) - lr * relative(layer).double()
            change = torch.linalg.slogdet(factor).logabsdet
            layer.matrix.copy_(factor.to(z.dtype) @ layer.matrix)
        layer.track(before + change)


class RelativeAdam(Adam):
    """Adam on relative gradients ``G W^T W``, as Gresele et al. train, for models with `RelativeLinear` layers.

    Elementwise rescaling spoils both the equivariance and the tracked determinant: `RelativeLinear.logabsdet` then
    factorizes (O(d^3)) in each step that asks for its value. The step itself is O(B d^2) if the loss depends on W
    through ``forward`` and ``logabsdet`` only.

    Args:
        model: a module that contains `RelativeLinear` layers; the optimizer adopts them.
        lr: learning rate.
        options: further arguments of `torch.optim.Adam`.

    Raises:
        OptionError: no such layers, or an option that Adam does not know.

    Source: Gresele et al., arXiv:2006.15090.
    """

    @takes_options_of(Adam, "params")
    def __init__(self, model: nn.Module, lr: float = 1e-3, **options: Any) -> None:
        self.layers = layers_of(model, RelativeLinear)
        adopt(self.layers)
        super().__init__(model.parameters(), lr=lr, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step once; return what ``closure`` returned, if there is one."""
        loss = value_of(closure)
        for layer in self.layers:
            z, g = layer.factors()
            if layer.matrix.grad is None and not len(z) and isinstance(layer.pull, float):
                continue  # not part of the loss
            gradient = layer.pull * layer.matrix + g.t() @ (z @ layer.matrix)
            if layer.matrix.grad is not None:
                gradient = gradient + layer.matrix.grad @ layer.matrix.t() @ layer.matrix
            layer.matrix.grad = gradient
            layer.forget()
        super().step()
        for layer in self.layers:
            layer.matrix.grad = None  # consumed, as the factors are
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients, and what the layers kept."""
        super().zero_grad(set_to_none)
        for layer in self.layers:
            layer.forget()


class CayleyDescent(FactoredDescent):
    r"""Gradient descent on O(n) along Cayley transforms, for models with `CayleyLinear` layers.

    .. math:: W \leftarrow (I + \tfrac{\eta}{2} S)^{-1} (I - \tfrac{\eta}{2} S)\, W, \qquad S = G W^T - W G^T =
              g^T z - z^T g = P R

    .. math:: W \leftarrow W - \eta\, P (I_{2B} + \tfrac{\eta}{2} R P)^{-1} R W, \qquad P = [g^T, -z^T], \quad
              R = [z; g]

    The second form costs 4 B d^2 + O(B^2 d) and is used while 2 B < d; otherwise, and for gradients that come from
    elsewhere than `forward`, a d x d system is solved, counted in `dense_steps`. Rounding of W adds up slowly: nothing
    corrects it.

    Source: Wen and Yin, Math. Program. 142 (2013), with a fixed step instead of their line search.
    """

    layer_type = CayleyLinear

    def move(self, layer: CayleyLinear, lr: float) -> None:
        """Move the weights of one layer."""
        w, (z, g) = layer.matrix, layer.factors()
        if w.grad is None and 2 * len(z) < layer.dim:
            p, r = torch.cat([g, -z]).t(), torch.cat([z, g])
            c = torch.eye(len(r), dtype=r.dtype, device=r.device).addmm(r, p, alpha=lr / 2)
            w.addmm_(p, torch.linalg.solve(c, r @ w), alpha=-lr)
        else:
            self.dense_steps += 1
            s = relative(layer)
            half = (lr / 2) * (s - s.t())
            eye = torch.eye(layer.dim, dtype=s.dtype, device=s.device)
            w.copy_(torch.linalg.solve(eye + half, (eye - half) @ w))


def layers_of(model: nn.Module, layer_type: type[FactoredLinear]) -> list[Any]:
    """Return the layers of a type in a model.

    Raises:
        OptionError: there are none.
    """
    layers = [module for module in model.modules() if isinstance(module, layer_type)]
    if not layers:
        raise OptionError(f"{type(model).__name__} contains no {layer_type.__name__} layers: put some into it")
    return layers


def adopt(layers: Iterable[FactoredLinear]) -> None:
    """Make layers keep factors of their gradients."""
    for layer in layers:
        layer.adopted = True


def relative(layer: FactoredLinear) -> Tensor:
    """Return the relative gradient ``G W^T`` of a layer, shape (d, d). Cost O(B d^2), O(d^3) with a dense gradient."""
    z, g = layer.factors()
    e = g.t() @ z
    return e if layer.matrix.grad is None else e.addmm_(layer.matrix.grad, layer.matrix.t())


def _eye(like: Tensor, size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64, device=like.device)


def value_of(closure: Callable[[], Any] | None) -> Any:
    """Return what an optimizer's closure returns, with gradients recorded; None if there is none."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def check_rate(lr: float) -> None:
    """Raise OptionError unless a learning rate is positive."""
    if not lr > 0:
        raise OptionError(f"lr={lr}: expected a positive number")


def without(model: nn.Module, layers: list[Any]) -> list[nn.Parameter]:
    """Return the parameters of a model that are not the matrix of one of these layers."""
    special = {id(layer.matrix) for layer in layers}
    return [parameter for parameter in model.parameters() if id(parameter) not in special]
