"""Losses of flows of molecules whose gradients use forces: of examples, or of the flow's own samples."""

import torch
from torch import Tensor

from p4lab.molecules.density import MoleculeFlow
from p4lab.molecules.target import InternalEnergy

LARGEST_WEIGHT = 10.0
"""Importance weights of mean 1 are cut here, for no sample to decide alone."""
LARGEST_SLOPE = 5.0
"""A sample pulls no stronger than this times the median of its batch: forces of clashing atoms have no bound."""
LARGEST_EXCESS = 50.0
"""Values (nats) this far above the median count as that much in what a loss says."""


def by_forces(flow: MoleculeFlow, y: Tensor, score: Tensor, context: Tensor | None = None) -> Tensor:
    r"""Return the mean negative log-likelihood (nats), whose gradient also uses the forces at the examples.

    .. math:: \nabla_\theta L = E_{y \sim p} \left[ \nabla_z \left(\log p_Z(z) - \log p_0(z)\right) \cdot
              \partial_\theta z \right], \qquad z = F_\theta(y)

    This is the path gradient of the forward divergence: unlike that of `p4lab.boltzmann.by_example` it vanishes for
    every single example where q is p, so that it neither is noisy there nor overfits.

    Args:
        flow: q.
        y: examples, shape (n, d).
        score: the gradient of log p there, shape (n, d).
        context: of the flow, shape (c,) or (n, c), None for a flow without.

    Source: Vaitl et al., arXiv:2403.15881.
    """
    z, log_q, carried = flow.latent_with_score(y, score, context)
    return _along(z, carried, -log_q)


def by_energy(
    flow: MoleculeFlow,
    target: InternalEnergy,
    n: int,
    generator: torch.Generator | None = None,
    context: Tensor | None = None,
) -> Tensor:
    r"""Return the mean of u + log q over samples (nats), with its path gradient.

    As `p4lab.boltzmann.by_energy`, but the score of q is carried along with the samples, and energies are not
    compressed: a logarithm of the energy does not hold samples together against the volume that 60 dimensions offer
    outside. Instead no sample pulls stronger than five times the median. Samples without finite energy or forces are
    left out.

    Where the angles have layers of their own, these get the gradient of the forward divergence of the angles instead,

    .. math:: -E_{y \sim q} [(w(y) - 1) \nabla_\theta \log q(\varphi)], \qquad w \propto e^{-u(y)} / q(y)

    with weights of mean 1, cut at 10. The reverse divergence would take probability away from any state that the
    numbers are not yet learnt well in, such as the rare one: by a factor exp(-KL of the numbers there).

    Args:
        flow: q.
        target: u of internal coordinates.
        n: number of samples.
        generator: CPU generator.
        context: of the flow, shape (c,), the same for all samples; None for a flow without.

    Raises:
        TrainingError: the energy failed.

    Source: Vaitl et al., arXiv:2206.09016 (path gradients); the term of the angles is p4lab's.
    """
    y, log_q, of_q = flow.sample_with_score(n, generator, context)
    there = torch.isfinite(y).all(-1, keepdim=True)
    at = torch.where(there, y.detach(), 0.0)
    value, score = target.value_and_score(at)
    value = value.to(log_q.dtype)
    loss = _along(y, of_q - score, value + log_q, there)
    if not flow.angles:
        return loss
    log_w = torch.where(there.squeeze(-1), -value - log_q.detach(), -torch.inf)
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    w = torch.nan_to_num(torch.softmax(log_w, 0) * n, nan=1.0).clamp(max=LARGEST_WEIGHT)
    pull = ((w.mean() - w) * flow.log_prob_of_angles(at[:, : flow.circular], context)).mean()
    return loss + pull - pull.detach()


def _along(at: Tensor, slope: Tensor, values: Tensor, there: Tensor | None = None) -> Tensor:
    """Return the mean of values, with the gradient of the mean of slope * at; rows that are not finite count 0."""
    finite = torch.isfinite(slope).all(-1, keepdim=True) & torch.isfinite(values).unsqueeze(-1)
    if there is not None:
        finite = finite & there
        at = torch.where(there, at, 0.0)
    seen, values = finite.squeeze(-1), values.detach()
    size = slope.norm(dim=-1)
    limit = LARGEST_SLOPE * torch.where(seen, size, torch.nan).nanmedian()
    slope = slope * (limit / size).clamp(max=1.0).unsqueeze(-1)
    along = (torch.where(finite, slope, 0.0) * at).sum(-1)
    values = torch.minimum(values, torch.where(seen, values, torch.nan).nanmedian() + LARGEST_EXCESS)
    values = torch.where(seen, values, 0.0)
    count = finite.sum()
    return (values + along - along.detach()).sum() / torch.where(count > 0, count, torch.nan)
