"""How a layer learns that its merges are refused again and again, without waiting for the device."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from p4lab.p4.changes import Changes

CHECK_EVERY = 16
"""Merges between two looks at the count."""
MANY = 16
"""So many refusals in a row, and the layer is factorized anew."""
LARGEST_VIOLATION = 1e-2
"""So large a violation after a correction, or a larger one, and it is factorized anew at once."""


class Refusals:
    """Counts merges that were refused in a row, on the device; the host reads the count every 16th merge.

    On a GPU it reads what the count was 16 merges earlier, copied meanwhile, so that it does not wait for work that is
    under way. Where neither is possible (fake tensors, other devices) it never learns.

    Attributes:
        attempts: merges so far.
        rescues: how often the layer was to be factorized anew.
    """

    def __init__(self) -> None:
        self.attempts = self.rescues = 0
        self._count: Tensor | None = None
        self._posted: tuple[Tensor, torch.cuda.Event] | None = None

    def piled_up(self) -> bool:
        """Return whether there were so many refusals in a row that something has to be done, now."""
        if self._count is None or self.attempts % CHECK_EVERY or type(self._count) is not Tensor:
            return False
        if self._count.device.type == "cpu":
            return int(self._count) >= MANY
        if self._posted is None:
            return False
        number, arrived = self._posted
        arrived.synchronize()  # it was sent 16 merges ago
        return int(number) >= MANY

    def note(self, changes: Changes, rescued: bool) -> None:
        """Plan to count this merge."""
        accepted = changes.report.accepted
        count = self._count_on(accepted.device, changes)
        if self.attempts % CHECK_EVERY == 0 and count.device.type == "cuda" and type(count) is Tensor:
            changes.assign(self, "_posted", _posted(count))
        changes.write(count, partial(count.add_, 1))
        # A layer that was just factorized anew waits for as many refusals again.
        changes.write(count, count.zero_ if rescued else partial(count.masked_fill_, accepted, 0))
        changes.assign(self, "attempts", self.attempts + 1)
        changes.assign(self, "rescues", self.rescues + rescued)

    def alarm(self, changes: Changes, violation: Tensor) -> None:
        """Plan to act at the next look, without waiting for refusals, if a correction left so large a violation."""
        count = self._count_on(violation.device, changes)
        changes.write(count, partial(count.add_, (~(violation <= LARGEST_VIOLATION)).to(count.dtype), alpha=MANY))

    def _count_on(self, device: torch.device, changes: Changes) -> Tensor:
        count = self._count
        if count is None or count.device != device:
            start = 0 if count is None else count
            count = torch.zeros((), dtype=torch.int64, device=device).add_(start)
            changes.assign(self, "_count", count)
        return count

    def state(self) -> Tensor:
        """Return everything as three whole numbers on the CPU."""
        count = int(self._count) if type(self._count) is Tensor and not self._count.is_meta else 0
        return torch.tensor([self.attempts, self.rescues, count], device="cpu")

    def load(self, state: Tensor) -> None:
        """Set everything from `state`."""
        self.attempts, self.rescues, count = (int(n) for n in state)
        self._count, self._posted = torch.tensor(count, device="cpu"), None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_posted": None}  # events cannot be copied


def _posted(count: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    number = torch.empty((), dtype=count.dtype, device="cpu", pin_memory=True)
    number.copy_(count, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return number, event
