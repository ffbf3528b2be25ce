"""What linear P4 layers share: a bias, a generator, the last batch, judgement of a merge, casts and folding."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, ReplicaError, ShapeError
from p4lab.linalg import is_transforming, orthonormal_rows
from p4lab.p4.changes import Changes
from p4lab.p4.contract import Total, alone, full_precision
from p4lab.p4.modes import outside_inference
from p4lab.p4.plain import LikeLinear
from p4lab.p4.refusals import Refusals
from p4lab.p4.report import Check, MergeReport, MergeStatus
from p4lab.p4.validate import check_cast, check_input, check_options, check_tensor, seed_from
from p4lab.p4.watch import Batch, CompiledWatch, Slots, Watch, tie_to

Reset = Literal["gaussian", "gradient", "identity"]
RESETS: tuple[Reset, ...] = ("gaussian", "gradient")
"""These are the ways to redraw directions, where there is no other."""
MIN_FACTOR = math.exp(-6.0)
"""`P4Factored` layers accept no smaller factor unless they are told to; the number is the paper's."""
LARGEST_CONDITION_EPS = 0.5
"""A layer that is factorized anew may be as near to singular as this: |A| |A^-1| eps, by Frobenius norms."""
NOT_FINITE = Check(
    MergeStatus.DISCARDED_NOT_FINITE,
    "the perturbation or bias holds NaN or infinity; the layer is back at its last merge",
)
"""Every layer is judged by this first."""
NEARLY_SINGULAR = Check(
    MergeStatus.SKIPPED_SINGULAR,
    "|C^-1|: merging would make the matrix nearly singular; the perturbation stays and trains on",
)
"""Layers with a capacitance matrix C are judged by its inverse."""
ILL_CONDITIONED = Check(
    MergeStatus.SKIPPED_SINGULAR,
    "rounding error that merging would bring to |A A^-1 - I|; the perturbation stays and trains on",
)
"""Layers that update an inverse are judged by what rounding does to it."""
INACCURATE = Check(
    MergeStatus.SKIPPED_INACCURATE,
    "error of the frozen inverse along the perturbation; call refine(), or recompute()",
)
"""Layers that update an inverse are judged by how good it is."""
LARGEST_DEFECT = 1e-2
"""A merge is refused above this error of A^-1."""


