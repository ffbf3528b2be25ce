"""What a merge writes: planned first, without writing anything, then done in one go that nothing can stop halfway.

An exception can strike between any two lines of Python: Ctrl-C in a notebook does. So the lines only plan, and the
writing is a list of torch's own functions that one loop inside of the interpreter calls, without a line in between.
Should one of them fail all the same, the rest is finished before the exception goes on its way: torch counts the
writes to each tensor, so that none is repeated.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any, cast

import torch
from torch import Tensor

from p4lab.p4.modes import without_gradients
from p4lab.p4.report import MergeReport

ATTEMPTS = 3
"""`Changes.commit` tries a write that failed so many times."""


class Changes:
    """The writes of one merge, of one reset, or of one correction.

    Planning reads tensors and computes new values; `commit` writes them. Values are computed when they are planned, so
    that a later line of the plan still reads what stood before.

    Args:
        report: judgement of the merge, which masks what is written (None: everything is written).

    Attributes:
        report: the judgement (None if there is none).

    Example:
        >>> a, changes = torch.eye(2), Changes()
        >>> changes.put(a, 2 * a)
        >>> a[0].tolist(), changes.commit(), a[0].tolist()
        ([1.0, 0.0], None, [2.0, 0.0])
    """

    def __init__(self, report: MergeReport | None = None) -> None:
        self.report = cast(MergeReport, report)
        self._accepted = None if report is None else report.accepted
        self._discarded = None if report is None else report.discarded
        self._renewed = None if report is None or report.is_final else report.accepted | report.discarded
        self._writes: list[Callable[[], Any]] = []
        self._targets: dict[int, Tensor] = {}  # by the place of their write
        self._new: dict[int, Tensor] = {}
        self._products: dict[int, list[tuple[Tensor, Tensor, float]]] = {}

    # --- planning ----------------------------------------------------------------------------------------------------

    def absorb(self, target: Tensor, value: Tensor) -> None:
        """Plan ``target <- value`` where the merge is accepted: for the frozen tensors."""
        self._choose(self._accepted, target, value)

    def absorb_product(self, target: Tensor, left: Tensor, right: Tensor, alpha: float = 1.0) -> None:
        """Plan ``target <- target + alpha left @ right``, in place and without a temporary of the target's size.

        The caller has masked the factors: one of them is zero where the merge is not accepted.
        """
        self._products.setdefault(id(target), []).append((left, right, alpha))
        self.write(target, partial(_inside(target).addmm_, left, right, alpha=alpha))

    def renew(self, target: Tensor, value: Tensor) -> None:
        """Plan ``target <- value`` where the merge is accepted or discarded: for B and its directions."""
        self._choose(self._renewed, target, value)

    def clear(self, target: Tensor) -> None:
        """Plan ``target <- 0`` where the merge is accepted or discarded: for the parameters of the perturbation."""
        inside = _inside(target)
        self.write(target, inside.zero_ if self._renewed is None else partial(inside.masked_fill_, self._renewed, 0.0))

    def undo(self, target: Tensor, value: Tensor) -> None:
        """Plan ``target <- value`` where the perturbation is discarded: for what trains beside it."""
        if self._discarded is not None:
            self._choose(self._discarded, target, value)

    def mend(self, target: Tensor) -> None:
        """Plan 0 in the place of what is not finite, where the perturbation is discarded."""
        if self._discarded is not None:
            broken = torch.isfinite(target).logical_not_().logical_and_(self._discarded)
            self.write(target, partial(_inside(target).masked_fill_, broken, 0.0))

    def put(self, target: Tensor, value: Tensor) -> None:
        """Plan ``target <- value``, whatever becomes of the merge."""
        self._choose(None, target, value)

    def follow(self, target: Tensor, rows: Tensor, matrix: Tensor) -> None:
        """Plan ``target <- rows @ matrix`` as `renew` does, with the matrix as it is after what is planned so far."""
        product = torch.empty_like(target)
        self.also(partial(torch.mm, rows, matrix, out=product))
        self.renew(target, product)

    def assign(self, owner: object, **values: object) -> None:
        """Plan ``owner.name <- value`` for plain attributes."""
        self.also(partial(owner.__dict__.update, values))

    def write(self, target: Tensor, function: Callable[[], Any]) -> None:
        """Plan a write by a function of one's own, which must write to ``target`` exactly once."""
        if not target.is_inference():  # these are not counted
            self._targets[len(self._writes)] = target
        self._writes.append(function)

    def scale(self, target: Tensor, factor: float | Tensor) -> None:
        """Plan ``target <- factor target``, in place."""
        self.write(target, partial(_inside(target).mul_, factor))

    def also(self, function: Callable[[], Any]) -> None:
        """Plan what may be done twice without harm, and is no write to a tensor that anybody else sees."""
        self._writes.append(function)

    def join(self, other: "Changes") -> None:
        """Plan the writes of others after these: a commit then does all of them or none."""
        before = len(self._writes)
        self._targets |= {before + place: target for place, target in other._targets.items()}
        self._writes += other._writes

    # --- what a later line of the plan may ask -----------------------------------------------------------------------

    def new(self, target: Tensor) -> Tensor:
        """Return the value that is planned for a tensor, before it is masked."""
        return self._new[id(target)]

    def product(self, rows: Tensor, target: Tensor) -> Tensor:
        """Return ``rows @ target`` with the target as it will be: cost O(d^2 k), no temporary of the target's size."""
        total = rows @ target
        for left, right, alpha in self._products.get(id(target), ()):
            total = torch.addmm(total, rows @ left, right, alpha=alpha)
        return total

    # --- doing -------------------------------------------------------------------------------------------------------

    @without_gradients
    def commit(self) -> None:
        """Write everything that was planned; what is raised meanwhile finds all of it done, or nothing.

        Raises:
            Exception: whatever a write raises, after it was tried again and all others were done.
        """
        counts = [target._version for target in self._targets.values()]
        try:
            deque(map(call, self._writes), maxlen=0)
        except BaseException:
            self._finish(counts)
            raise

    def _finish(self, counts: list[int]) -> None:
        """Do what is not done yet; what fails again and again is left out, and the rest is done without it."""
        targets = self._targets.values()
        done = {id(t): t._version - count for t, count in zip(targets, counts, strict=True)}
        for place, write in enumerate(self._writes):
            target = self._targets.get(place)
            if target is not None and done[id(target)] > 0:
                done[id(target)] -= 1
                continue
            for _ in range(ATTEMPTS):
                try:
                    write()
                except BaseException:  # the first of them is on its way already
                    continue
                break

    def _choose(self, where: Tensor | None, target: Tensor, value: Tensor) -> None:
        self._new[id(target)] = value
        inside = _inside(target)
        self.write(
            target,
            partial(inside.copy_, value) if where is None else partial(torch.where, where, value, inside, out=inside),
        )


def _inside(target: Tensor) -> Tensor:
    """Return a tensor that may be an out argument: parameters may not."""
    return target.detach() if target.requires_grad else target
