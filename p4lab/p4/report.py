"""What became of a merge, judged on the device and read by whoever asks."""

from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor


class MergeStatus(IntEnum):
    """What became of one attempt to merge."""

    MERGED = 0
    SKIPPED_SINGULAR = 1
    SKIPPED_INACCURATE = 2
    DISCARDED_NOT_FINITE = 3
    DISCARDED_SINGULAR = 4


@dataclass(frozen=True)
class Check:
    """One figure that a merge is judged by: it must not exceed its limit (NaN does).

    Attributes:
        status: what becomes of the merge otherwise.
        text: what the figure is and what to do, for the report.
    """

    status: MergeStatus
    text: str


class MergeReport:
    """Judgement of one merge attempt, kept on the device until somebody asks.

    Reading a property, ``bool(report)`` or ``repr`` waits for the device; making and keeping a report does not.

    Args:
        checks: what is judged. The first one is for values that are not finite. It discards, and so do those that
            follow it with a status of that name; later ones skip.
        figures: the measured values, shape (len(checks),).
        limits: their limits, same shape.

    Attributes:
        accepted: scalar bool tensor, the perturbation becomes part of the frozen tensor.
        discarded: scalar bool tensor, the perturbation is dropped because it is not finite, or too long a step.
        is_final: whether the perturbation is gone in any case, for no check lets it train on.
    """

    def __init__(self, checks: tuple[Check, ...], figures: Tensor, limits: Tensor) -> None:
        within = figures <= limits
        self.checks, self.figures, self.limits = checks, figures, limits
        self.accepted = within.all()
        discarding = sum(check.status >= MergeStatus.DISCARDED_NOT_FINITE for check in checks)
        self.is_final = discarding == len(checks)
        kept = self.accepted if self.is_final else within[0] if discarding == 1 else within[:discarding].all()
        self.discarded = kept.logical_not()

    @property
    def merged(self) -> bool:
        """Whether the perturbation is now part of the frozen tensor."""
        return self.status is MergeStatus.MERGED

    @property
    def status(self) -> MergeStatus:
        """What became of the attempt: the status of the first figure above its limit, else MERGED."""
        first = self._first_failure()
        return MergeStatus.MERGED if first is None else self.checks[first].status

    @property
    def reason(self) -> str:
        """One sentence on why it merged or not, with the figure that decided."""
        first = self._first_failure()
        if first is None:
            return "merged"
        verdict = self.checks[first].status.name.lower().replace("_", " ")
        figure, limit = float(self.figures[first]), float(self.limits[first])
        return f"{verdict}: {self.checks[first].text} ({figure:.3g}, limit {limit:.3g})"

    def _first_failure(self) -> int | None:
        failures = (~(self.figures <= self.limits)).tolist()
        return failures.index(True) if any(failures) else None

    def __bool__(self) -> bool:
        return self.merged

    def __repr__(self) -> str:
        return f"MergeReport({self.reason})"
