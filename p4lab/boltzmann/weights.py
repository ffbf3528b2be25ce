"""Importance weights of samples of a flow, and what is estimated with them.

A log-weight that is NaN or infinite belongs to a sample whose energy or density is not known. Everywhere here it counts
as -inf: the sample weighs nothing, and is one of the n. Where all weights vanish, shares and densities are 0, and what
is not known has an error of inf.

What is no tensor raises a `DtypeError`, log-weights that are no vector, or an empty one, a `ShapeError`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from p4lab.errors import DtypeError, OptionError, ShapeError
from p4lab.p4.validate import check_tensor
from p4lab.problems.metrics import Estimate

BLOCKS = 50
"""Blocks of samples that error bars are made of."""
FEWEST = 5
"""In so many blocks, effectively, a region must have been seen for its error bar to mean anything."""


@dataclass(frozen=True)
class Histogram:
    """A normalized histogram with error bars.

    Attributes:
        edges: shape (bins + 1,).
        density: share of the weight per unit of x, shape (bins,); what lies outside of the edges counts in the total.
        error: standard errors of ``density``, shape (bins,).
    """

    edges: Tensor
    density: Tensor
    error: Tensor

    @property
    def centres(self) -> Tensor:
        """Middles of the bins, shape (bins,)."""
        return (self.edges[1:] + self.edges[:-1]) / 2

    @property
    def free_energy(self) -> Tensor:
        """-log density (nats; kT of the temperature that the weights belong to), inf where nothing was seen."""
        return -self.density.log()

    @property
    def free_energy_error(self) -> Tensor:
        """Standard errors of `free_energy`, inf where nothing was seen."""
        return torch.where(self.density > 0, self.error / self.density, torch.inf)


def log_weights(reduced_energy: Tensor, log_q: Tensor) -> Tensor:
    r"""Return the logarithms of importance weights, up to a constant; -inf where one of the two is not finite.

    .. math:: \log w = -u(x) - \log q(x)

    Args:
        reduced_energy: u(x) = E(x) / kT of the target, nats, shape (n,).
        log_q: log-density of the samples under the model, nats, shape (n,).

    Raises:
        ShapeError: shapes differ.

    Source: Noé et al., arXiv:1812.01729.
    """
    for given in (reduced_energy, log_q):
        check_tensor("log_weights", given)
    if reduced_energy.shape != log_q.shape:
        raise ShapeError(f"energies {tuple(reduced_energy.shape)}, log q {tuple(log_q.shape)}: expected equal shapes")
    return _finite(-reduced_energy - log_q)


def normalized(log_w: Tensor) -> Tensor:
    """Return weights that sum to 1, float64; 0 for those that are not finite, zeros if all of them vanish."""
    _check(log_w)
    wide = _finite(log_w.detach().to(log_w.dtype if log_w.device.type == "mps" else torch.float64))
    return torch.nan_to_num(torch.softmax(wide, 0), nan=0.0)


def ess(log_w: Tensor) -> Tensor:
    r"""Return the effective sample size as a share of the samples, in [0, 1], a scalar.

    .. math:: \mathrm{ESS} / n = \frac{(\sum_i w_i)^2}{n \sum_i w_i^2}

    Args:
        log_w: shape (n,); what is not finite weighs nothing.

    Returns:
        Float64; 0 if all weights vanish.

    Example:
        >>> ess(torch.zeros(8)), ess(torch.tensor([0.0, 0.0, -torch.inf, -torch.inf]))
        (tensor(1., dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    w = normalized(log_w)
    square = w.square().sum() * len(w)
    return torch.where(square > 0, w.sum().square() / square, 0.0)


def clipped(log_w: Tensor, share: float = 0.001) -> Tensor:
    """Return log-weights of which the largest ones are set to the smallest of these; at least one stays as it is.

    Args:
        log_w: shape (n,); what is not finite becomes -inf, and is none of the largest.
        share: how many of the n, rounded; it trades a bias for variance.

    Raises:
        OptionError: share is not in [0, 1).
    """
    _check(log_w)
    if not 0 <= share < 1:
        raise OptionError(f"share={share}: expected a number from 0 to below 1")
    log_w = _finite(log_w)
    largest = log_w.topk(max(1, round(share * len(log_w)))).values
    return torch.minimum(log_w, torch.where(torch.isfinite(largest), largest, torch.inf).min())


def clipped_ess(log_w: Tensor, share: float = 0.001) -> Tensor:
    """Return `ess` of `clipped` weights: what it is like without a few outliers.

    Arguments and errors are those of the two.

    Example:
        >>> log_w = torch.tensor([0.0] * 999 + [10.0])
        >>> bool(ess(log_w) < 0.01), round(float(clipped_ess(log_w, 0.002)), 3)
        (True, 1.0)
    """
    return ess(clipped(log_w, share))


def free_energy_difference(log_w: Tensor, in_a: Tensor, in_b: Tensor, blocks: int = BLOCKS) -> Estimate:
    r"""Return the free energy of a region b minus that of a region a, in kT, with a jackknife error.

    .. math:: \Delta F / kT = -\log \frac{\sum_i w_i [x_i \in b]}{\sum_i w_i [x_i \in a]}

    Args:
        log_w: shape (n,), zeros for samples that need no weights; what is not finite weighs nothing.
        in_a: which samples lie in a, bool, shape (n,).
        in_b: which samples lie in b, likewise.
        blocks: contiguous blocks of which one at a time is left out; correlated samples need blocks longer than their
            correlation.

    Returns:
        The difference; with a region that was seen too little its error is inf (see `told`). Where nothing was seen in
        either, it is NaN.

    Raises:
        ShapeError: shapes differ, or fewer samples than blocks.
        DtypeError: a region is not bool.
    """
    for region in (in_a, in_b):
        check_region(log_w, region)
    w, place = normalized(log_w), _block_of(len(log_w), blocks, log_w.device)
    a, b = (_sums(w * region, place, blocks) for region in (in_a, in_b))
    left_out = -torch.log((b.sum() - b).clamp(min=0)) + torch.log((a.sum() - a).clamp(min=0))
    certain = told(a) and told(b) and bool(torch.isfinite(left_out).all())
    return Estimate(float(-b.sum().log() + a.sum().log()), float(jackknife(left_out)) if certain else torch.inf)


def weighted_share(log_w: Tensor, inside: Tensor, blocks: int = BLOCKS) -> Estimate:
    """Return the weighted share of samples that are inside, with a jackknife error over blocks.

    Args:
        log_w: logarithms of weights, shape (n,); what is not finite weighs nothing.
        inside: bool, shape (n,).
        blocks: number of blocks, at least two; no more than n count.

    Returns:
        The share; if what is inside, or what is outside, was seen too little, its error is inf (see `told`).

    Raises:
        ShapeError: not a vector, another shape than that of what is inside, or fewer than two samples.
        DtypeError: what is inside is not bool.
    """
    check_region(log_w, inside)
    w, blocks = normalized(log_w), max(2, min(blocks, len(log_w)))
    place = _block_of(len(w), blocks, w.device)
    total, part = _sums(w, place, blocks), _sums(w * inside, place, blocks)
    left_out = (part.sum() - part) / (total.sum() - total).clamp(min=1e-300)
    certain = told(part) and told(total - part)
    return Estimate(
        float(part.sum() / total.sum().clamp(min=1e-300)), float(jackknife(left_out)) if certain else torch.inf
    )


def weighted_histogram(x: Tensor, edges: Tensor, log_w: Tensor | None = None, blocks: int = BLOCKS) -> Histogram:
    """Return the histogram of weighted samples, with jackknife errors; if all weights vanish, 0 with errors of inf.

    Args:
        x: shape (n,); what is not finite lies in no bin, but counts in the total.
        edges: ascending, shape (bins + 1,).
        log_w: shape (n,), what is not finite weighs nothing; None: all weigh the same.
        blocks: as in `free_energy_difference`.

    Raises:
        ShapeError: shapes do not fit, or fewer samples than blocks.
        OptionError: edges that do not ascend.
    """
    for given in (x, edges, *(() if log_w is None else (log_w,))):
        check_tensor("weighted_histogram", given)
    if x.dim() != 1 or edges.dim() != 1 or len(edges) < 2 or (log_w is not None and log_w.shape != x.shape):
        shape = None if log_w is None else tuple(log_w.shape)
        raise ShapeError(f"x {tuple(x.shape)}, edges {tuple(edges.shape)}, log-weights {shape}: expected (n,), (m,)")
    edges = edges.to(x.device, torch.float64)
    widths = edges.diff()
    if not bool((widths > 0).all()):
        raise OptionError("edges do not ascend: expected each above the one before")
    w = normalized(torch.zeros_like(x) if log_w is None else log_w)
    bins = len(widths)
    place = torch.searchsorted(edges, x.detach().double().contiguous(), right=True) - 1
    inside = (place >= 0) & (place < bins) & torch.isfinite(x)
    # One more bin takes what lies outside: it counts in the total of its block.
    flat = _block_of(len(x), blocks, x.device) * (bins + 1) + torch.where(inside, place, bins)
    per_block = _sums(w, flat, blocks * (bins + 1)).view(blocks, bins + 1)
    whole, total = per_block.sum(0)[:-1], per_block.sum()
    rest = (whole - per_block[:, :-1]) / (total - per_block.sum(1, keepdim=True)).clamp(min=1e-300)
    error = torch.where(total > 0, jackknife(rest) / widths, torch.inf)
    return Histogram(edges, whole / total.clamp(min=1e-300) / widths, error)


def check_region(like: Tensor, inside: Tensor) -> None:
    """Raise unless a region is bool, with a value for each sample.

    Raises:
        DtypeError: no tensor, or another dtype.
        ShapeError: another shape.
    """
    for given in (like, inside):
        check_tensor("a region", given)
    if inside.dtype != torch.bool:
        raise DtypeError(f"a region of {inside.dtype}: expected torch.bool, such as x > 0")
    if inside.shape != like.shape:
        raise ShapeError(f"a region of shape {tuple(inside.shape)}: expected {tuple(like.shape)}, one for each sample")


def _check(log_w: Tensor) -> None:
    check_tensor("log-weights", log_w)
    if log_w.dim() != 1 or not len(log_w):
        raise ShapeError(f"log-weights of shape {tuple(log_w.shape)}: expected (n,) with n >= 1")


def _finite(log_w: Tensor) -> Tensor:
    return torch.where(torch.isfinite(log_w), log_w, -torch.inf)


def _block_of(n: int, blocks: int, device: torch.device) -> Tensor:
    if blocks < 2 or n < blocks:
        raise ShapeError(f"{n} samples in {blocks} blocks: expected at least two blocks, and a sample for each")
    return torch.arange(n, device=device) * blocks // n


def _sums(values: Tensor, place: Tensor, places: int) -> Tensor:
    return torch.zeros(places, dtype=values.dtype, device=values.device).index_add_(0, place, values)


def told(sums: Tensor) -> bool:
    r"""Return whether a region was seen in enough blocks for an error bar: in 5, effectively.

    .. math:: \frac{(\sum_b s_b)^2}{\sum_b s_b^2} \ge \min(5, n / 2)

    With fewer, or with one sample that weighs more than the others together, the spread of the blocks says nothing
    about how far off the sum is.

    Args:
        sums: the weight s of the region in each of n independent blocks, shape (n,).
    """
    square = float(sums.square().sum())
    return square > 0 and float(sums.sum()) ** 2 >= min(FEWEST, len(sums) / 2) * square * (1 - 1e-9)


def jackknife(left_out: Tensor) -> Tensor:
    """Return the standard errors of estimates of which each was made with one of n blocks left out.

    Args:
        left_out: shape (n, ...).

    Returns:
        Shape (...).
    """
    n = len(left_out)
    return ((left_out - left_out.mean(0)).square().sum(0) * ((n - 1) / n)).sqrt()
