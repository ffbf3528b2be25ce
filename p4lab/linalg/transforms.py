"""Whether somebody differentiates in another way than by a backward pass, lowers products by autocast, or exports."""

import torch
from torch.autograd import forward_ad


def is_transforming() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_exporting() -> bool:
    """Return whether `torch.export` is at work: a choice by the size of a batch would be a condition on all batches."""
    compiler = torch.compiler
    return compiler.is_compiling() and hasattr(compiler, "is_exporting") and compiler.is_exporting()  # torch 2.7


def autocasts(device: str) -> bool:
    """Return whether autocast is on for a type of device: then tensors of several dtypes meet."""
    # The first question, which only some devices need, breaks the graphs of torch 2.6.
    known = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device)
    return known and torch.is_autocast_enabled(device)
