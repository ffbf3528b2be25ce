"""How a layer learns that its merges are refused again and again, without waiting for the device."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from p4lab.p4.changes import Changes
from p4lab.p4.modes import outside_inference

CHECK_EVERY = 16
"""The host looks at the count after so many merges."""
MANY = 16
"""After so many refusals in a row the layer is factorized anew."""
LARGEST_VIOLATION = 1e-2
"""A correction that leaves a larger violation has the layer factorized anew at the next look."""


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
        self._last: Tensor | None = None  # number of attempts up to the last one that was accepted
        self._posted: tuple[Tensor, torch.cuda.Event] | None = None

    def piled_up(self) -> bool:
        """Return whether there were so many refusals in a row that something has to be done, now."""
        if self._last is None or self.attempts % CHECK_EVERY or type(self._last) is not Tensor:
            return False
        if self._last.device.type == "cpu":
            return self.attempts - int(self._last) >= MANY
        if self._posted is None:
            return False
        last, arrived = self._posted
        arrived.synchronize()  # it was sent 16 merges ago
        return self.attempts - CHECK_EVERY - int(last) >= MANY

    def note(self, changes: Changes, rescued: bool) -> None:
        """Plan to count this merge."""
        accepted, attempts = changes.report.accepted, self.attempts + 1
        last = self._last_on(accepted.device, changes)
        if self.attempts % CHECK_EVERY == 0 and last.device.type == "cuda" and type(last) is Tensor:
            changes.assign(self, _posted=None if rescued else _posted(last))
        # A layer that was just factorized anew waits for as many refusals again.
        changes.write(
            last, partial(last.fill_, attempts) if rescued else partial(last.masked_fill_, accepted, attempts)
        )
        changes.assign(self, attempts=attempts, rescues=self.rescues + rescued)

    def alarm(self, changes: Changes, violation: Tensor) -> None:
        """Plan to act at the next look, without waiting for refusals, if a correction left so large a violation."""
        last = self._last_on(violation.device, changes)
        changes.write(last, partial(last.sub_, (~(violation <= LARGEST_VIOLATION)).to(last.dtype), alpha=MANY))

    def _last_on(self, device: torch.device, changes: Changes) -> Tensor:
        last = self._last
        if last is None or last.device != device:
            with outside_inference():
                last = torch.zeros((), dtype=torch.int64, device=device).add_(0 if last is None else last)
            changes.assign(self, _last=last)
        return last

    def state(self) -> Tensor:
        """Return everything as three whole numbers on the CPU."""
        last = int(self._last) if type(self._last) is Tensor and not self._last.is_meta else self.attempts
        return torch.tensor([self.attempts, self.rescues, last], device="cpu")

    def load(self, state: Tensor) -> None:
        """Set everything from `state`."""
        self.attempts, self.rescues, last = (int(n) for n in state)
        self._last, self._posted = torch.tensor(last, device="cpu"), None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_posted": None}  # events cannot be copied


def _posted(last: Tensor) -> tuple[Tensor, torch.cuda.Event]:
    number = torch.empty((), dtype=last.dtype, device="cpu", pin_memory=True)
    number.copy_(last, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return number, event
