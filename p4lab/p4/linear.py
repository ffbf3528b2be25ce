"""What linear P4 layers share: a bias, a generator, the last batch, judgement of a merge, casts and folding."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError
from p4lab.linalg import orthonormal_rows
from p4lab.p4._validate import check_cast, check_input, check_options, seed_from
from p4lab.p4.contract import Check, MergeReport, MergeStatus, P4Module, full_precision

Reset = Literal["gaussian", "gradient"]
Batch = tuple[Tensor, Tensor, bool]
RESETS = ("gaussian", "gradient")
MIN_FACTOR = math.exp(-6.0)
"""What `P4Factored` layers start with, as in the paper."""
NOT_FINITE = Check(
    MergeStatus.DISCARDED_NOT_FINITE,
    "the perturbation or bias holds NaN or infinity; the layer is back at its last merge",
)
NEARLY_SINGULAR = Check(
    MergeStatus.SKIPPED_SINGULAR,
    "|C^-1|: merging would make the matrix nearly singular; the perturbation stays and trains on",
)
ILL_CONDITIONED = Check(
    MergeStatus.SKIPPED_SINGULAR,
    "rounding error that merging would bring to |A A^-1 - I|; the perturbation stays and trains on",
)


class P4Linear(P4Module):
    r"""Base class of linear layers :math:`y = W x + b` whose weights keep a property.

    A subclass registers its frozen tensors, its parameter ``u`` and (if it has any) its fixed directions ``v``, then
    calls `reset`. It supplies ``forward``, ``weight``, ``propose``, ``absorb`` (calling this one's for the bias),
    ``_set_directions``, ``violation`` and ``correct``; for a gradient reset ``_sketch``, too.

    Args:
        dim_in: length of an input.
        dim_out: length of an output.
        rank: number of rows of the perturbation.
        bias: whether there is an additive bias.
        reset: how directions are redrawn, "gaussian" (random) or "gradient"; both are orthonormal.
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from.
        device: device of all tensors.
        dtype: float32 or float64.

    Raises:
        OptionError: a dimension, rank or reset out of range.
        DtypeError: a dtype other than float32 and float64.
    """

    checks: ClassVar[tuple[Check, ...]] = (NOT_FINITE,)
    """What a merge is judged by; the first one is for values that are not finite."""
    wide_buffers: ClassVar[tuple[str, ...]] = ()
    """Buffers that stay in float64 whatever the layer is cast to."""

    u: nn.Parameter
    v: Tensor
    bias: nn.Parameter | None
    frozen_bias: Tensor | None
    limits: Tensor

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        rank: int,
        bias: bool,
        reset: Reset,
        seed: int | torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        for dim in (dim_in, dim_out):
            check_options(dim, rank, dtype)
        self.dim_in, self.dim_out, self.rank, self.reset_kind = dim_in, dim_out, rank, reset
        self._generator = torch.Generator().manual_seed(seed_from(seed))
        self._batch: Batch | None = None
        self._overlap: Tensor | None = None
        kind: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim_out, **kind)) if bias else None)
        self.register_buffer("frozen_bias", torch.zeros(dim_out, **kind) if bias else None)
        self.register_buffer("limits", torch.zeros(len(self.checks), **kind), persistent=False)
        self._set_limits()

    # --- for subclasses ----------------------------------------------------------------------------------------------

    def thresholds(self) -> tuple[float, ...]:
        """Return the limits of all checks but the first."""
        return ()

    def judge(self, written: tuple[Tensor, ...], *figures: Tensor) -> MergeReport:
        """Return the report on what a merge would write (which must be finite) and on one figure for each check."""
        moved = sum((torch.linalg.vector_norm(t) for t in written), torch.linalg.vector_norm(self.u))
        if self.bias is not None:
            moved = moved + torch.linalg.vector_norm(self.bias)
        return MergeReport(self.checks, torch.stack((moved, *(f.to(moved.dtype) for f in figures))), self.limits)

    def _set_directions(self, where: Tensor, v: Tensor) -> None:
        """Put new directions in the place of ``v``, and renew what depends on them, where ``where`` holds."""
        torch.where(where, v, self.v, out=self.v.detach())

    def _sketch(self, omega: Tensor, batch: Batch) -> Tensor:
        """Return rows that span the dominant directions of the gradient of a batch (x, g, through the inverse?)."""
        raise NotImplementedError

    def _frame(self, rows: Tensor, omega: Tensor) -> Tensor:
        """Return the new directions from a sketch, or from random rows where that is not finite."""
        return orthonormal_rows(rows, fallback=omega)

    def _check(self, x: Tensor, dim: int) -> None:
        check_input(type(self).__name__, dim, self.u, x)

    def _remember(self, x: Tensor, y: Tensor, inverted: bool = False) -> None:
        if self._reset_kind == "gaussian" or not (self.training and y.requires_grad):
            return
        x = x.detach()

        def keep(g: Tensor | None) -> None:
            if g is not None:  # custom functions may return an undefined gradient
                self._batch = (x.reshape(-1, x.shape[-1]), g.detach().reshape(-1, g.shape[-1]), inverted)

        y.register_hook(keep)

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def perturbation(self) -> tuple[nn.Parameter, ...]:
        """Return u, the trained parameter that a merge resets."""
        return (self.u,)

    def absorb(self, report: MergeReport, update: dict[str, Tensor]) -> None:
        """Note the bias of this merge, to which a discarded perturbation returns."""
        if self.bias is not None and self.frozen_bias is not None:
            torch.where(report.accepted, self.bias, self.frozen_bias, out=self.frozen_bias)

    @torch.no_grad()
    @full_precision
    def reset(self, where: Tensor | None = None, undo: Tensor | None = None) -> None:
        """Set ``u = 0`` and draw new directions, where ``where`` holds (a scalar bool; None: always).

        ``undo`` marks where the bias, too, goes back to the last merge.
        """
        if where is None:
            where = torch.ones((), dtype=torch.bool, device=self.u.device)
        v = self._new_directions() if hasattr(self, "v") else None  # a sketch may need u
        self.u.masked_fill_(where, 0.0)
        if v is not None:
            self._overlap = v @ self.v.t() if self._reset_kind == "gradient" else None
            self._set_directions(where, v)
        if undo is not None and self.bias is not None and self.frozen_bias is not None:
            torch.where(undo, self.frozen_bias, self.bias, out=self.bias.detach())

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, report: MergeReport) -> None:
        """Express the momentum of u in the new directions if these overlap with the old ones. Cost O(d k^2)."""
        if parameter is self.u and self._overlap is not None:
            torch.where(report.accepted, self._overlap @ momentum, momentum, out=momentum)
        else:
            super().carry_momentum(parameter, momentum, report)

    @property
    def weight(self) -> Tensor:
        """The effective weights, shape (dim_out, dim_in), differentiable."""
        raise NotImplementedError

    def fold(self) -> nn.Linear:
        """Return a plain `nn.Linear` with the effective weights and a copy of the bias."""
        kind: dict[str, Any] = {"device": self.u.device, "dtype": self.u.dtype}
        linear = nn.utils.skip_init(nn.Linear, self.dim_in, self.dim_out, bias=self.bias is not None, **kind)
        with torch.no_grad():
            linear.weight.copy_(self.weight)
            if self.bias is not None:
                linear.bias.copy_(self.bias)
        return cast(nn.Linear, linear.train(self.training))

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def reset_kind(self) -> Reset:
        """How directions are redrawn at the next merge, "gaussian" or "gradient" (may be set at any time)."""
        return self._reset_kind

    @reset_kind.setter
    def reset_kind(self, kind: Reset) -> None:
        if kind not in RESETS:
            raise OptionError(f"reset={kind!r} is not known: choose one of {RESETS}")
        self._reset_kind = kind

    def _new_directions(self) -> Tensor:
        # Always drawn, used or not: the generator then advances by the same amount whether a merge is skipped or not.
        omega = torch.randn(self.v.shape, generator=self._generator, dtype=self.u.dtype).to(self.u.device)
        sketch, batch, self._batch = omega, self._batch, None
        if self._reset_kind == "gradient" and batch is not None:
            x, g, inverted = batch
            sketch = self._sketch(omega, (x.to(omega.dtype), g.to(omega.dtype), inverted))
        return self._frame(sketch, omega)

    def _set_limits(self) -> None:
        huge = torch.finfo(self.limits.dtype).max
        self.limits.copy_(torch.tensor([huge, *(min(t, huge) for t in self.thresholds())], dtype=self.limits.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(self.u.detach().new_empty(0))
        check_cast(type(self).__name__, probe.dtype)
        kept = {name: self._buffers[name] for name in self.wide_buffers}
        self._buffers.update(dict.fromkeys(kept))  # neither .float() may round them nor mps see float64
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in kept.items():
                if tensor is not None:
                    meta = tensor.is_meta
                    self._buffers[name] = fn(tensor) if meta else tensor.to(probe.device, widest(probe.device))
        self._set_limits()  # they depend on the dtype
        if self._batch is not None:
            x, g, inverted = self._batch
            self._batch = (fn(x), fn(g), inverted)
        return self

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the state of the layer's generator, so that a loaded layer draws the same directions."""
        return {"generator": self._generator.get_state()}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Set the state of the layer's generator."""
        self._generator.set_state(state["generator"].cpu())

    def extra_repr(self) -> str:
        """Return the arguments that differ between layers."""
        bias = self.bias is not None
        return f"{self.dim_in}, {self.dim_out}, rank={self.rank}, bias={bias}, reset={self.reset_kind!r}"


class P4Factored(P4Linear):
    """Base class of those linear layers that must stay invertible, so that a merge judges how much it would take away.

    Args:
        min_factor: smallest factor that a merge accepts, 0 <= min_factor < 1; 0 switches skipping off.
        arguments: those of `P4Linear`.

    Raises:
        OptionError: min_factor out of range.
    """

    def __init__(self, min_factor: float, *arguments: Any) -> None:
        self._min_factor = _checked(min_factor)
        super().__init__(*arguments)

    @property
    def min_factor(self) -> float:
        """Smallest factor that a merge accepts (may be set at any time; 0 switches skipping off)."""
        return self._min_factor

    @min_factor.setter
    def min_factor(self, value: float) -> None:
        self._min_factor = _checked(value)
        self._set_limits()

    def thresholds(self) -> tuple[float, ...]:
        """Return the limit of the inverse of the factor."""
        return (1 / self._min_factor if self._min_factor > 0 else math.inf,)


class VolumePreserving(P4Linear):
    """Base class of those square linear layers whose perturbations cannot change the determinant, 1 or -1.

    A subclass registers ``frozen_sign``, the sign of the start's determinant.
    """

    frozen_sign: Tensor

    @property
    def dim(self) -> int:
        """Width d."""
        return self.dim_in

    def logabsdet(self) -> Tensor:
        """Return log|det W| = 0 (nats), a constant without gradient, in float64 (float32 on mps). Cost O(1)."""
        return torch.zeros((), dtype=widest(self.u.device), device=self.u.device)

    def sign(self) -> Tensor:
        """Return the sign of det W, a scalar: that of the start, for no perturbation changes it."""
        return self.frozen_sign.clone()


def _checked(min_factor: float) -> float:
    if not 0 <= min_factor < 1:
        raise OptionError(f"min_factor={min_factor!r}: expected 0 <= min_factor < 1 (0 switches skipping off)")
    return min_factor


def add_low_rank(y: Tensor, s: Tensor, rows: Tensor, alpha: int = 1) -> Tensor:
    """Return ``y + alpha s @ rows`` for y of shape (..., d), s of shape (..., k) and rows of shape (k, d)."""
    return torch.addmm(y, s, rows, alpha=alpha) if y.dim() == 2 else torch.add(y, s @ rows, alpha=alpha)


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype of what must not drift: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
