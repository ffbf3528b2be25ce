"""Data to unmix or to model by maximum likelihood, with any kind of layer; and what else samples are good for."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from p4lab.baselines import Method, penalty
from p4lab.errors import OptionError
from p4lab.flows import Flow, bent_stack
from p4lab.problems.digits import Digits
from p4lab.problems.map_tasks import Task, drawn
from p4lab.problems.sources import SECH_ENTROPY, log_cosh, sech_noise

FILTERS = 64
"""Number of filters that are drawn."""
MOST_TESTED = 4000
"""Number of rows that a likelihood is tested on, at most; a fifth of the data, if that is less."""
REVERSE = 0.5
"""Weight of the reverse divergence beside the likelihood: with equal weights log|det W| would cancel."""


class LikelihoodTask(Task, ABC):
    """Maximum likelihood of rows of data, nats per dimension; trained both ways, on the model's own samples as well.

    A subclass supplies `nll` and, for training both ways, `latent`. Batches are x of shape (size, d), or pairs (x, z)
    with latent variables z of the same shape.

    Args:
        data: shape (n, d); the first fifth of the rows, but no more than 4000, are for testing.
        dtype: dtype of the data.
        device: where the data live.
        both: whether samples are trained, too.
    """

    def __init__(
        self,
        data: Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        both: bool = False,
    ) -> None:
        self.dim, self.both = data.shape[1], both
        data = data.to(device, dtype)
        count = min(len(data) // 5, MOST_TESTED)
        self.test, self.train = data[:count], data[count:]
        self._z = self._latent(count, torch.Generator().manual_seed(1)) if both else None

    @abstractmethod
    def nll(self, model: Any, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of rows x, nats per dimension, a differentiable scalar."""

    @abstractmethod
    def latent(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw latent variables, shape (size, d), on the CPU."""

    def of_samples(self, model: Any, z: Tensor, x: Tensor) -> Tensor:
        """Return the loss of samples ``W^-1 z`` beside data x, a differentiable scalar: their `energy_score`."""
        return energy_score(model.inverse(z), x)

    def batch(self, size: int, generator: torch.Generator) -> Any:
        """Draw rows with replacement, shape (size, d), and latent variables if they are asked for."""
        x = drawn(self.train, size, generator)
        return (x, self._latent(size, generator)) if self.both else x

    def loss(self, model: Any, batch: Any) -> Tensor:
        """Return the loss of a batch, plus a penalized method's penalty."""
        return (self._score(model, *batch) if self.both else self._score(model, batch)) + penalty(model)

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return the loss on rows that are not trained on, and on fixed latent variables."""
        return self._score(model, self.test, self._z)

    def _latent(self, size: int, generator: torch.Generator) -> Tensor:
        return self.latent(size, generator).to(self.train)

    def _score(self, model: Any, x: Tensor, z: Tensor | None = None) -> Tensor:
        nll = self.nll(model, x)
        return nll if z is None else nll + self.of_samples(model, z, x)


def energy_score(samples: Tensor, x: Tensor) -> Tensor:
    r"""Return how far samples are from data, without bias: a proper score, the least for the distribution of the data.

    .. math:: \frac{1}{\sqrt{d}} \left(\mathbb{E} |s - x| - \tfrac{1}{2}\, \mathbb{E} |s - s'|\right)

    with independent samples s and s'. Each sample meets one row of data and one other sample.

    Args:
        samples: shape (n, d), n > 1.
        x: data, shape (n, d).

    Returns:
        A differentiable scalar. Cost O(n d).

    Source: Gneiting and Raftery, J. Am. Stat. Assoc. 102 (2007), section 4.3.
    """
    to_data = (samples - x).norm(dim=-1).mean()
    among = (samples - samples.roll(1, 0)).norm(dim=-1).mean()
    return (to_data - 0.5 * among) / math.sqrt(x.shape[-1])


class ICATask(LikelihoodTask):
    r"""Independent component analysis by maximum likelihood: unmix ``x = M s`` whose sources s nobody knows.

    .. math:: \frac{1}{d}\left(-\mathbb{E} \sum_i \log p\big((W x)_i\big) - \log|\det W|\right), \qquad
              p(s) = \frac{1}{\pi \cosh s}

    Trained both ways, samples ``x = W^{-1} z`` with z ~ p are judged, too: by their `energy_score`, or, where the
    density of the data is known because the sources have the density p, by half of the reverse divergence

    .. math:: \frac{1}{d}\, \mathbb{E}\left[\log|\det W| + \sum_i \log p(z_i)
              + \log|\det M| - \sum_i \log p\big((M^{-1} W^{-1} z)_i\big)\right]

    which is 0 where W M is a permutation with signs; there the likelihood has its optimum, too.

    Args:
        sources: shape (n, d), white data where an orthogonal W is to be near the solution: what is independent in
            them is to be found.
        mixing: M, shape (d, d).
        basis: shape (d, pixels), from components to the pixels of a square, for the pictures of the filters.
        dtype: dtype of the data.
        device: where the data live.
        both: whether samples are trained, too.
        known: whether the sources are known to have the density p.

    Source: Cardoso and Laheld 1996; the density is that of Bell and Sejnowski's infomax.
    """

    def __init__(
        self,
        sources: Tensor,
        mixing: Tensor,
        basis: Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        both: bool = False,
        known: bool = False,
    ) -> None:
        super().__init__(sources @ mixing.t(), dtype, device, both)
        # A row of W M tells which combination of white components a unit looks for; the basis draws it.
        self._draw = (mixing @ basis).to(device, dtype)
        self._unmixing = torch.linalg.inv(mixing).to(device, dtype) if known else None
        self._logabsdet = float(torch.linalg.slogdet(mixing).logabsdet)

    def nll(self, model: Any, x: Tensor) -> Tensor:
        """Return the negative log-likelihood above."""
        y = model(x)
        return (log_cosh(y).sum(-1).mean() - model.logabsdet().to(y.dtype)) / self.dim + math.log(math.pi)

    def latent(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw z of the density p."""
        return sech_noise(size, self.dim, generator)

    def of_samples(self, model: Any, z: Tensor, x: Tensor) -> Tensor:
        """Return half of the reverse divergence where the density of the data is known, else the energy score."""
        if self._unmixing is None:
            return super().of_samples(model, z, x)
        sources = model.inverse(z) @ self._unmixing.t()
        volume = (model.logabsdet().to(z.dtype) + self._logabsdet) / self.dim
        return REVERSE * (volume - SECH_ENTROPY + log_cosh(sources).mean() + math.log(math.pi))

    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return the first 64 filters as "images", shape (n, h, w), uint8; 128 is zero."""
        return {"images": _images(model.weight.detach()[:FILTERS] @ self._draw)}


class StackTask(Task):
    """What tasks for a flow of linear layers and Bent identities share.

    Attributes:
        blocks: number of nonlinearities.
    """

    blocks: ClassVar[int] = 4

    def model(self, method: Method, seed: int, **options: Any) -> Flow:
        """Return a flow whose linear layers are the method's, started at the identity.

        Raises:
            OptionError: the method's layers are not linear.
        """
        if not method.linear:
            raise OptionError(f"method {method.name!r} is no linear layer: this flow stacks linear layers")
        generator = torch.Generator().manual_seed(seed)
        return bent_stack(self.blocks, lambda: method.build(self.dim, seed=generator, **options))

    def watched(self, model: Any) -> None:
        """Return None: the flow has several matrices."""


class PatchesTask(StackTask, LikelihoodTask):
    """Maximum likelihood of photo patches by a flow of linear layers and Bent identities, nats per component.

    Trained both ways, samples are judged by their `energy_score`, too.

    Args:
        patches: white data, shape (n, d).
        mixing: a rotation M of shape (d, d) that the components are mixed by.
        basis: shape (d, pixels), from components to the pixels of a square, for the pictures of samples.
        dtype: dtype of the data.
        device: where the data live.
        both: whether samples are trained, too.
    """

    def __init__(
        self,
        patches: Tensor,
        mixing: Tensor,
        basis: Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        both: bool = False,
    ) -> None:
        super().__init__(patches @ mixing.t(), dtype, device, both)
        self._draw = (mixing @ basis).to(device, dtype)

    def nll(self, model: Flow, x: Tensor) -> Tensor:
        """Return the negative log-likelihood per component."""
        return -model.log_prob(x).mean() / self.dim

    def latent(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw z ~ N(0, I)."""
        return torch.randn(size, self.dim, generator=generator, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return samples as "images", shape (n, h, w), uint8; 128 is zero."""
        return {"images": _images(model.inverse(z) @ self._draw)}


class DigitsTask(StackTask):
    """Maximum likelihood of handwritten digits by a flow of linear layers and Bent identities, nats per pixel.

    Args:
        seed: see `p4lab.problems.Digits`.
        dtype: dtype of the data.
        device: where the data live.
    """

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self._digits = Digits(seed, device, dtype)
        self.dim = self._digits.dim
        self.batch, self.test_loss = self._digits.batch, self._digits.test_loss

    def loss(self, model: Flow, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of a batch, plus a penalized method's penalty."""
        return self._digits.loss(model, x) + penalty(model)

    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return samples as "images", shape (n, 8, 8), uint8."""
        return {"images": self._digits.pictures(model, z)["samples"]}


def _images(rows: Tensor) -> Tensor:
    """Return rows of pixels as square images, each of which fills the range of grey levels; 128 is zero."""
    rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-12)
    side = math.isqrt(rows.shape[1])
    images = (128 + 127 * torch.nan_to_num(rows)).round().clamp(0, 255)
    return images.to("cpu", torch.uint8).view(-1, side, side)