class P4Linear(LikeLinear):
    r"""Base class of linear layers :math:`y = W x + b` whose weights keep a property.

    A subclass registers its frozen tensors, its parameter ``u`` and (if it has any) its fixed directions ``v``, then
    calls `reset`. It supplies ``forward`` (which returns `_watched` of its result), ``weight``, ``_absorb``,
    ``violation`` and ``correct``; for a gradient reset ``sketch``, too, and ``_seen_of_identity`` if what it gives to
    `_watched` is not x.

    Args:
        dim_in: length of an input.
        dim_out: length of an output.
        rank: number of rows of the perturbation; what is more than `largest_rank` is not kept.
        bias: whether there is an additive bias.
        reset: how directions are redrawn, "gaussian" (random) or "gradient"; both are orthonormal.
        seed: seed of the layer's own generator, or a CPU generator to draw that seed from.
        device: device of all tensors (None: torch's default device).
        dtype: float32 or float64.

    Attributes:
        kind: device and dtype of the layer's tensors, as keywords for torch.
        rank: number of rows of the perturbation.
        generator: the layer's own, on the CPU, that draws directions.
        batch: what a gradient reset will look at, from the last backward pass (None: there was none since).
        redraws: how often the layer was merged or reset.

    Raises:
        OptionError: a dimension, rank or reset out of range.
        DtypeError: a dtype other than float32 and float64.
    """

    checks: ClassVar[tuple[Check, ...]] = (NOT_FINITE,)
    """What a merge is judged by; the first one is for values that are not finite."""
    resets: ClassVar[tuple[Reset, ...]] = RESETS
    """Its directions may be redrawn in these ways."""
    wide_buffers: ClassVar[tuple[str, ...]] = ()
    """Buffers that stay in float64 whatever the layer is cast to."""

    u: nn.Parameter
    v: Tensor

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
        self.dim_in, self.dim_out = dim_in, dim_out
        self.rank = min(rank, self.largest_rank())
        self.reset_kind = reset
        self.generator = torch.Generator(device="cpu").manual_seed(seed_from(seed))
        self.batch: Batch | None = None
        self._slots: Slots | None = None
        self._refusals = Refusals()
        self.redraws = 0
        self._limits: Tensor | None = None
        # Said once: what is made on the CPU, as random matrices are, must come to the default device with the rest
        # (in torch 2.6 `torch.get_default_device` does not know `with torch.device(...)`).
        kind: dict[str, Any] = {"device": device or torch.empty(0).device, "dtype": dtype}
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim_out, **kind)) if bias else None)
        self.register_buffer("frozen_bias", torch.zeros(dim_out, **kind) if bias else None)
        self._start_kind = kind

    # --- for subclasses ----------------------------------------------------------------------------------------------

    def largest_rank(self) -> int:
        """Return how many rows of a perturbation make a difference; a layer keeps no more of them than that."""
        return min(self.dim_in, self.dim_out)

    def thresholds(self) -> tuple[float, ...]:
        """Return the limits of all checks but the first."""
        return ()

    def judge(self, written: tuple[Tensor, ...], *figures: Tensor, size: Tensor | None = None) -> MergeReport:
        """Return the report on what a merge would write and on one figure for each check.

        Args:
            written: tensors that must be finite, as u and the bias must be.
            figures: measured values.
            size: a number that is not finite where u, or something else that is written, is not (None: the norm of u).
        """
        norm = torch.linalg.vector_norm
        size = norm(self.u) if size is None else size
        for tensor in (*written, self.bias):
            if tensor is not None:
                size = size + norm(tensor)
        figures = (size, *(f.to(size.dtype) for f in figures))
        return MergeReport(self.checks, torch.stack(figures), self._limits_like(size))

    def _open(self, length: int) -> None:
        """Register u = 0 and directions v, shape (k, length) each, and draw these."""
        self.u = nn.Parameter(torch.zeros(self.rank, length, **self.kind))
        self.register_buffer("v", torch.zeros(self.rank, length, **self.kind))
        self._fit_slots()
        self.reset()

    def _given(self, init: Tensor) -> Tensor:
        """Return a user's weights, shape (dim_out, dim_in), in float64 on the CPU.

        Raises:
            DtypeError: they are no tensor.
            ShapeError: they have another shape.
        """
        check_tensor("init", init)
        shape = self.dim_out, self.dim_in
        if init.shape != shape:
            raise ShapeError(f"init has shape {tuple(init.shape)}, expected {shape}: (dim_out, dim_in) of the layer")
        return init.detach().to("cpu", torch.float64)

    @abstractmethod
    def _absorb(self) -> Changes:
        """Judge the perturbation and plan ``A <- R_B(A)``."""

    def _absorb_anew(self) -> Changes:
        """Do the same by factorization in the wide dtype, for a layer whose merges are refused again and again."""
        return self._absorb()

    def set_directions(self, changes: Changes, v: Tensor) -> None:
        """Plan new directions in the place of ``v``, and what depends on them."""
        changes.renew(self.v, v)

    def _noise(self, generator: torch.Generator, rows: int) -> Tensor:
        """Return random rows of the shape of ``v``, normally distributed."""
        kind: dict[str, Any] = {"generator": generator, "dtype": self.u.dtype, "device": "cpu"}
        return torch.randn(rows, self.v.shape[1], **kind).to(self.u.device)

    def sketch(self, omega: Tensor, batch: Batch, changes: Changes) -> Tensor:
        """Return rows that span the dominant directions of the gradient of a batch (x, g, through the inverse?).

        ``changes`` say what the frozen tensors will be (`Changes.product`).
        """
        raise NotImplementedError

    def _sketched(self, omega: Tensor, changes: Changes, total: Total) -> Tensor:
        """Return the sketch of the last batch of all replicas; zero rows where there was none."""
        batch = self._last_batch()
        if batch is None:
            return total(torch.zeros_like(omega))
        x, g, inverted = batch
        rows = self.sketch(omega, (x.to(omega.dtype), g.to(omega.dtype), inverted), changes)
        if total is alone:
            return rows
        # A replica whose batch is empty, or not finite, says nothing, rather than silencing the others.
        finite = torch.isfinite(torch.linalg.vector_norm(rows))
        return total(torch.where(finite, rows, torch.zeros_like(rows)).contiguous())

    def _frame(self, rows: Tensor, omega: Tensor) -> Tensor:
        # Random rows stand in for a sketch that is zero or not finite.
        return orthonormal_rows(rows, fallback=omega)

    def _check(self, x: Tensor, dim: int) -> None:
        check_input(type(self).__name__, dim, cast(Tensor, self._parameters["u"]), x)

    def _watched(self, x: Tensor, y: Tensor, inverted: bool = False) -> Tensor:
        """Return y, computed from x, tied to this merge and remembered for the next: `_ordered` and `_remembered`."""
        if self._reset_kind == "gradient" and self.training:
            return self._remembered(x, y, inverted)
        return self._ordered(y)

    def _remembered(self, x: Tensor, y: Tensor, inverted: bool = False) -> Tensor:
        """Return y, whose backward pass remembers the batch (for gradient resets) and refuses to follow a merge.

        Transforms of torch.func, and vectorized backward passes, leave no trace.
        """
        if self._reset_kind != "gradient" or not self.training or not _recorded(y):
            return y
        if torch._C._get_tracing_state() is not None:  # the tracer knows no such functions
            return y
        if not torch.compiler.is_compiling():
            return cast(Tensor, Watch.apply(y, x.detach(), self, inverted))
        slots = cast(Slots, self._slots)
        if slots.inverted != inverted:
            slots.inverted = inverted
        return cast(Tensor, CompiledWatch.apply(y, x.detach(), slots.x, slots.g))

    def _ordered(self, y: Tensor) -> Tensor:
        """Return y, whose backward pass refuses to follow a merge."""
        if _recorded(y) and not torch.compiler.is_compiling():
            tie_to(y, self)
        return y

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def perturbation(self) -> tuple[nn.Parameter, ...]:
        """Return u, the trained parameter that a merge resets."""
        return (self.u,)

    def propose(self, total: Total = alone) -> Changes:
        """Judge the perturbation and plan the merge; after many refusals in a row, by factorizing anew.

        Cost O(d^2 k); O(d^3) when it factorizes.
        """
        rescued = self._refusals.piled_up()
        changes = self._absorb_anew() if rescued else self._absorb()
        if not changes.report.is_final:  # what never trains on cannot pile up
            self._refusals.note(changes, rescued)
        if self.bias is not None and self.frozen_bias is not None:
            changes.absorb(self.frozen_bias, self.bias)
            changes.undo(self.bias, self.frozen_bias)
        self._redraw(changes, total)
        return changes

    @property
    def rescues(self) -> int:
        """How often the layer was factorized anew because its merges had been refused again and again."""
        return self._refusals.rescues

    @torch.no_grad()
    @full_precision
    def reset(self) -> None:
        """Set ``u = 0``, dropping the perturbation, and draw new directions."""
        changes = Changes()
        self._redraw(changes, alone)
        changes.commit()

    def _redraw(self, changes: Changes, total: Total) -> None:
        """Plan ``B <- B0`` with new directions."""
        changes.clear(self.u)
        if not self._has_directions():
            changes.assign(self, redraws=self.redraws + 1)
            return
        generator = self.generator.clone_state()
        self.set_directions(changes, self._new_directions(generator, changes, total))
        changes.assign(self, redraws=self.redraws + 1, generator=generator, batch=None)
        if self._slots is not None:
            self._slots.clear(changes)

    def _restart(self, changes: Changes) -> None:
        """Write new frozen tensors, with no perturbation left and the present bias as the one to return to."""
        if self.bias is not None and self.frozen_bias is not None:
            changes.put(self.frozen_bias, self.bias)
        self._redraw(changes, alone)
        changes.commit()

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, changes: Changes) -> Tensor:
        """Express the momentum of u in the new directions if these overlap with the old ones. Cost O(d k^2)."""
        if parameter is self.u and self._reset_kind == "gradient" and self._has_directions():
            return (changes.new(self.v) @ self.v.t()) @ momentum
        return super().carry_momentum(parameter, momentum, changes)

    def watched_weight(self) -> Tensor:
        """Return `weight` for whoever reads it instead of calling the layer, in the place of a batch.

        Its backward pass tells a gradient reset of the gradient G by W, as a batch of ``dim_in`` samples does: the rows
        of the identity, with outputs W^T and gradients G^T. A compiled one, which has no room for so many samples,
        tells nothing, and directions are random.

        Returns:
            Shape (dim_out, dim_in), differentiable, contiguous or the transpose of a contiguous tensor.

        Raises:
            OptionError: the layer has room for some samples only (`P4Relative` and `P4Riemannian` with ``rank < dim``).

        Cost as `weight`.
        """
        transposed = self.weight.t().clone(memory_format=torch.contiguous_format)
        if torch.compiler.is_compiling():
            return transposed.t()
        return self._watched(self._seen_of_identity(), transposed).t()

    def _seen_of_identity(self) -> Tensor:
        """Return what `_watched` gets for the inputs where these are the rows of the identity."""
        return torch.eye(self.dim_in, **self.kind)

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def kind(self) -> dict[str, Any]:
        """Device and dtype of the layer's tensors, as keywords for torch."""
        u = self._parameters.get("u")
        return self._start_kind if u is None else {"device": u.device, "dtype": u.dtype}

    @property
    def reset_kind(self) -> Reset:
        """How directions are redrawn at the next merge, "gaussian" or "gradient" (may be set at any time)."""
        return self._reset_kind

    @reset_kind.setter
    def reset_kind(self, kind: Reset) -> None:
        if kind not in self.resets:
            raise OptionError(f"reset={kind!r} is not known: choose one of {self.resets}")
        if kind == "identity" and self.rank < self.dim_in:
            raise OptionError(f"reset='identity' needs all directions: rank={self.rank} is below dim={self.dim_in}")
        self._reset_kind = kind
        if "_slots" in self.__dict__:
            self._fit_slots()

    def _new_directions(self, generator: torch.Generator, changes: Changes, total: Total) -> Tensor:
        # Always drawn, used or not: the generator then advances by the same amount whether a merge is skipped or not.
        omega = self._noise(generator, len(self.v))
        rows = self._sketched(omega, changes, total) if self._reset_kind == "gradient" else omega
        return self._frame(rows, omega)

    def _has_directions(self) -> bool:
        return "v" in self._buffers or "v" in self._parameters

    def _last_batch(self) -> Batch | None:
        """Return what the last backward pass left; a compiled one leaves samples of its batch."""
        if self.batch is None and self._slots is not None and self._slots.x.device == self.u.device:
            return self._slots.batch()
        return self.batch

    def _fit_slots(self) -> None:
        """Make room for what a compiled backward pass has to remember: for a gradient reset only."""
        u = self._parameters.get("u")
        if self._reset_kind != "gradient" or u is None or not self._has_directions():
            self._slots = None
        elif self._slots is None or not self._slots.fit(u):
            self._slots = Slots(self.rank, self.dim_in, self.dim_out, u)

    def _limits_like(self, figure: Tensor) -> Tensor:
        limits = self._limits
        if limits is None or limits.dtype != figure.dtype or limits.device != figure.device:
            huge = torch.finfo(figure.dtype).max
            numbers = [huge, *(min(t, huge) for t in self.thresholds())]
            with outside_inference():
                limits = torch.zeros(len(self.checks), dtype=figure.dtype, device=figure.device)
                limits.copy_(torch.tensor(numbers, dtype=figure.dtype, device="cpu"))
            self._limits = limits
        return limits

    def _replicate_for_data_parallel(self) -> Self:
        raise ReplicaError(
            f"nn.DataParallel throws its replicas away, and with them what {type(self).__name__} remembers for its "
            "merges: use DistributedDataParallel, or a single device"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        parameters = [(name, p, p.data) for name, p in self._parameters.items() if p is not None]
        buffers, batch, slots = dict(self._buffers), self.batch, self._slots
        try:
            return self._applied(fn, recurse)
        except BaseException:  # an interrupt amid the tensors would leave some of them cast and others not
            for name, parameter, data in parameters:
                parameter.data = data
                self._parameters[name] = parameter
            self._buffers.update(buffers)
            self.batch, self._slots = batch, slots
            raise

    def _applied(self, fn: Callable[[Tensor], Tensor], recurse: bool) -> Self:
        before = self.u.dtype
        probe = fn(self.u.detach().new_empty(0))
        check_cast(type(self).__name__, probe.dtype)
        wide = {name: self._buffers[name] for name in self.wide_buffers}
        self._buffers.update(dict.fromkeys(wide))  # neither .float() may round them nor mps see float64
        try:
            super()._apply(fn, recurse)
        finally:
            for name, tensor in wide.items():
                if tensor is not None:
                    meta = tensor.is_meta
                    self._buffers[name] = fn(tensor) if meta else tensor.to(probe.device, widest(probe.device))
        if self.batch is not None:
            x, g, inverted = self.batch
            self.batch = (fn(x), fn(g), inverted)
        self._fit_slots()
        if torch.finfo(self.u.dtype).eps < torch.finfo(before).eps and not self.u.is_meta:
            self.recompute()  # what was known to the digits of the narrow dtype only
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        wrong = []
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            value = state.get(prefix + name)
            if tensor is not None and torch.is_tensor(value) and value.shape != tensor.shape:
                wrong.append(f"{prefix}{name} has shape {tuple(value.shape)}, expected {tuple(tensor.shape)}")
        made = (state.get(prefix + "_extra_state") or {}).get("made")  # not in files of version 0.1
        if made is not None and not made.is_meta and tuple(made.tolist()) != tuple(map(float, self._agreed())):
            wrong.append(f"{prefix[:-1] or 'the state'} is of a layer with {made.tolist()}, expected {self._agreed()}")
        if wrong:  # all of a layer or nothing: its tensors belong together
            rest[-1].append(f"size mismatch: {'; '.join(wrong)}. Nothing of this layer was loaded.")
            return
        super()._load_from_state_dict(state, prefix, *rest)
        self._fit_slots()  # assign=True may have changed device and dtype

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return the state of the layer's generator, for a loaded layer to draw the same directions, and its counts."""
        made = torch.tensor(self._agreed(), dtype=torch.float64, device="cpu")
        return {"generator": self.generator.get_state(), "refusals": self._refusals.state(), "made": made}

    def _agreed(self) -> tuple[float, ...]:
        """Return numbers in which a layer must agree with a state that it loads, beside the shapes of tensors."""
        return self.dim_in, self.dim_out

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Set what `get_extra_state` gave."""
        self.generator.set_state(state["generator"].cpu())
        if "refusals" in state:  # not in files of version 0.1
            self._refusals.load(state["refusals"])

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
        self._min_factor, self._limits = _checked(value), None

    def thresholds(self) -> tuple[float, ...]:
        """Return the limit of the inverse of the factor."""
        return (1 / self._min_factor if self._min_factor > 0 else math.inf,)


class OfFixedSize(P4Linear):
    """Base class of those linear layers whose property does not allow their weights to be scaled."""

    def shrink(self, changes: Changes, factor: float | Tensor) -> None:
        """Refuse: see `p4lab.p4.P4Module.shrink`.

        Raises:
            OptionError: always.
        """
        raise OptionError(
            f"the weights of {type(self).__name__} cannot decay, for its property fixes their size: leave weight_decay "
            "out, or put the layers that can decay under a schedule of their own"
        )


class VolumePreserving(OfFixedSize):
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


def _recorded(y: Tensor) -> bool:
    """Return whether autograd records y, by itself and without a transform."""
    return y.requires_grad and not is_transforming()


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
