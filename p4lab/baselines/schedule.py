"""When a dynamic trivialization takes a new base, and what an optimizer must forget then."""

from collections.abc import Iterable
from typing import Any, Protocol, cast, runtime_checkable

from torch import nn
from torch.optim import LBFGS, Optimizer

from p4lab.errors import OptionError
from p4lab.p4.schedule import optimizer_state


@runtime_checkable
class Rebasable(Protocol):
    """A layer whose parameters are coordinates around a base that can be moved.

    Attributes:
        frame_stays: whether coordinates around the new base mean, to first order, what they meant around the old one.
    """

    frame_stays: bool

    def rebase(self) -> None:
        """Take the present weights as the new base; the function of the layer stays as it is."""

    def rebased(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters that `rebase` sets back."""


class Rebase:
    """Move the base of every trivialized layer of a model each so many optimizer steps.

    The calling convention of `p4lab.p4.MergeSchedule`: one line in a training loop, after ``optimizer.step()``. Where a
    layer's frame stays, the optimizer's state is kept (coordinates before and after belong to the same Lie algebra);
    where it does not, all state of the shape of its parameters is cleared.

    Args:
        model: a module that contains layers with ``rebase``.
        optimizer: the optimizer, or optimizers, that step the model's parameters; None if there is no state.
        every: optimizer steps between new bases.

    Raises:
        OptionError: every < 1, or a model without such layers.

    Cost of a new base: O(d^3) per layer. Source: Lezcano-Casado, arXiv:1909.09501, algorithm 1.

    Example:
        >>> from p4lab.baselines import MatrixExponential
        >>> rebase = Rebase(MatrixExponential(2), every=2)
        >>> rebase.step(), rebase.step()
        (False, True)
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer | Iterable[Optimizer] | None = None, every: int = 100
    ) -> None:
        if every < 1:
            raise OptionError(f"every={every}: expected at least 1")
        self.layers = [cast(Rebasable, module) for module in model.modules() if isinstance(module, Rebasable)]
        if not self.layers:
            raise OptionError(
                f"{type(model).__name__} contains no trivialized layers: put MatrixExponential, TorchTrivialized, "
                "GeotorchOrthogonal or GeotorchGL layers into it, or leave out the schedule"
            )
        self.optimizers = (
            [] if optimizer is None else [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        )
        self.every = every
        self.steps = 0

    @property
    def due(self) -> bool:
        """Whether the next `step` will take a new base."""
        return (self.steps + 1) % self.every == 0

    def step(self) -> bool:
        """Count one optimizer step; take a new base, and return True, if that is due."""
        due = self.due
        self.steps += 1
        if due:
            self.rebase()
        return due

    def rebase(self) -> None:
        """Take a new base in every layer now."""
        for layer in self.layers:
            layer.rebase()
            for optimizer in self.optimizers:
                if isinstance(optimizer, LBFGS):
                    optimizer.state.clear()
                elif not layer.frame_stays:
                    for parameter in layer.rebased():
                        for _, tensor in optimizer_state(optimizer, parameter):
                            tensor.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return the counter and interval, so that a resumed run moves its bases at the same steps."""
        return {"every": self.every, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the counter and interval from `state_dict`."""
        self.every, self.steps = state["every"], state["steps"]
