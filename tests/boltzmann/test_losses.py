"""Losses by example and by energy, against closed forms of Gaussians."""

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from p4lab.boltzmann import losses, weights
from p4lab.errors import OptionError, ShapeError
from p4lab.flows import Flow, realnvp
from p4lab.p4 import P4Inv

DOUBLE = torch.float64


def affine(seed: int = 0) -> Flow:
    """A Gaussian: one P4Inv layer with a perturbation and a bias."""
    flow = Flow([P4Inv(3, init="orthogonal", seed=seed, dtype=DOUBLE)])
    with torch.no_grad():
        flow.layers[0].u.normal_(std=0.2)
        flow.layers[0].bias.normal_(std=0.3)
    return flow


def bent_flow(dtype: torch.dtype = DOUBLE) -> Flow:
    flow = realnvp(2, 4, "p4inv", hidden=8, seed=1, dtype=dtype)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return flow


def harmonic(x: Tensor) -> Tensor:
    return 0.5 * (x / torch.tensor([1.0, 2.0, 0.5], dtype=x.dtype)).square().sum(-1)


def quartic(x: Tensor) -> Tensor:
    return x[:, 0] ** 4 - 2 * x[:, 0] ** 2 + 0.5 * x[:, 1] ** 2


def grads(loss: Tensor, model: Flow) -> Tensor:
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, slopes, strict=True)]
    )


def test_compressed_energies_are_smooth_at_the_threshold() -> None:
    u = torch.tensor([9.999999, 10.0, 10.000001], dtype=DOUBLE, requires_grad=True)
    c = losses.compress(u, 10.0)
    (slope,) = torch.autograd.grad(c.sum(), u)
    torch.testing.assert_close(c, u)
    torch.testing.assert_close(slope, torch.ones(3, dtype=DOUBLE), rtol=1e-5, atol=0)
    apart = torch.tensor([3.0, 12.0, 1e3], dtype=DOUBLE, requires_grad=True)
    torch.autograd.gradcheck(lambda u: losses.compress(u, 10.0), apart)
    assert losses.compress(torch.tensor([110.0]), 10.0).tolist() == pytest.approx([10 + math.log(101)])


def test_by_example_is_the_mean_negative_log_likelihood() -> None:
    x = torch.randn(50, 3, dtype=DOUBLE)
    flow = affine()
    weight, bias = flow.layers[0].weight.detach(), flow.layers[0].bias.detach()
    covariance = (weight.T @ weight).inverse()
    gaussian = torch.distributions.MultivariateNormal(-weight.inverse() @ bias, covariance)
    torch.testing.assert_close(losses.by_example(flow, x).detach(), -gaussian.log_prob(x).mean())


@pytest.mark.parametrize("path_gradient", [True, False], ids=["path", "plain"])
def test_by_energy_is_the_divergence_of_gaussians(path_gradient: bool) -> None:
    flow = affine()
    weight, bias = flow.layers[0].weight.detach(), flow.layers[0].bias.detach()
    q = torch.distributions.MultivariateNormal(-weight.inverse() @ bias, (weight.T @ weight).inverse())
    scales = torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE)
    p = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=DOUBLE), scales.square().diag())
    log_z = float(scales.log().sum()) + 1.5 * math.log(2 * math.pi)
    generator = torch.Generator().manual_seed(0)
    loss = losses.by_energy(flow, harmonic, 200_000, generator, 1e9, path_gradient)
    exact = torch.distributions.kl_divergence(q, p)
    assert float(loss.detach()) + log_z == pytest.approx(float(exact), abs=0.02)


def test_the_path_gradient_has_the_plain_ones_expectation() -> None:
    # The difference is the score, whose expectation is 0: compared in units of its own standard error.
    flow, difference, n = bent_flow(), [], 400
    for seed in range(40):
        path, plain = (
            grads(losses.by_energy(flow, quartic, n, torch.Generator().manual_seed(seed), 50.0, way), flow)
            for way in (True, False)
        )
        difference.append(path - plain)
    values = torch.stack(difference)
    moving = values.std(0) > 1e-12
    z = values.mean(0)[moving] / (values.std(0)[moving] / len(values) ** 0.5)
    assert int(moving.sum()) > 50
    assert float(z.abs().max()) < 4.5
    assert float(z.square().mean()) == pytest.approx(1.0, abs=0.5)


def test_the_path_gradient_vanishes_where_the_model_is_the_target() -> None:
    flow = affine()
    energy = lambda x: -flow.log_prob(x)  # noqa: E731
    sizes = [
        float(grads(losses.by_energy(flow, energy, 100, torch.Generator().manual_seed(0), 1e9, way), flow).norm())
        for way in (True, False)
    ]
    assert sizes[0] < 1e-10
    assert sizes[1] > 1e-2


