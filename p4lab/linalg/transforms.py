"""Whether somebody differentiates in another way than by a backward pass, or lowers products by autocast."""

import torch
from torch.autograd import forward_ad


def is_transforming() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def autocasts(device: str) -> bool:
    """Return whether autocast is on for a type of device: then tensors of several dtypes meet."""
    # The first question, which only some devices need, breaks the graphs of torch 2.6.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)
