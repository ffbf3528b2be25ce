"""What layers share that follow the whole gradient of a batch: rows for its samples, and whether u is at rest."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from p4lab.errors import MergeOrderError, OptionError
from p4lab.linalg import is_transforming
from p4lab.p4.changes import Changes
from p4lab.p4.contract import Total, alone
from p4lab.p4.linear import P4Linear
from p4lab.p4.watch import check_order

EXTRA = "_extra_state"
"""torch's name for what is in a state besides tensors."""


class Following(P4Linear):
    """Base class of square layers whose backward pass gives u the natural coordinates of a whole batch's gradient.

    With ``rank < dim`` the layer has rows: room for the samples of the batches between two merges, which its backward
    pass fills (`claim`). Such a layer trains by plain descent alone, in one process. With ``rank == dim`` it
    needs none, and u is all of a (d, d) matrix. A subclass calls `follows` in its forward pass.
    """

    samples: ClassVar[str]
    """This says of what the samples of a batch become in u."""
    instead: ClassVar[str]
    """This names the layer to take where replicas are to be averaged."""
    _rows = 0
    _merged: tuple[int, int] | None = None
    """These are the identity of u and the number of its writes, as the last merge left them."""
    _claimed: int | None = None

    @property
    def dim(self) -> int:
        """Width d."""
        return self.dim_in

    @property
    def is_narrow(self) -> bool:
        """Whether u is all of a (d, d) matrix."""
        return self.rank == self.dim_in

    # --- rows --------------------------------------------------------------------------------------------------------

    def follows(self) -> bool:
        """Return whether the backward pass of a forward pass that begins now gives u a gradient."""
        return torch.is_grad_enabled() and self.u.requires_grad

    def claim(self, *batch: Tensor) -> tuple[slice, tuple[Tensor, ...]]:
        """Return the place of new rows, and what goes there of tensors of one batch, shape (B, d) each.

        A batch with more samples than there are rows is folded into all of them with random signs,
        :math:`E[sum_{ij} e_i e_j g_i^T z_j] = g^T z`. If there is no room left, those rows are taken that neither a
        gradient nor a perturbation belongs to.

        Raises:
            MergeOrderError: there are none.
        """
        samples = len(batch[0])
        if self._rows + samples > self.rank and self.u.grad is None and self._is_merged() and self._claimed != _task():
            self._rows = 0
        first, room = self._rows, self.rank - self._rows
        if samples > self.rank and not first:
            times = -(-samples // self.rank)
            signs = torch.randint(2, (samples, 1), generator=self.generator.clone_state(), device="cpu") * 2 - 1
            signs, missing = signs.to(batch[0]), (0, 0, 0, times * self.rank - samples)
            batch = tuple(F.pad(t * signs, missing).view(times, self.rank, -1).sum(0) for t in batch)
        elif samples > room:
            raise MergeOrderError(
                f"{self._itself()} has {room} rows left since its last merge, and a batch of {samples} samples came: "
                "merge after each optimizer step (MergeSchedule with every=1), clear the gradients that no step "
                "follows (optimizer.zero_grad(), which sets them to None), or take a larger rank"
            )
        self._rows, self._claimed = first + len(batch[0]), _task()
        return slice(first, self._rows), batch

    def check_backward(self) -> None:
        """Raise if a backward pass is to be differentiated itself: what it gives u is no derivative to go on from.

        Raises:
            OptionError: it is (``create_graph=True``).
        """
        if torch.is_grad_enabled():
            raise OptionError(
                f"{self._itself()} in a backward pass with create_graph=True (a gradient penalty, for example): its "
                f"gradients are coordinates, which cannot be differentiated; take {self.instead}, or torch.func"
            )

    def is_foreign(self) -> bool:
        """Return whether gradients are to be those by u itself: for transforms, and for tensors in the place of u."""
        return is_transformed() or not isinstance(self._parameters["u"], nn.Parameter)

    def followed(self, matrix: Tensor, inverted: bool = False) -> Tensor:
        """Return W, or its inverse, for losses that depend on the matrix itself (see `Matrix`)."""
        if self.is_foreign() or not self.follows():
            return matrix
        return cast(Tensor, Matrix.apply(matrix.detach(), self.u, self, inverted))

    def check_whole(self) -> None:
        """Raise if the layer has rows, and a loss depends on the matrix itself.

        Raises:
            OptionError: they do.
        """
        if not self.is_narrow:
            raise OptionError(
                f"{self._itself()}: the loss depends on the matrix W itself (or on its inverse), whose gradient has "
                "more directions than rows; take rank=dim, or detach() it"
            )

    def watched_weight(self) -> Tensor:
        """Return `weight`: see `P4Linear.watched_weight`.

        Raises:
            OptionError: the layer has rows.
        """
        self.check_whole()
        return super().watched_weight()

    # --- the P4 contract ---------------------------------------------------------------------------------------------

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse what does not move the perturbation in proportion to its gradients.

        Raises:
            OptionError: the layer has rows (``rank < dim``), and the optimizer is not torch's SGD; or it is fused.
        """
        if any(group.get("fused") for group in optimizer.param_groups):
            raise OptionError(
                f"{self._itself()} under {type(optimizer).__name__}(fused=True): its writes are not counted, so that "
                "the layer could not know whether it has merged; leave fused out"
            )
        if not self.is_narrow and not isinstance(optimizer, SGD):
            raise OptionError(
                f"{self._itself()} under {type(optimizer).__name__}: {self.samples}, so that only plain descent "
                "(torch.optim.SGD) follows the gradient; take SGD for this layer, or rank=dim"
            )

    def propose(self, total: Total = alone) -> Changes:
        """Judge the perturbation and plan the merge.

        Raises:
            OptionError: there are other replicas, and the rows of each belong to its own batch.
        """
        if total is not alone and not self.is_narrow:
            raise OptionError(
                f"{self._itself()} in several replicas: each has rows of its own batch, which cannot be averaged; take "
                f"rank=dim, or {self.instead} with reset='gradient'"
            )
        return super().propose(total)

    def carry_momentum(self, parameter: nn.Parameter, momentum: Tensor, changes: Changes) -> Tensor:
        """Return no momentum where there are rows, for they belong to a batch; all of it for ``rank == dim``."""
        return momentum if self.is_narrow else torch.zeros_like(momentum)

    def _redraw(self, changes: Changes, total: Total) -> None:
        super()._redraw(changes, total)
        if not self.is_narrow:
            generator = self.generator.clone_state()
            torch.rand((), generator=generator, device="cpu")  # the next batch is folded with other signs
            changes.assign(self, generator=generator)
        changes.also(partial(setattr, self.u, "grad", None))  # it belongs to rows that are gone
        changes.assign(self, _rows=0)
        changes.also(self._note_merged)

    # --- state -------------------------------------------------------------------------------------------------------

    def _is_merged(self) -> bool:
        """Return whether u is zero, as the last merge left it, without reading it."""
        u = self._parameters["u"]
        # An inference tensor counts no writes: its layer always counts as perturbed, which costs time only.
        return u is not None and not u.is_inference() and self._merged == (id(u), u._version)

    def _note_merged(self, merged: bool = True) -> None:
        self._merged = (id(self.u), self.u._version) if merged and not self.u.is_inference() else None

    def _applied(self, fn: Callable[[Tensor], Tensor], recurse: bool) -> Self:
        merged = self._is_merged()
        super()._applied(fn, recurse)
        self._note_merged(merged)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_merged": self._is_merged(), "_claimed": None}

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, *rest)
        if prefix + "u" in state and prefix + EXTRA not in state:
            at_rest = not self.u.is_meta and not bool(self.u.any())
            self._note_merged(at_rest)
            self._rows = 0 if at_rest else self.rank  # u is 0 along those that are not in use
        if not self.is_narrow:
            self.u.grad = None  # it belongs to rows that are gone

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._note_merged(state["_merged"])

    def get_extra_state(self) -> dict[str, Tensor]:
        """Return what `P4Linear.get_extra_state` does, and what is known of the rows."""
        numbers = torch.tensor([self._is_merged(), self._rows], device="cpu")
        return {**super().get_extra_state(), "following": numbers}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Set what `get_extra_state` gave."""
        super().set_extra_state(state)
        merged, self._rows = state["following"].tolist()
        self._note_merged(bool(merged))

    def _itself(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, rank={self.rank})"


class Matrix(torch.autograd.Function):
    """W of a layer, or its inverse, whose backward pass gives u coordinates, as that of a batch does."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, u: Tensor, layer: Following, inverted: bool) -> Tensor:
        """Return the matrix."""
        ctx.layer, ctx.inverted, ctx.redraws = layer, inverted, layer.redraws
        ctx.save_for_backward(matrix)
        return matrix.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the coordinates of ``G W^T``, which has no low rank.

        Raises:
            OptionError: the layer has rows.
        """
        (g,), layer = gradients, ctx.layer
        check_order(layer, ctx.redraws)
        layer.check_backward()
        layer.check_whole()
        (matrix,) = ctx.saved_tensors
        # E = G W^T, and of G at the inverse E = - W^-T G; u is its transpose.
        return None, -(g.t() @ matrix) if ctx.inverted else matrix @ g.t(), None, None


def _task() -> int:
    """Return the number of the backward pass that is running."""
    return torch._C._current_graph_task_id()


def is_transformed() -> bool:
    """Return whether a transform, or a tracer, is at work: these get the derivatives by the perturbation itself."""
    return is_transforming() or torch._C._get_tracing_state() is not None
