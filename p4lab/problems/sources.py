"""What is unmixed, and modelled: white patches of photos and digits, and sources of a known density."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from p4lab.errors import OptionError
from p4lab.packages import require

SIDES = (8, 16, 24, 32)
"""Sides of photo patches in pixels: the smallest that has as many components as are asked for."""
WIDEST_PHOTOS = SIDES[-1] ** 2 - 1
"""The most components that photo patches have: all but their mean."""
WIDEST_DIGITS = 60
"""The most components that vary in the handwritten digits."""
MORE_PHOTOS = ("astronaut", "brick", "camera", "cat", "coffee", "grass", "gravel", "rocket")
"""Pictures of scikit-image's ``skimage.data`` that come with the package itself: nothing is downloaded."""
COUNT = 20_000
"""Number of patches, or draws of sources."""
PER_PIXEL = 40
"""Patches of many pixels are at least this many times as many as their pixels."""
Sources = tuple[Tensor, Tensor]
"""White data (n, d) whose independent components are looked for, and the (d, pixels) matrix that draws components."""


def patch_side(dim: int) -> int:
    """Return the side of patches that have d components besides their mean: 8 up to 63, 16 to 255, 24 to 575, else 32.

    Raises:
        OptionError: d > 1023.
    """
    _check(dim, WIDEST_PHOTOS)
    return next(side for side in SIDES if side**2 > dim)


@lru_cache(maxsize=1)  # the lanes of a race ask one after the other
def photo_patches(dim: int, seed: int = 0) -> Sources:
    """Return white patches (n, d) of photos, and the (d, pixels) matrix that draws components.

    Patches of 8 x 8 pixels are those of scikit-learn's two photos, larger ones of scikit-image's, too. The mean of each
    patch is taken away; the d leading principal components are scaled to variance 1. Those of 8 x 8 pixels are in
    float64, larger ones in float32. Cost O(n pixels^2).

    Raises:
        OptionError: d > 1023.
        MissingPackageError: d > 63, and scikit-image is not installed.
    """
    side = patch_side(dim)
    photos = _photos(side)
    generator = torch.Generator().manual_seed(seed)
    patches = []
    for photo in photos:
        n = max(COUNT, PER_PIXEL * side**2) // len(photos)
        rows = torch.randint(photo.shape[0] - side, (n,), generator=generator, device="cpu")
        columns = torch.randint(photo.shape[1] - side, (n,), generator=generator, device="cpu")
        windows = photo.unfold(0, side, 1).unfold(1, side, 1)
        patches.append(windows[rows, columns].reshape(n, -1))
    x = torch.cat(patches)
    x = x[torch.randperm(len(x), generator=generator, device="cpu")]
    # Products in float32 take half the time, and half the memory.
    return _white(x - x.mean(1, keepdim=True), dim, torch.float64 if side == SIDES[0] else torch.float32)


def _photos(side: int) -> list[Tensor]:
    samples = require("sklearn.datasets", "lab").load_sample_images()
    images = [torch.tensor(image, dtype=torch.float64, device="cpu") for image in samples.images]
    if side > SIDES[0]:
        data = require("skimage.data", "lab")
        images += [torch.tensor(getattr(data, name)(), dtype=torch.float64, device="cpu") for name in MORE_PHOTOS]
    return [image.mean(-1) if image.ndim == 3 else image for image in images]


def digit_patches(dim: int) -> Sources:
    """Return white components (1797, d) of the handwritten digits, and the (d, 64) matrix that draws components.

    Raises:
        OptionError: d > 60.
    """
    _check(dim, WIDEST_DIGITS)
    x = torch.as_tensor(require("sklearn.datasets", "lab").load_digits().data, device="cpu").double()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")]
    return _white(x, dim, torch.float64)


def _check(dim: int, most: int) -> None:
    if dim > most:
        raise OptionError(f"dim={dim}: these images have at most {most} components that vary")


def _white(x: Tensor, dim: int, dtype: torch.dtype) -> Sources:
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.t() @ x / len(x))
    scale = variance[-dim:].clamp_min(1e-12).sqrt().to(dtype)
    axes = axes[:, -dim:].to(dtype)
    return x.to(dtype) @ axes / scale, (axes * scale).t()


PATCHES: dict[str, Callable[[int], Sources]] = {"ica_photos": photo_patches, "ica_digits": digit_patches}
"""Images to unmix, by task."""


def sech_sources(dim: int) -> Sources:
    """Return independent sources (20,000, d) of the density of `sech_noise`, and a (d, pixels) matrix to draw them.

    It draws each of them as one pixel of a square.
    """
    pixels = math.ceil(math.sqrt(dim)) ** 2
    x = sech_noise(COUNT, dim, torch.Generator().manual_seed(0))
    return x, torch.eye(dim, pixels, dtype=torch.float64, device="cpu")


SECH_ENTROPY = math.log(2 * math.pi)
"""Entropy of the density of `sech_noise` in nats."""


def sech_noise(count: int, dim: int, generator: torch.Generator) -> Tensor:
    r"""Draw numbers of the density p, shape (count, d), float64, by the inverse of their distribution function F.

    .. math:: p(s) = \frac{1}{\pi \cosh s}, \qquad F(s) = \frac12 + \frac{1}{\pi} \arctan \sinh s
    """
    uniform = torch.rand(count, dim, generator=generator, dtype=torch.float64, device="cpu")
    return torch.asinh(torch.tan(math.pi * (uniform - 0.5)))


def log_cosh(x: Tensor) -> Tensor:
    """Return log cosh x, which does not overflow: -log p of `sech_noise` but for log pi."""
    return x.abs() + torch.nn.functional.softplus(-2 * x.abs()) - math.log(2)