@pytest.mark.parametrize("path_gradient", [True, False], ids=["path", "plain"])
def test_training_by_energy_finds_a_gaussian(path_gradient: bool) -> None:
    flow = Flow([P4Inv(3, init="identity", seed=0, dtype=DOUBLE, rank=3)])
    optimizer = torch.optim.Adam(flow.parameters(), 0.05)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        optimizer.zero_grad()
        losses.by_energy(flow, harmonic, 256, generator, path_gradient=path_gradient).backward()
        optimizer.step()
    x, _ = flow.sample_with_log_prob(20_000, generator=generator)
    tolerance = 0.05 if path_gradient else 0.15
    torch.testing.assert_close(x.std(0).detach(), torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE), rtol=tolerance, atol=0)


@pytest.mark.parametrize("path_gradient", [True, False], ids=["path", "plain"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["energy", "force"])
def test_samples_with_a_bad_energy_or_force_are_left_out(bad: float, what: str, path_gradient: bool) -> None:
    class Wall(torch.autograd.Function):
        """The quartic energy, broken where x > 0."""

        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return torch.where((x[:, 0] > 0) & (what == "energy"), bad, quartic(x))

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                (slope,) = torch.autograd.grad(quartic(y).sum(), y)
            return grad[:, None] * torch.where((x[:, :1] > 0) & (what == "force"), bad, slope)

    flow = bent_flow()
    loss = losses.by_energy(flow, Wall.apply, 64, torch.Generator().manual_seed(0), 50.0, path_gradient)
    x, log_q = flow.sample_with_log_prob(64, generator=torch.Generator().manual_seed(0))
    left = x[:, 0] <= 0
    assert 5 < int(left.sum()) < 60
    torch.testing.assert_close(loss, (losses.compress(quartic(x), 50.0) + log_q)[left].mean())
    assert torch.isfinite(grads(loss, flow)).all()


def test_with_no_finite_sample_the_loss_is_nan() -> None:
    flow = bent_flow()
    assert losses.by_energy(flow, lambda x: x.sum(-1) * math.nan, 8).isnan()


def test_huge_energies_are_compressed() -> None:
    flow = bent_flow()
    loss = losses.by_energy(flow, lambda x: 1e30 * (1.1 + quartic(x)), 32, torch.Generator().manual_seed(0), 10.0)
    assert 70 < float(loss.detach()) < 100
    assert float(grads(loss, flow).norm()) < 1e4


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_is_between_example_and_energy(share: float) -> None:
    flow, x = bent_flow(), torch.randn(20, 2, dtype=DOUBLE)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    loss = losses.mixed(flow, x, quartic, share, generator=generators[0], threshold=20.0)
    energy = losses.by_energy(flow, quartic, 20, generators[1], 20.0)
    torch.testing.assert_close(loss, (1 - share) * losses.by_example(flow, x) + share * energy)
    torch.testing.assert_close(
        grads(loss, flow),
        (1 - share) * grads(losses.by_example(flow, x), flow) + share * grads(energy, flow),
    )


def test_an_end_of_the_mixture_does_without_the_other() -> None:
    flow = bent_flow()
    never = lambda x: pytest.fail("called")  # noqa: E731
    losses.mixed(flow, torch.zeros(3, 2, dtype=DOUBLE), never, 0.0)
    losses.mixed(flow, torch.full((3, 2), math.nan, dtype=DOUBLE), quartic, 1.0)


def test_samples_come_with_their_log_probability() -> None:
    flow = bent_flow()
    x, log_q = flow.sample_with_log_prob(30, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(log_q, flow.log_prob(x))
    torch.testing.assert_close(x.detach(), flow.sample(30, generator=torch.Generator().manual_seed(2)))
    assert x.requires_grad
    assert log_q.requires_grad


@pytest.mark.parametrize(
    ("call", "error"),
    [
        pytest.param(lambda: losses.by_energy(bent_flow(), quartic, 0), OptionError, id="no-samples"),
        pytest.param(lambda: losses.by_energy(bent_flow(), lambda x: x, 3), ShapeError, id="energy-shape"),
        pytest.param(lambda: losses.mixed(bent_flow(), torch.zeros(1, 2), quartic, 1.1), OptionError, id="share"),
        pytest.param(lambda: bent_flow().sample_with_log_prob(-1), ShapeError, id="negative"),
    ],
)
def test_bad_input_is_refused(call, error) -> None:
    with pytest.raises(error):
        call()


def test_nothing_waits_for_the_device() -> None:
    class Scaled(torch.nn.Module):
        """N(0, e^2s I)."""

        dim = 2

        def __init__(self) -> None:
            super().__init__()
            self.s = torch.nn.Parameter(torch.zeros(2))

        def log_prob(self, x: Tensor) -> Tensor:
            return -0.5 * (x * (-self.s).exp()).square().sum(-1) - self.s.sum()

        def sample_with_log_prob(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
            x = torch.randn(n, 2) * self.s.exp()
            return x, self.log_prob(x)

    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.zeros(1).isnan())  # this mode finds what waits
    with FakeTensorMode():
        model = Scaled()
        losses.mixed(model, torch.zeros(5, 2), quartic, 0.5).backward()
        log_w = weights.log_weights(torch.zeros(9), torch.zeros(9))
        shares = weights.ess(log_w), weights.clipped_ess(log_w, 0.5)
        assert [share.shape for share in shares] == [(), ()]
