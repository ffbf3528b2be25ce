"""Bijections of images and multi-scale flows: log|det| against autograd, inverses, starts that break 1 x 1 weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flows.examples import disturb
from torch import Tensor

from p4lab.baselines import METHODS
from p4lab.errors import OptionError, P4Error, ShapeError, SingularMatrixError
from p4lab.flows import MIXINGS, ActNorm, Flow, FoldedLinear, MultiScale, PeriodicConvolution, Permutation, glow
from p4lab.flows.images import ConvolutionCoupling, OnChannels, Squeeze
from p4lab.p4 import MergeSchedule, P4Inv, convert, p4_modules

WIDE = torch.float64
CONTEXT = torch.eye(3, dtype=WIDE)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = WIDE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_glow(mixing: str = "p4inv", **options: Any) -> MultiScale:
    """A glow of images (2, 8, 4) in the midst of training, with a context of length 3."""
    flow = glow((2, 8, 4), 2, 2, mixing, hidden=6, context=3, seed=1, **{"dtype": WIDE, **options})
    disturb(flow)
    return flow


def check(layer: Callable[..., Any], inverse: Callable[..., Any], x: Tensor, *context: Tensor) -> None:
    """Compare log|det| with that of the Jacobian that autograd finds, and undo the layer."""
    y, logabsdet = layer(x, *context)
    back, other = inverse(y, *context)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(other, -logabsdet)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda a: layer(a[None], *context)[0][0].flatten(), x[i])
        expected = torch.linalg.slogdet(jacobian.reshape(x[i].numel(), -1)).logabsdet
        torch.testing.assert_close(logabsdet[i], expected)


BIJECTIONS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "p4inv": (lambda: OnChannels(P4Inv(3, rank=2, init=draw(3, 3), seed=0, dtype=WIDE)), (2, 3, 2, 3)),
    "plu": (lambda: OnChannels(METHODS["plu"].build(3, init=draw(3, 3), dtype=WIDE)), (2, 3, 2, 3)),
    "actnorm": (lambda: OnChannels(ActNorm(3, dtype=WIDE)), (2, 3, 2, 3)),
    "permutation": (lambda: OnChannels(Permutation([1, 2, 0])), (2, 3, 2, 3)),
    "squeeze": (Squeeze, (2, 2, 2, 4)),
    "squeeze-3": (lambda: Squeeze(3), (1, 2, 6, 3)),
    "periodic-even": (lambda: PeriodicConvolution(2, 3, init=draw(2, 2, 3, 3), dtype=WIDE), (2, 2, 5, 4)),
    "periodic-odd": (lambda: PeriodicConvolution(2, 3, init=draw(2, 2, 3, 3), dtype=WIDE), (2, 2, 4, 3)),
    "periodic-5": (lambda: PeriodicConvolution(1, 5, init=draw(1, 1, 5, 5), dtype=WIDE), (1, 1, 5, 6)),
}


@pytest.mark.parametrize(("make", "shape"), BIJECTIONS.values(), ids=BIJECTIONS)
def test_log_det_is_that_of_the_jacobian(make: Callable[[], Any], shape: tuple[int, ...]) -> None:
    layer = make()
    disturb(layer)
    check(layer, layer.inverse, draw(*shape, seed=1))


@pytest.mark.parametrize("mixing", ["p4inv", "plu", "dense", "permutation"])
def test_log_det_of_a_glow_is_that_of_its_jacobian(mixing: str) -> None:
    flow = small_glow(mixing)
    check(flow, flow.inverse_with_logabsdet, draw(2, 2, 8, 4), CONTEXT[1])


def test_a_1_x_1_convolution_is_that_of_torch() -> None:
    layer, x = P4Inv(4, init="orthogonal", seed=0, dtype=WIDE), draw(2, 4, 3, 5)
    disturb(layer)
    expected = torch.nn.functional.conv2d(x, layer.weight[..., None, None], layer.bias)
    for memory in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(OnChannels(layer)(x.contiguous(memory_format=memory))[0], expected)


def test_a_periodic_convolution_moves_along_with_a_shifted_image() -> None:
    layer, x = PeriodicConvolution(2, init=draw(2, 2, 3, 3), dtype=WIDE), draw(1, 2, 5, 6)
    torch.testing.assert_close(layer(x.roll((2, 1), (-2, -1)))[0], layer(x)[0].roll((2, 1), (-2, -1)))


class BothWays(torch.nn.Module):
    """Returns what a layer makes of x, log|det|, and what it was made of."""

    def __init__(self, layer: PeriodicConvolution) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.layer(x), self.layer.inverse(x)[0]


def test_gradients_of_a_periodic_convolution() -> None:
    both = BothWays(PeriodicConvolution(2, init=draw(2, 2, 3, 3), dtype=WIDE))
    kernel, x = draw(2, 2, 3, 3).requires_grad_(), draw(1, 2, 3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda kernel, x: torch.func.functional_call(both, {"layer.kernel": kernel}, (x,)), (kernel, x)
    )


def test_a_singular_frequency_is_named() -> None:
    mean = PeriodicConvolution(1, init=torch.full((1, 1, 3, 3), 1 / 9, dtype=WIDE), dtype=WIDE)
    y, logabsdet = mean(draw(1, 1, 6, 6))
    assert float(logabsdet.detach()) < -100  # a mean over three pixels knows nothing of waves of that length
    with pytest.raises(SingularMatrixError, match="singular at a frequency of images of 6 x 6"):
        PeriodicConvolution(1, init=torch.zeros(1, 1, 3, 3, dtype=WIDE), dtype=WIDE).inverse(y)


# --- glow -------------------------------------------------------------------------------------------------------------


def test_flows_of_one_seed_start_as_the_same_function() -> None:
    x = draw(2, 1, 8, 8, dtype=torch.float32)
    first, *others = (glow((1, 8, 8), 2, 2, mixing, seed=3).log_prob(x) for mixing in ("swap", "p4inv", "plu", "dense"))
    for other in others:
        torch.testing.assert_close(other, first)


def test_p4_layers_of_a_glow_train_merge_and_fold_away() -> None:
    flow, x = small_glow(dtype=torch.float32), draw(16, 2, 8, 4, dtype=torch.float32)
    context = torch.eye(3)[torch.arange(16) % 3]
    flow.initialize(x, context)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    merges = MergeSchedule(flow, optimizer, every=2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = -flow.log_prob(x, context).mean()
        loss.backward()
        optimizer.step()
        merges.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 1
    z, _ = flow(x, context)
    assert float((flow.inverse(z, context) - x).detach().abs().max()) < 1e-4
    assert float(flow.penalty(strength=0.5).detach()) == 0  # no matrix is near to singular
    folded = flow.fold()
    assert all(isinstance(layer, FoldedLinear) for level in folded.linear_layers() for layer in level)
    torch.testing.assert_close(folded.log_prob(x, context), flow.log_prob(x, context), rtol=0, atol=1e-3)


def test_initialize_gives_channels_mean_0_and_variance_1() -> None:
    flow, x = small_glow("swap"), 5 + 3 * draw(32, 2, 8, 4)
    flow.initialize(x, CONTEXT[0])
    layers: Any = flow.levels[0]
    first = layers[0](Squeeze()(x)[0])[0]
    torch.testing.assert_close(first.mean((0, 2, 3)), torch.zeros(8, dtype=WIDE))
    torch.testing.assert_close(first.var((0, 2, 3), correction=0), torch.ones(8, dtype=WIDE))


def test_samples_depend_on_seed_context_and_temperature() -> None:
    flow = small_glow()

    def sample(context: int = 0, temperature: float = 1.0, seed: int = 0) -> Tensor:
        return flow.sample(3, CONTEXT[context], torch.Generator().manual_seed(seed), temperature)

    assert torch.equal(sample(), sample())
    for other in (sample(seed=1), sample(context=1), sample(temperature=0.5)):
        assert not torch.allclose(other, sample())
    z = flow.latent(4000, torch.Generator().manual_seed(0), 0.25, CONTEXT[0])
    assert abs(float(z.var()) - 0.25) < 0.01
    each = flow.sample(2, CONTEXT, torch.Generator().manual_seed(0))
    assert each.shape == (2, 3, 2, 8, 4)
    torch.testing.assert_close(each[0, 1], sample(context=1)[1])


def test_copies_states_transforms_and_empty_batches() -> None:
    flow, x = small_glow(), draw(2, 2, 8, 4)
    expected = flow.log_prob(x, CONTEXT[0])
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        assert torch.equal(other.log_prob(x, CONTEXT[0]), expected)
    fresh = glow((2, 8, 4), 2, 2, hidden=6, context=3, dtype=WIDE)
    fresh.load_state_dict(flow.state_dict())
    assert torch.equal(fresh.log_prob(x, CONTEXT[0]), expected)
    for each in (torch.vmap(flow.log_prob), flow.log_prob):
        torch.testing.assert_close(each(x, CONTEXT[:1].expand(2, 3)), expected)
    torch.testing.assert_close(flow.log_prob(x[0], CONTEXT[0]), expected[0])
    torch.testing.assert_close(flow.inverse(flow(x[0], CONTEXT[0])[0], CONTEXT[0]), x[0])
    assert flow.log_prob(x[:0], CONTEXT[:0]).shape == (0,)
    assert flow.sample(0, CONTEXT[0]).shape == (0, 2, 8, 4)
    periodic = PeriodicConvolution(2, dtype=WIDE)
    assert periodic.inverse(periodic(x[:0])[0])[0].shape == (0, 2, 8, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        pytest.param(lambda f, x: f.log_prob(x), OptionError, "takes a context and got none", id="none"),
        pytest.param(
            lambda f, x: f.log_prob(x, CONTEXT[:, :2]), ShapeError, r"\(3, 2\): expected \(..., 3\)", id="short"
        ),
        pytest.param(lambda f, x: Squeeze()(x[0]), ShapeError, r"expected \(N, C, H, W\)", id="one"),
        pytest.param(lambda f, x: OnChannels(P4Inv(2))(x[0]), ShapeError, r"a single image is x\[None\]", id="image"),
        pytest.param(
            lambda f, x: f.log_prob(x[..., :2], CONTEXT[0]), ShapeError, r"expected \(..., 2, 8, 4\)", id="size"
        ),
        pytest.param(lambda f, x: f.log_prob(x.float(), CONTEXT[0]), TypeError, "convert the input", id="dtype"),
        pytest.param(
            lambda f, x: f.sample(1, CONTEXT[0], temperature=0.0), OptionError, "temperature=0.0", id="temperature"
        ),
        pytest.param(lambda f, x: f.inverse(x, CONTEXT[0]), ShapeError, r"expected \(\.\.\., 64\)", id="latent"),
        pytest.param(lambda f, x: glow((1, 28, 28), 3), OptionError, "multiples of 8", id="levels"),
        pytest.param(lambda f, x: glow((1, 8, 8), blocks=0), OptionError, "blocks=0", id="blocks"),
        pytest.param(lambda f, x: glow((1, 8, 8), hiden=8), OptionError, "did you mean 'hidden'", id="option"),
        pytest.param(lambda f, x: Squeeze()(x[:, :, :7]), ShapeError, "pad them to multiples of 2", id="squeeze"),
        pytest.param(lambda f, x: PeriodicConvolution(2, 5, dtype=WIDE)(x), ShapeError, "smaller", id="kernel"),
        pytest.param(lambda f, x: PeriodicConvolution(2, 2), OptionError, "kernel=2", id="even"),
        pytest.param(lambda f, x: ConvolutionCoupling(1), OptionError, "two halves", id="halves"),
        pytest.param(lambda f, x: OnChannels(torch.nn.ReLU()), OptionError, "does not tell its width", id="width"),
    ],
)
def test_errors_say_what_arrived(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(small_glow(), draw(2, 2, 8, 4))
    assert isinstance(caught.value, P4Error)


# --- starts that break weights ----------------------------------------------------------------------------------------


def singular_step(mixing: str) -> tuple[MultiScale, torch.optim.Optimizer, Any]:
    """Take a step after which W of a 1 x 1 convolution is singular: the first batch is not standardized.

    For W = 1 the gradient of the loss is the second moment of the channels minus 1. That of the first channel is 5
    here, and of the others 0, so that a step of 1/4 leads from diag(1, 1, 1, 1) to diag(0, 5/4, 5/4, 5/4).
    """
    flow = MultiScale((1, 4, 4), [[OnChannels(MIXINGS[mixing](4, init="identity", bias=False))]])
    optimizer = torch.optim.SGD(flow.parameters(), 0.25)
    merges = MergeSchedule(flow, optimizer, every=1) if mixing == "p4inv" else None
    x = torch.zeros(2, 1, 4, 4)
    x[0, :, ::2, ::2], x[1, :, ::2, ::2] = 1.0, 3.0
    train(flow, optimizer, merges, x)
    return flow, optimizer, merges


def train(flow: MultiScale, optimizer: torch.optim.Optimizer, merges: Any, x: Tensor) -> float:
    optimizer.zero_grad()
    loss = -flow.log_prob(x).mean() / 4  # a mean over the pixels that W sees
    loss.backward()
    optimizer.step()
    if merges is not None:
        merges.step()
    return float(loss.detach())


def test_a_start_that_ends_dense_convolutions_is_survived_by_p4inv() -> None:
    # openai/glow, issue 40: "Input is not invertible".
    batches = [draw(8, 1, 4, 4, seed=i, dtype=torch.float32) for i in range(20)]
    flow, optimizer, _ = singular_step("dense")
    with pytest.raises(RuntimeError, match="singular"):
        flow.inverse(draw(2, 16, dtype=torch.float32))
    losses = [train(flow, optimizer, None, x) for x in batches]
    assert not torch.tensor(losses).isfinite().any()

    flow, optimizer, merges = singular_step("p4inv")
    losses = [train(flow, optimizer, merges, x) for x in batches]
    assert torch.tensor(losses[5:]).isfinite().all()
    x = batches[0]
    assert float((flow.inverse(flow(x)[0]) - x).detach().abs().max()) < 1e-4
    assert torch.isfinite(flow.log_prob(x)).all()


@pytest.mark.parametrize("mixing", MIXINGS)
def test_every_mixing_makes_a_glow(mixing: str) -> None:
    flow = glow((1, 8, 8), levels=1, blocks=1, mixing=mixing, hidden=4, seed=0)
    x = torch.randn(2, 1, 8, 8)
    z, logabsdet = flow(x)
    back, other = flow.inverse_with_logabsdet(z)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)
    torch.testing.assert_close(other, -logabsdet, rtol=0, atol=1e-3)


def test_layers_of_another_context_or_width_are_refused_when_a_flow_is_made() -> None:
    with pytest.raises(OptionError, match="with a context of 3"):
        MultiScale((1, 4, 4), [[ConvolutionCoupling(4, 8, context=3, seed=0)]])
    with pytest.raises(OptionError, match="of 6 channels"):
        MultiScale((1, 4, 4), [[ConvolutionCoupling(6, 8, seed=0)]])
    with pytest.raises(OptionError, match="Flow is no layer of points"):
        OnChannels(Flow([P4Inv(4, seed=0)]))


def test_converted_couplings_fold_with_the_flow() -> None:
    flow = glow((1, 4, 4), levels=1, blocks=1, hidden=4, seed=0)
    disturb(flow)
    convert(flow, "spectrum", targets=torch.nn.Conv2d, seed=0)
    plain, x = flow.fold(), torch.randn(2, 1, 4, 4)
    assert not p4_modules(plain)
    torch.testing.assert_close(plain.log_prob(x), flow.log_prob(x))
