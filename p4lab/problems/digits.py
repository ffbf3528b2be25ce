"""Handwritten digits (scikit-learn's, 8 x 8 pixels of 17 grey levels) as a density problem."""

import math

import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.flows import Flow
from p4lab.packages import require

SIDE = 8
"""Pixels along a side of a digit."""
DIM = SIDE * SIDE
"""Pixels of a digit."""
LEVELS = 17
"""Grey levels of a pixel."""
MARGIN = 1 / 256
"""How far pixels are kept from 0 and 1, where logits are infinite."""
TEST_FRACTION = 0.2
"""Share of the digits that are kept for testing."""


class Digits:
    r"""Maximum likelihood on dequantized digits.

    A pixel k in 0..16 becomes ``k + u`` with u uniform in [0, 1), drawn anew for every batch. It is then squeezed into
    (0, 1), spread over the real line by the logit, and standardized:

    .. math:: x = k + u \in [0, 17)^{64}, \qquad p = a + (1 - 2a) \frac{x}{17}, \qquad
              y_i = \frac{\operatorname{logit} p_i - \mu_i}{\sigma_i}

    .. math:: \log p(x) = \log p_\mathrm{model}(y) + \sum_i \log \frac{1 - 2 a}{17\, p_i (1 - p_i)\, \sigma_i}

    with a = 1/256 and the mean and standard deviation of the training pixels' logits. Decoding goes through a sigmoid,
    which gives the pure black and white that pen strokes have. The density that is reported is that of x, whose unit of
    length is one grey level; so the loss in nats per pixel, divided by ln 2, is an upper bound on the bits per pixel
    that the model needs for the integers k (Theis et al., arXiv:1511.01844, section 3.1). A uniform density has
    log2(17) = 4.09.

    Args:
        seed: seed of the split, of the dequantization of the test set, and of the latent variables in the pictures.
        device: where the tensors live.
        dtype: their dtype.

    Attributes:
        train: training integers as floats, shape (1438, 64).
        test: test integers, shape (359, 64).
        dequantized: the same under one fixed dequantization: the test loss then moves with the model only.
        dim: 64.
    """

    name = "digits"
    dim = DIM

    def __init__(self, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        pixels = torch.as_tensor(require("sklearn.datasets", "lab").load_digits().data, device="cpu").to(torch.float64)
        generator = torch.Generator().manual_seed(seed)
        pixels = pixels[torch.randperm(len(pixels), generator=generator, device="cpu")]
        n_test = round(TEST_FRACTION * len(pixels))
        train, test = pixels[n_test:], pixels[:n_test]
        self.train = train.to(device, dtype)
        self.test = test.to(device, dtype)
        logits, _ = _logit(train + torch.rand(train.shape, generator=generator, dtype=torch.float64, device="cpu"))
        self.mean = logits.mean(0).to(device, dtype)
        self.std = logits.std(0).to(device, dtype)
        noise = torch.rand(self.test.shape, generator=generator, dtype=torch.float64, device="cpu")
        self.dequantized = self.test + noise.to(device, dtype)

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw dequantized training digits x, shape (size, 64), with replacement.

        Args:
            size: number of digits.
            generator: CPU generator; every device then draws the same.
        """
        rows = torch.randint(len(self.train), (size,), generator=generator, device="cpu")
        noise = torch.rand(size, DIM, generator=generator, dtype=torch.float64, device="cpu")
        # In float32, k + u may round up to k + 1: a shift of no consequence, as the density is continuous.
        return self.train[rows.to(self.train.device)] + noise.to(self.train.device, self.train.dtype)

    def to_model(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``(y, log|det dy/dx|)`` of shapes (..., 64) and (...) for x in [0, 17].

        Raises:
            ShapeError: x has another last dimension.
        """
        if x.shape[-1:] != (DIM,):
            raise ShapeError(f"digits of shape {tuple(x.shape)}: expected (..., {DIM})")
        logits, log_slope = _logit(x)
        return (logits - self.mean) / self.std, (log_slope - self.std.log()).sum(-1)

    def to_data(self, y: Tensor) -> Tensor:
        """Undo `to_model`: return x of shape (..., 64); far-off y end a little (0.07) outside of [0, 17]."""
        p = torch.sigmoid(y * self.std + self.mean)
        return (p - MARGIN) * (LEVELS / (1 - 2 * MARGIN))

    def loss(self, model: Flow, x: Tensor) -> Tensor:
        """Return the mean negative log-likelihood of x in nats per pixel, a differentiable scalar."""
        y, logabsdet = self.to_model(x)
        return -(model.log_prob(y) + logabsdet).mean() / DIM

    @torch.no_grad()
    def test_loss(self, model: Flow) -> Tensor:
        """Return the loss on the test set under one fixed dequantization."""
        return self.loss(model, self.dequantized)

    @torch.no_grad()
    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return what the model makes of latent variables ("samples"), and as many test digits ("real").

        Args:
            model: the flow.
            z: shape (n, 64); keep it fixed to watch one set of samples change.

        Returns:
            Integers 0..16 of shape (n, 8, 8) and dtype uint8, on the CPU.
        """
        return {"samples": to_levels(self.to_data(model.inverse(z))), "real": self.real(len(z))}

    def real(self, n: int) -> Tensor:
        """Return the first ``n`` test digits as integers of shape (n, 8, 8) and dtype uint8.

        Raises:
            OptionError: there are not that many.
        """
        if not 0 <= n <= len(self.test):
            raise OptionError(f"n={n}: there are {len(self.test)} test digits")
        return self.test[:n].to("cpu", torch.uint8).view(n, SIDE, SIDE)


def _logit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of x in [0, 17] and the logarithm of the slope, both of the shape of x."""
    p = MARGIN + (1 - 2 * MARGIN) * x / LEVELS
    log_p, log_rest = p.log(), torch.log1p(-p)
    return log_p - log_rest, math.log((1 - 2 * MARGIN) / LEVELS) - log_p - log_rest


def to_levels(x: Tensor) -> Tensor:
    """Quantize pixels (n, 64) to integers 0..16 of shape (n, 8, 8), dtype uint8, on the CPU; NaN becomes 0."""
    levels = torch.nan_to_num(x.detach()).floor().clamp(0, LEVELS - 1)
    return levels.to("cpu", torch.uint8).view(-1, SIDE, SIDE)


def bits(nats: float) -> float:
    """Convert nats to bits.

    Example:
        >>> bits(math.log(2))
        1.0
    """
    return nats / math.log(2)
