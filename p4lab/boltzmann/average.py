"""Densities that are averaged over a group, so that they have its symmetry whatever is learnt."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from p4lab.boltzmann.tempered import TemperedFlow
from p4lab.errors import OptionError, ShapeError, SingularMatrixError
from p4lab.flows.latent import LatentDensity
from p4lab.p4.validate import check_tensor


class GroupAverage(nn.Module):
    r"""The exact average of a density over a finite group that acts on points and keeps their volume.

    .. math:: q(y) = \frac{1}{|G|} \sum_{g \in G} b(g y)

    The density b is free to learn one copy of each state, or several; the average has all of them, with the right
    shares.

    Args:
        base: b, such as a flow or a `SteerableFlow`.
        images: what the group makes of points: shape (..., p) to (..., |G|, p), with log|det| 0; the first p
            coordinates of b are such points. The others, momenta for instance, stay as they are.
        positions: p.

    Attributes:
        dim, context: of b.
        order: |G|.

    Raises:
        OptionError: images of another shape, or not those of a group that keeps volumes; p out of range.
        ShapeError, DtypeError: from all methods, if points have another width, or are no tensor.

    Cost: |G| densities of b for each log q.

    Example:
        >>> from p4lab.flows import Flow, ActNorm
        >>> even = GroupAverage(Flow([ActNorm(1)]), lambda x: torch.stack([x, -x], -2), 1)
        >>> even.order, even.log_prob(torch.tensor([[0.5], [-0.5]])).diff().abs().max() < 1e-6
        (2, tensor(True))
    """

    def __init__(self, base: LatentDensity | TemperedFlow, images: Callable[[Tensor], Tensor], positions: int) -> None:
        super().__init__()
        self.base, self.images, self.positions = base, images, positions
        self.dim, self.context = base.dim, base.context
        if not 1 <= positions <= base.dim:
            raise OptionError(f"positions={positions}: expected 1 to {base.dim}")
        self.order = self._checked(images)

    def _checked(self, images: Callable[[Tensor], Tensor]) -> int:
        """Return |G|, if the images of a point's images are these images again, as those of a group are."""
        point = torch.rand(1, self.positions, generator=torch.Generator().manual_seed(0), device="cpu")
        first = images(point.to(self.base.like()))
        if first.dim() != 3 or (first.shape[0], first.shape[2]) != (1, self.positions):
            raise OptionError(f"images of shape {tuple(first.shape)} of one point: expected (1, |G|, {self.positions})")
        off = torch.cdist(images(first[0]).double(), first.double(), compute_mode="donot_use_mm_for_euclid_dist")
        if not bool((torch.cat([off.amin(1), off.amin(2)]) < 1e-3).all()):
            raise OptionError(
                "images that are not those of a finite group: expected that the images of any image are all the images "
                "again, the point itself among them"
            )
        return first.shape[1]

    def all_images(self, y: Tensor) -> Tensor:
        """Return all images of points y of shape (n, dim), shape (n, |G|, dim)."""
        check_tensor("GroupAverage", y)
        if y.dim() != 2 or y.shape[1] != self.dim:
            raise ShapeError(f"points of shape {tuple(y.shape)}: expected (n, {self.dim})")
        x, rest = y.split((self.positions, self.dim - self.positions), 1)
        return torch.cat([self.images(x), rest[:, None].expand(-1, self.order, -1)], -1)

    def log_prob(self, y: Tensor, context: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Return log q(y) in nats, shape (n,) for y of shape (n, dim), a context of shape (c,) or (n, c)."""
        parts = self._parts(self.all_images(y), context, temperature)
        return parts.logsumexp(-1) - math.log(self.order)

    def sample_with_log_prob(
        self,
        n: int,
        context: Tensor | None = None,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return images, drawn at random, of n samples of b, shape (n, dim), and log q of them, shape (n,).

        Args:
            n: number of samples; with a context of shape (n, c) one for each row of it.
            context: shape (c,) or (n, c), None for a density without.
            generator: CPU generator (None: torch's default).
            temperature: T of the prior of b.
        """
        each = 1 if context is not None and context.dim() == 2 else n
        y = self.base.sample_with_log_prob(each, context, generator, temperature)[0].reshape(-1, self.dim)
        images = self.all_images(y)
        which = torch.randint(self.order, (len(y), 1), generator=generator, device="cpu")
        log_q = self._parts(images, context, temperature).logsumexp(-1) - math.log(self.order)
        return taken(images, which.to(y.device)), log_q

    @torch.no_grad()
    def drawn(
        self,
        y: Tensor,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        r"""Return one image of each point, drawn by its share of q, shape (n, dim).

        .. math:: P(g) = \frac{b(g y)}{\sum_h b(h y)}, \qquad
            \nabla_\theta \log q(y) = E_g\left[\nabla_\theta \log b(g y)\right]

        So the maximum likelihood of q is that of b on such images, at one gradient of b for each point and not |G|.
        """
        images = self.all_images(y)
        shares = self._parts(images, context, temperature).softmax(-1)
        noise = torch.rand(len(y), 1, generator=generator, dtype=torch.float64, device="cpu").to(y.device)
        which = (shares.double().cumsum(-1) < noise).sum(-1, keepdim=True).clamp(max=self.order - 1)
        return taken(images, which)

    def _parts(self, images: Tensor, context: Tensor | None, temperature: float) -> Tensor:
        if context is not None and context.dim() == 2:
            context = context[:, None]
        options: dict[str, Any] = {} if temperature == 1.0 else {"temperature": temperature}
        return self.base.log_prob(images, context, **options)


def taken(images: Tensor, which: Tensor) -> Tensor:
    """Return one image of each point: (n, |G|, d) and numbers of shape (n, 1) to (n, d)."""
    return images.gather(1, which[:, :, None].expand(-1, 1, images.shape[-1])).squeeze(1)


def representatives(images: Tensor, rounds: int = 20) -> Tensor:
    """Return one image of each point, chosen such that together they are near one Gaussian, shape (n, d).

    The likeliest image of each is taken under the Gaussian of those of the round before, from the image that is
    nearest to the first point on: a start for flows that then draw images by themselves (`GroupAverage.drawn`).

    Args:
        images: of points, shape (n, |G|, d).
        rounds: at most; fewer if nothing changes.

    Raises:
        ShapeError: another number of dimensions, or not more points than 2 d.
        SingularMatrixError: the points vary in fewer than d directions, or are not finite.

    Cost: O(n |G| d^2) a round.
    """
    if images.dim() != 3 or len(images) <= 2 * images.shape[-1]:
        raise ShapeError(f"images of shape {tuple(images.shape)}: expected (n, |G|, d) with n above 2 d")
    wide = images.double()
    mean, root = wide[0, 0], torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    which = torch.full((len(wide), 1), -1, device=wide.device)
    for _ in range(rounds):
        off = torch.linalg.solve_triangular(root, (wide - mean).transpose(-1, -2), upper=False)
        best = off.square().sum(-2).argmin(-1, keepdim=True)
        if torch.equal(best, which):
            break
        which, chosen = best, taken(wide, best)
        mean, (root, failed) = chosen.mean(0), torch.linalg.cholesky_ex(chosen.t().cov())
        if bool(failed):
            raise SingularMatrixError("points that vary in fewer than d directions, or with NaN: leave those out")
    return taken(images, which)
