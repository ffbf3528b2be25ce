"""What methods are raced on: maps to learn, mixtures to separate, digits to model; the same for every kind of layer."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from p4lab.baselines import Method, penalty
from p4lab.errors import OptionError
from p4lab.flows import Flow, bent_stack
from p4lab.problems.digits import Digits
from p4lab.problems.linear_maps import MAPS as MAPS
from p4lab.problems.linear_maps import linear_target

TEST_SIZE = 2048
"""Number of points that a map is tested on."""
FILTERS = 64
"""Number of filters that are drawn."""
PATCH = 8
"""Side of a photo patch in pixels."""


class Task:
    """A problem that any method's layers can be trained on, from the identity.

    Attributes:
        dim: width d.
    """

    dim: int

    def model(self, method: Method, seed: int, **options: Any) -> nn.Module:
        """Return what is trained: one layer of the method, started at the identity; the flow task stacks several."""
        return method.build(self.dim, seed=seed, **options)

    def watched(self, model: Any) -> Tensor | None:
        """Return the effective matrix, where there is one."""
        return model.weight if hasattr(model, "weight") else None


class MapTask(Task):
    r"""Learn the linear map ``y = T x`` from samples; log|det W| is asked for after each step.

    .. math:: \frac{1}{d}\, \mathbb{E}\, |W x - T x|^2, \qquad x \sim N(0, I)

    Args:
        target: T, shape (d, d).
        dtype: dtype of the data.
        device: where the data live.
    """

    def __init__(self, target: Tensor, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self.dim = len(target)
        self.target = target.to(device, dtype)
        self._test = torch.randn(TEST_SIZE, self.dim, generator=torch.Generator().manual_seed(1), device="cpu").to(
            self.target
        )

    def model(self, method: Method, seed: int, **options: Any) -> nn.Module:
        """Return a layer of the method, started at the identity."""
        self._knows = method.linear and method.exact_logabsdet
        return super().model(method, seed, **options)

    @torch.no_grad()
    def after_step(self, model: Any) -> None:
        """Have the layer tell log|det W|, if it is one that knows: otherwise knowing it would cost nothing here."""
        if self._knows:
            model.logabsdet()

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw x ~ N(0, I), shape (size, d)."""
        return torch.randn(size, self.dim, generator=generator, dtype=self.target.dtype, device="cpu").to(
            self.target.device
        )

    def loss(self, model: Any, x: Tensor) -> Tensor:
        """Return the mean squared error of a batch, plus the penalty of a penalized method."""
        return self._error(model, x) + penalty(model)

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return the mean squared error on data that are not trained on."""
        return self._error(model, self._test)

    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return "eigenvalues" of W, if there is one, and of the "target", shape (d, 2): real and imaginary part."""
        matrices = {"eigenvalues": self.watched(model), "target": self.target}
        return {name: _eigenvalues(matrix) for name, matrix in matrices.items() if matrix is not None}

    def _error(self, model: Any, x: Tensor) -> Tensor:
        return (model(x) - x @ self.target.t()).square().mean()


