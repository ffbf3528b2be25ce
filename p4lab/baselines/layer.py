"""What all linear baselines share: the small interface of P4Inv, starts, errors."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from p4lab.errors import OptionError, P4Error
from p4lab.linalg import initial_matrix, inverse_and_logabsdet, orthogonality_error
from p4lab.p4.orthogonal import LARGEST_ERROR
from p4lab.p4.validate import DTYPES, check_input, check_options, check_tensor, seed_from


class UnsupportedError(P4Error, NotImplementedError):
    """A baseline was asked for what its method cannot do."""


class Baseline(nn.Module, ABC):
    """Square linear layer ``y = W x + b`` with the interface of `p4lab.p4.P4Inv`.

    A subclass supplies `weight`; what it knows better than dense algebra, it overrides.

    Args:
        dim: width d.
        bias: whether there is an additive bias, started at 0.
        dtype: float32 or float64 (None: torch's default).
        device: device of all tensors.

    Raises:
        OptionError, DtypeError: dim or dtype out of range.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self._kind: dict[str, Any] = {"dtype": dtype or torch.get_default_dtype(), "device": device_of(device)}
        check_options(dim, 1, self._kind["dtype"])
        self.dim = dim
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim, **self._kind)) if bias else None)

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The effective weights, shape (d, d), differentiable."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``W x + b`` for x of shape (..., d).

        Raises:
            ShapeError, DtypeError, DeviceError: x does not fit the layer.
        """
        self._check(x)
        y = self._map(x.reshape(-1, self.dim)).reshape(x.shape)
        return y if self.bias is None else y + self.bias

    def inverse(self, y: Tensor) -> Tensor:
        """Return ``W^-1 (y - b)`` for y of shape (..., d), differentiable.

        Raises:
            ShapeError, DtypeError, DeviceError: y does not fit the layer.
        """
        self._check(y)
        r = y if self.bias is None else y - self.bias
        return self._unmap(r.reshape(-1, self.dim)).reshape(y.shape)

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), a scalar in the layer's dtype. Cost O(d^3) unless the method knows better."""
        return torch.linalg.slogdet(self.weight).logabsdet

    def fold(self) -> nn.Linear:
        """Return a plain `nn.Linear` with the effective weights and a copy of the bias."""
        weight = self.weight.detach()
        linear = nn.utils.skip_init(
            nn.Linear, self.dim, self.dim, bias=self.bias is not None, dtype=weight.dtype, device=weight.device
        )
        with torch.no_grad():
            linear.weight.copy_(weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return cast(nn.Linear, linear.train(self.training))

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        return f"dim={self.dim}, bias={self.bias is not None}"

    def _map(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def _unmap(self, y: Tensor) -> Tensor:
        return torch.linalg.solve(self.weight, y.t()).t()

    def _check(self, x: Tensor) -> None:
        check_input(type(self).__name__, self.dim, next(self.parameters()), x)


class OrthogonalBaseline(Baseline):
    """Linear layer with orthogonal weights: the inverse is the transpose and log|det| is 0."""

    def logabsdet(self) -> Tensor:
        """Return 0, a constant without gradient."""
        return next(self.parameters()).new_zeros(())

    @torch.no_grad()
    def violation(self) -> Tensor:
        """Return ``max |W^T W - I|``. Cost O(d^3)."""
        return orthogonality_error(self.weight)

    def _unmap(self, y: Tensor) -> Tensor:
        return y @ self.weight


class NearlyOrthogonal(OrthogonalBaseline):
    """Linear layer whose weights are next to O(n), not on it: its inverse is the transpose, as right as they are.

    What is measured of it is the truth: where no training goes on, `logabsdet` factorizes.
    """

    def logabsdet(self) -> Tensor:
        """Return log|det W| (nats), cost O(d^3); in training what O(n) has: 0, a constant without gradient."""
        return super().logabsdet() if in_training(self) else torch.linalg.slogdet(self.weight).logabsdet


class Derived(nn.Module, ABC):
    """A module that keeps what it computed from one of its buffers, such as an inverse.

    In a wider dtype that would stay as narrow as it was. So it is computed anew when the module is cast up, and when a
    state of a narrower dtype is loaded into it.

    Attributes:
        source: name of the buffer that all is computed from.
    """

    source: ClassVar[str]

    @abstractmethod
    def renew(self) -> None:
        """Compute anew what is kept, from the source as it is."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.get_buffer(self.source).dtype
        super()._apply(fn, recurse)
        self._renew_after(before)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        arrived = state_dict.get(prefix + self.source)
        if isinstance(arrived, Tensor):
            self._renew_after(arrived.dtype)

    def _renew_after(self, before: torch.dtype) -> None:
        source = self.get_buffer(self.source)
        if readable(source) and source.dtype in DTYPES and before.is_floating_point and _widens(before, source.dtype):
            self.renew()


def _widens(before: torch.dtype, after: torch.dtype) -> bool:
    return torch.finfo(after).eps < torch.finfo(before).eps


def in_training(layer: nn.Module) -> bool:
    """Return whether a layer is being trained: it is in training mode, and gradients are recorded."""
    return layer.training and torch.is_grad_enabled()


def readable(tensor: Tensor) -> bool:
    """Return whether a tensor has values: those of the meta device and of torch's fake mode have none."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def device_of(device: torch.device | str | None) -> torch.device:
    """Return a device with its index, torch's default for None: what is computed on the CPU knows where to go."""
    return torch.empty(0, device=device).device


def start_matrix(
    init: str | Tensor,
    dim: int,
    dtype: torch.dtype,
    seed: int | torch.Generator | None = None,
    orthogonal: bool = False,
) -> Tensor:
    """Return the matrix that a layer starts at.

    Args:
        init: a name that `p4lab.linalg.initial_matrix` knows, or an invertible (d, d) tensor.
        dim: d.
        dtype: dtype in which it has to be invertible.
        seed: seed of the names that are random (None: torch's default generator).
        orthogonal: whether only orthogonal matrices belong to the layer's family.

    Returns:
        Shape (d, d), float64, on the CPU; never the caller's own tensor.

    Raises:
        OptionError: unknown name, or a tensor outside of the family.
        ShapeError, SingularMatrixError: a tensor that is not square, not finite or not invertible in ``dtype``.
        DtypeError: neither a name nor a tensor.

    Cost O(d^3).
    """
    if isinstance(init, str):
        return initial_matrix(init, dim, torch.Generator().manual_seed(seed_from(seed)))
    check_tensor("init", init)
    inverse_and_logabsdet(init, dim, dtype)
    start = init.detach().to("cpu", torch.float64, copy=True)
    if orthogonal and not (error := float(orthogonality_error(start))) <= LARGEST_ERROR:
        outside("orthogonal", f"max |Q^T Q - I| = {error:.3g}", "take the Q of torch.linalg.qr(init)")
    return start


def check_identity(start: Tensor, family: str, why: str, advice: str) -> None:
    """Raise the OptionError of `outside` unless a start is the identity."""
    if not torch.equal(start, torch.eye(len(start), dtype=start.dtype, device=start.device)):
        outside(family, why, advice)


def outside(family: str, why: str, advice: str) -> None:
    """Raise the OptionError of a start that a family of matrices does not contain."""
    raise OptionError(f"init is outside of the {family} family ({why}): {advice}, or take another method")
