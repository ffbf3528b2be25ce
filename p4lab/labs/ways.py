"""Digits that a Glow makes: samples of a class, and ways between two digits through its latent space."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from p4lab.flows.glow import MultiScale
from p4lab.labs.lab import weights_of
from p4lab.problems.images import CLASSES, LEVELS, PIXELS, SHAPE, Images, to_levels
from p4lab.problems.trained_glow import load

TEST = 100
"""Test digits that a measurement looks at."""
EACH = "each"
"""One sample of each class."""
SAMPLES = 10
"""Digits in a picture."""


class ShownDigits(Images):
    """The digits; what is shown of a lane is made of its weights by whoever looks."""

    def pictures(self, model: MultiScale, z: Tensor) -> dict[str, Tensor]:
        """Return copies of the model's weights. ``z`` is not used."""
        return weights_of(model)


@lru_cache(maxsize=4)
def digits(device: str = "cpu", dtype: str = "float32", test: int = TEST) -> ShownDigits:
    """Return the digits; the same ones for the same arguments, for they never change."""
    return ShownDigits(torch.device(device), getattr(torch, dtype), test)


@lru_cache(maxsize=1)
def shipped() -> tuple[MultiScale, Mapping[str, Any]]:
    """Return the flow that comes with p4lab, and what its file tells of it."""
    return load()


@torch.no_grad()
def draw_samples(flow: MultiScale, digit: str, temperature: float, seed: int) -> NDArray[np.uint8]:
    """Return ten samples of a class, or one of each class, shape (10, 28, 28); of one seed the latents are the same."""
    each = digit == EACH
    context = torch.eye(CLASSES)[slice(None) if each else int(digit)].to(flow.like())
    generator = torch.Generator().manual_seed(seed)
    images = flow.sample(1 if each else SAMPLES, context, generator, temperature).float().cpu()
    return to_levels(digits().to_data(images.view(-1, *SHAPE))).numpy()


@dataclass(frozen=True, eq=False)
class Way:
    """A way between two test digits, through the latent space of a flow.

    Attributes:
        flow: the flow.
        ends: latent vectors of the two, shape (2, 784).
        classes: one-hot, shape (2, 10).
    """

    flow: MultiScale
    ends: Tensor
    classes: Tensor

    @classmethod
    @torch.no_grad()
    def between(cls, flow: MultiScale, first: int, second: int) -> "Way":
        """Return the way from a test digit of one class to one of another."""
        like, known = flow.like(), digits()
        rows = [first, second if second != first else second + CLASSES]
        x, context = (part[rows] for part in known.dequantized)
        classes = context.to(like)
        return cls(flow, flow(known.to_model(x)[0].to(like), classes)[0], classes)

    @torch.no_grad()
    def at(self, places: NDArray[np.float64]) -> tuple[Tensor, NDArray[np.float64]]:
        r"""Return the images at some places t, shape (n, 1, 28, 28), and their bits per pixel, shape (n,).

        .. math:: z(t) = \cos(\pi t / 2)\, z_0 + \sin(\pi t / 2)\, z_1

        Latent vectors are nearly orthogonal and of nearly one length: so they keep that length. Of the classes the
        flow is told a mixture.
        """
        t = torch.as_tensor(places).to(self.ends)[:, None]
        z = torch.cos(math.pi / 2 * t) * self.ends[0] + torch.sin(math.pi / 2 * t) * self.ends[1]
        context = (1 - t) * self.classes[0] + t * self.classes[1]
        y, logabsdet = self.flow.inverse_with_logabsdet(z, context)
        log_prob = self.flow.log_prior(z) - logabsdet
        x = digits().to_data(y.float().cpu())
        slope = digits().to_model(x.clamp(0, LEVELS))[1]
        per_pixel = -(log_prob.double().cpu() + slope.double()) / PIXELS
        return x, per_pixel.numpy() / math.log(2)
