"""Whether somebody differentiates in another way than by a backward pass."""

import torch
from torch.autograd import forward_ad


def is_transforming() -> bool:
    """Return whether a transform of `torch.func` or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
