"""Averages of effective weights over training (EMA, SWA), with their property."""

import copy
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from p4lab.errors import OptionError, TrainingError
from p4lab.p4.contract import P4Module, p4_modules

N = TypeVar("N", bound=nn.Module)


class AveragedWeights(Generic[N]):
    r"""Average of a model's weights over training: exponential (EMA), or of equal parts (SWA).

    .. math:: \bar W \leftarrow \beta \bar W + (1 - \beta) W, \qquad \beta = \text{decay, or } 1 - 1/n
        \text{ for the n-th update}

    Of P4 modules the effective weights are averaged, which no merge changes, and not the parameters, which mean
    something else after each merge: for these, `torch.optim.swa_utils.AveragedModel` gives no average of anything. All
    other floating-point parameters are averaged as they are; buffers are those of the last update.

    Its state is apart from that of the model. Replicas that end their updates at different steps, as under torch's
    ``Join``, have different averages.

    Args:
        model: any module; it is not changed.
        decay: beta, 0 <= beta < 1, or None for equal parts. Until it makes a difference, equal parts are taken, so that
            the start is soon forgotten.

    Raises:
        OptionError: decay out of range, or a P4 module without ``weight`` or ``start_at``.

    Cost of an update: O(d^2 k) per P4 layer, one float64 copy of the weights in memory. Source: Polyak and Juditsky
    (1992); Izmailov et al., arXiv:1803.05407; the mean of rotations is the chordal one, Moakher (2002).

    Example:
        >>> from p4lab.p4 import P4Inv
        >>> layer = P4Inv(2, init=torch.diag(torch.tensor([1.0, 3.0])), seed=0)
        >>> average = AveragedWeights(layer, decay=None)
        >>> average.update()
        >>> layer.start_at(torch.eye(2))
        >>> average.update()
        >>> average.model().weight.diagonal().detach()
        tensor([1., 2.])
    """

    def __init__(self, model: N, decay: float | None = 0.999) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise OptionError(f"decay={decay!r}: expected 0 <= decay < 1, or None for equal parts")
        for layer in p4_modules(model):
            if type(layer).start_at is P4Module.start_at or not hasattr(type(layer), "weight"):
                raise OptionError(
                    f"weights of {type(layer).__name__} cannot be averaged: it needs a property weight and a method "
                    "start_at(weight)"
                )
        self._model, self.decay, self.updates = model, decay, 0
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take the present weights into the average: after a step, or after an epoch, merged or not."""
        beta = 1 - 1 / (self.updates + 1)
        beta = beta if self.decay is None else min(beta, self.decay)
        means = {}
        for name, value in _weights(self._model).items():
            wide = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
            mean = self._means.get(name)
            means[name] = wide.clone() if mean is None else torch.lerp(wide, mean.to(wide.device), beta)
        self._means, self.updates = means, self.updates + 1

    @torch.no_grad()
    def model(self) -> N:
        """Return a copy of the model with the averaged weights; it can be trained on, merged and folded.

        Raises:
            TrainingError: there was no update.
            SingularMatrixError: the average of invertible matrices, or of rotations, is singular.
            OptionError: the average is too far from the property.

        Cost O(d^3) per P4 layer.
        """
        if not self.updates:
            raise TrainingError("there is no average yet: call update() after a step or an epoch")
        twin = copy.deepcopy(self._model)
        for name, parameter in twin.named_parameters():
            if name in self._means:
                parameter.copy_(self._means[name])
        for prefix, module in twin.named_modules():
            if isinstance(module, P4Module):
                module.start_at(module.nearest(self._means[f"{prefix}.weight".lstrip(".")]))
        return twin

    def __repr__(self) -> str:
        name = type(self._model).__name__
        return f"AveragedWeights({name}, decay={self.decay}; {self.updates} updates)"

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of updates."""
        return {"updates": self.updates, "means": dict(self._means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set what `state_dict` gave.

        Raises:
            OptionError: it is no state of an average, or belongs to another model.
        """
        if missing := {"updates", "means"} - state.keys():
            raise OptionError(f"this is no state of an average: {', '.join(sorted(missing))} is missing")
        names, others = set(_weights(self._model)), set(state["means"])
        if state["updates"] and names != others:
            raise OptionError(f"this average is of another model: {sorted(names ^ others)[:5]} are on one side only")
        self.updates, self._means = state["updates"], dict(state["means"])


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return by name what is averaged: effective weights of P4 modules, and parameters that no merge resets."""
    weights: dict[str, Tensor] = {}
    reset = {id(p) for layer in p4_modules(model) for p in layer.perturbation()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in reset and parameter.is_floating_point():
            weights[name] = parameter
    for prefix, module in model.named_modules():
        if isinstance(module, P4Module):
            weights[f"{prefix}.weight".lstrip(".")] = cast(Tensor, module.weight)
    return weights