class ICATask(Task):
    r"""Independent component analysis by maximum likelihood: unmix ``x = M s`` whose sources s nobody knows.

    .. math:: \frac{1}{d}\left(-\mathbb{E} \sum_i \log p\big((W x)_i\big) - \log|\det W|\right), \qquad
              p(s) = \frac{1}{\pi \cosh s}

    Args:
        sources: white data, shape (n, d): what is independent in them is to be found.
        mixing: M, shape (d, d).
        shape: of a patch, for the pictures of the filters; rows of ``basis`` have that many pixels.
        basis: shape (d, pixels), from components to pixels.
        dtype: dtype of the data.
        device: where the data live.

    Source: Cardoso and Laheld 1996; the density is that of Bell and Sejnowski's infomax.
    """

    def __init__(
        self,
        sources: Tensor,
        mixing: Tensor,
        shape: tuple[int, int],
        basis: Tensor,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dim, self._shape = len(mixing), shape
        data = (sources @ mixing.t()).to(device, dtype)
        self.test, self.train = data[: len(data) // 5], data[len(data) // 5 :]
        # A row of W M tells which combination of white components a unit looks for; the basis draws it.
        self._draw = (mixing @ basis).to(device, dtype)

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw mixtures with replacement, shape (size, d)."""
        rows = torch.randint(len(self.train), (size,), generator=generator, device="cpu")
        return self.train[rows.to(self.train.device)]

    def loss(self, model: Any, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of a batch, nats per dimension, plus a penalized method's penalty."""
        return self._nll(model, x) + penalty(model)

    @torch.no_grad()
    def test_loss(self, model: Any) -> Tensor:
        """Return the negative log-likelihood of the test patches."""
        return self._nll(model, self.test)

    def pictures(self, model: Any, z: Tensor) -> dict[str, Tensor]:
        """Return the first 64 filters as "images", shape (n, h, w), uint8; 128 is zero."""
        filters = model.weight.detach()[:FILTERS] @ self._draw
        filters = filters / filters.abs().amax(1, keepdim=True).clamp_min(1e-12)
        images = (128 + 127 * torch.nan_to_num(filters)).round().clamp(0, 255)
        return {"images": images.to("cpu", torch.uint8).view(-1, *self._shape)}

    def _nll(self, model: Any, x: Tensor) -> Tensor:
        y = model(x)
        # log cosh without overflow
        log_cosh = y.abs() + torch.nn.functional.softplus(-2 * y.abs()) - math.log(2)
        return (log_cosh.sum(-1).mean() - model.logabsdet().to(y.dtype)) / self.dim + math.log(math.pi)


class DigitsTask(Task):
    """Maximum likelihood of handwritten digits by a flow of linear layers and Bent identities, nats per pixel.

    Args:
        blocks: number of nonlinearities.
        seed: see `p4lab.problems.Digits`.
        dtype: dtype of the data.
        device: where the data live.
    """

    blocks: ClassVar[int] = 4

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        self._digits = Digits(seed, device, dtype)
        self.dim = self._digits.dim
        self.batch, self.test_loss = self._digits.batch, self._digits.test_loss

    def model(self, method: Method, seed: int, **options: Any) -> Flow:
        """Return a flow whose linear layers are the method's, started at the identity.

        Raises:
            OptionError: the method's layers are not linear.
        """
        if not method.linear:
            raise OptionError(f"method {method.name!r} is no linear layer: this flow stacks linear layers")
        generator = torch.Generator().manual_seed(seed)
        return bent_stack(self.blocks, lambda: method.build(self.dim, seed=generator, **options))

    def loss(self, model: Flow, x: Tensor) -> Tensor:
        """Return the negative log-likelihood of a batch, plus a penalized method's penalty."""
        return self._digits.loss(model, x) + penalty(model)

    def pictures(self, model: Flow, z: Tensor) -> dict[str, Tensor]:
        """Return samples as "images", shape (n, 8, 8), uint8."""
        return {"images": self._digits.pictures(model, z)["samples"]}

    def watched(self, model: Any) -> None:
        """Return None: the flow has several matrices."""


def _eigenvalues(matrix: Tensor) -> Tensor:
    matrix = matrix.detach().to("cpu", torch.float64)
    if not bool(matrix.isfinite().all()):
        return torch.full((len(matrix), 2), math.nan, dtype=torch.float64, device="cpu")
    return torch.view_as_real(torch.linalg.eigvals(matrix))


# --- by name ---------------------------------------------------------------------------------------------------------


def photo_patches(dim: int, count: int = 20_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return white patches (count, d) of scikit-learn's two photos, and the (d, 64) matrix that draws components.

    The mean of each patch is taken away; the d leading principal components are scaled to variance 1.

    Raises:
        OptionError: d > 63.
    """
    from sklearn.datasets import load_sample_images  # here: it takes a second to import

    photos = [torch.tensor(image, dtype=torch.float64, device="cpu").mean(-1) for image in load_sample_images().images]
    generator = torch.Generator().manual_seed(seed)
    patches = []
    for photo in photos:
        n = count // len(photos)
        rows = torch.randint(photo.shape[0] - PATCH, (n,), generator=generator, device="cpu")
        columns = torch.randint(photo.shape[1] - PATCH, (n,), generator=generator, device="cpu")
        windows = photo.unfold(0, PATCH, 1).unfold(1, PATCH, 1)
        patches.append(windows[rows, columns].reshape(n, -1))
    x = torch.cat(patches)
    x = x[torch.randperm(len(x), generator=generator, device="cpu")]
    return _white(x - x.mean(1, keepdim=True), dim, PATCH**2 - 1)


def digit_patches(dim: int) -> tuple[Tensor, Tensor]:
    """Return white components (1797, d) of the handwritten digits, and the (d, 64) matrix that draws components.

    Raises:
        OptionError: d > 60.
    """
    from sklearn.datasets import load_digits  # here: it takes a second to import

    x = torch.as_tensor(load_digits().data, device="cpu").double()
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0), device="cpu")]
    return _white(x, dim, 60)


def _white(x: Tensor, dim: int, most: int) -> tuple[Tensor, Tensor]:
    if dim > most:
        raise OptionError(f"dim={dim}: these images have at most {most} components that vary")
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.t() @ x / len(x))
    scale = variance[-dim:].clamp_min(1e-12).sqrt()
    axes = axes[:, -dim:]
    return x @ axes / scale, (axes * scale).t()


PATCHES: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {"ica_photos": photo_patches, "ica_digits": digit_patches}
TASKS = (*MAPS, *PATCHES, "digits")
"""Names of the tasks."""


def task(
    name: str, dim: int, seed: int = 1, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Task:
    """Return a task by name.

    Args:
        name: one of `TASKS`: "spd", "so", "minus_identity", "ill_conditioned" (condition number 100), "negative"
            (det = -1), "ica_photos", "ica_digits" (white data mixed by a rotation, so that orthogonal methods can
            solve them, too) or "digits".
        dim: width d; "digits" has its own, 64.
        seed: seed of target, mixing or split.
        dtype: dtype of the data.
        device: where the data live.

    Raises:
        OptionError: unknown name, or a width that the data do not have.
    """
    if name in MAPS:
        return MapTask(linear_target(name, dim, seed), dtype, device)
    if name in PATCHES:
        sources, basis = PATCHES[name](dim)
        mixing = linear_target("so", dim, seed).double()
        return ICATask(sources, mixing, (PATCH, PATCH), basis, dtype, device)
    if name == "digits":
        return DigitsTask(seed, dtype, device)
    raise OptionError(f"task {name!r} is not known: choose one of {TASKS}")
