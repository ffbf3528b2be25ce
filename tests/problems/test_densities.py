"""The densities of the plane: mass, samples, pieces, and the problem made from them."""

import math

import pytest
import torch
from torch import Tensor

from p4lab.errors import OptionError, ShapeError
from p4lab.problems.densities import DENSITIES, Density2D, DensityProblem, density, grid_density
from p4lab.problems.picture_density import face
from p4lab.problems.shapes import Curves

NAMES = tuple(DENSITIES)
SAMPLES = 20_000
WIDE = (-5.0, 5.0, -5.0, 5.0)


class Normal:
    """A flow that does nothing: its density is N(0, I)."""

    def log_prob(self, x: Tensor) -> Tensor:
        return -x.square().sum(-1) / 2 - math.log(2 * math.pi)

    def inverse(self, z: Tensor) -> Tensor:
        return z


@pytest.fixture(scope="module", params=NAMES)
def truth(request: pytest.FixtureRequest) -> Density2D:
    return density(request.param)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def integral(truth: Density2D, side: int, bounds: tuple[float, float, float, float] = WIDE) -> float:
    x0, x1, y0, y1 = bounds
    area = (x1 - x0) * (y1 - y0) / side**2
    x = x0 + (torch.arange(side, dtype=torch.float64) + 0.5) * (x1 - x0) / side
    y = y0 + (torch.arange(side, dtype=torch.float64) + 0.5) * (y1 - y0) / side
    return truth.log_prob(torch.cartesian_prod(x, y)).exp().sum().item() * area


# --- all of them ------------------------------------------------------------------------------------------------------


def test_integrates_to_one(truth: Density2D) -> None:
    # Cells of 0.04 end at the edges of the board's squares, and are small beside the width of all curves.
    assert integral(truth, side=250) == pytest.approx(1, abs=1e-6 if truth.name != "pinwheel" else 1e-4)


def test_samples_follow_the_density(truth: Density2D) -> None:
    x = truth.sample(SAMPLES, generator())
    side, fine = 20, 10
    x0, x1, y0, y1 = truth.bounds
    cells = truth.grid(side * fine)
    mass = truth.log_prob(cells).exp() * truth.cell_area(side * fine)
    expected = mass.view(side, fine, side, fine).sum((1, 3)) * SAMPLES
    column = ((x[:, 0] - x0) / (x1 - x0) * side).floor().long()
    row = ((y1 - x[:, 1]) / (y1 - y0) * side).floor().long()
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    counts = torch.zeros(side * side).index_add_(0, (row * side + column)[inside], torch.ones(int(inside.sum())))
    used = expected.flatten() > 8
    chi_squared = ((counts - expected.flatten()).square() / expected.flatten())[used].sum().item()
    degrees = int(used.sum())
    assert degrees > 15
    # The variance of chi squared is twice its degrees of freedom: five standard deviations.
    assert abs(chi_squared - degrees) < 5 * math.sqrt(2 * degrees)
    assert inside.double().mean() > 0.999


def test_pieces_sum_to_the_density(truth: Density2D) -> None:
    x = truth.sample(200, generator())
    pieces = truth.piece_log_prob(x)
    torch.testing.assert_close(pieces.exp().sum(-1), truth.log_prob(x).exp())
    assert truth.piece_shares.shape == pieces.shape[-1:]
    assert truth.piece_shares.sum() == pytest.approx(1 - truth.level().outside, abs=1e-9)


def test_the_level_leaves_a_thousandth_outside(truth: Density2D) -> None:
    level = truth.level()
    # The board is flat, so that its level set is all of it; else it is the quantile.
    assert level.outside == pytest.approx(0.0 if truth.name == "checkerboard" else 0.001, abs=1e-4)
    fresh = truth.log_prob(truth.sample(SAMPLES, generator(1)))
    assert (fresh < level.log_density).double().mean() == pytest.approx(level.outside, abs=1e-3)
    assert truth.level(0.5).log_density >= level.log_density


def test_dtype_shape_and_batches(truth: Density2D) -> None:
    x = truth.sample(12, generator())
    assert x.dtype == torch.float64
    single = truth.sample(12, generator(), torch.float32)
    assert torch.equal(single, x.float())
    values = truth.log_prob(single.view(3, 4, 2))
    assert values.shape == (3, 4)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.flatten(), truth.log_prob(single[:]))
    assert truth.sample(0, generator()).shape == (0, 2)
    assert truth.log_prob(torch.zeros(0, 2)).shape == (0,)


def test_same_generator_same_samples(truth: Density2D) -> None:
    assert torch.equal(truth.sample(9, generator()), truth.sample(9, generator()))
    assert not torch.equal(truth.sample(9, generator()), truth.sample(9, generator(1)))


def test_far_away_the_log_density_is_no_nan(truth: Density2D) -> None:
    far = truth.log_prob(torch.tensor([[0.0, 60.0], [-1e4, 3.0]]))
    assert not far.isnan().any()
    assert (far < -50).all()


def test_modes_lie_on_mass(truth: Density2D) -> None:
    if truth.modes is None:
        assert truth.name not in ("eight_gaussians", "checkerboard")
        return
    assert len(truth.modes.centres) == len(truth.piece_shares)
    assert (truth.log_prob(truth.modes.centres) >= truth.level().log_density).all()
    x = truth.sample(SAMPLES, generator())
    assert (torch.cdist(x, truth.modes.centres).amin(1) < truth.modes.radius).double().mean() > 0.998


def test_wrong_shape_is_named(truth: Density2D) -> None:
    with pytest.raises(ShapeError, match=r"\(4, 3\): expected \(\.\.\., 2\)"):
        truth.log_prob(torch.zeros(4, 3))


# --- exactness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two_moons", "swiss_roll", "spirals"])
def test_the_quadrature_has_converged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = density(name)
    assert isinstance(coarse, Curves)
    monkeypatch.setattr("p4lab.problems.shapes.PANEL", 0.7)
    fine = Curves(name, name, coarse.curves, coarse.noise, coarse.power)
    x = torch.cat([coarse.sample(500, generator()), 8 * torch.rand(1500, 2, generator=generator()).double() - 4])
    values, exact = coarse.log_prob(x), fine.log_prob(x)
    used = exact > math.log(1e-9)
    assert used.sum() > 800
    torch.testing.assert_close(values[used], exact[used], rtol=0, atol=1e-6)


def test_a_straight_curve_is_a_difference_of_error_functions() -> None:
    line = Curves("line", "Line", [lambda s: torch.stack([2 * s, torch.zeros_like(s)], -1)], noise=0.3)
    x = torch.randn(300, 2, generator=generator()).double()
    along = torch.special.ndtr(x[:, 0] / 0.3) - torch.special.ndtr((x[:, 0] - 2) / 0.3)
    across = (-(x[:, 1] ** 2) / (2 * 0.09)).exp() / math.sqrt(2 * math.pi * 0.09)
    torch.testing.assert_close(line.log_prob(x).exp(), along / 2 * across, rtol=1e-7, atol=1e-12)


def test_a_ring_agrees_with_the_curve_of_the_same_circle() -> None:
    ring = type(density("rings"))("ring", "Ring", (2.0,), 0.12)  # type: ignore[call-arg]
    circle = Curves(
        "circle", "", [lambda s: 2 * torch.stack([(2 * math.pi * s).cos(), (2 * math.pi * s).sin()], -1)], noise=0.12
    )
    x = ring.sample(500, generator())
    torch.testing.assert_close(ring.log_prob(x), circle.log_prob(x), rtol=0, atol=1e-7)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_a_drawing_has_its_first_row_at_the_top() -> None:
    drawing = grid_density([[1.0, 0.0], [0.0, 0.0]], bounds=(-1, 1, -1, 1))
    x = drawing.sample(2000, generator())
    assert drawing.log_prob(torch.tensor([-0.5, 0.5])) == pytest.approx(0.0)  # the peak of two tents of width 1
    torch.testing.assert_close(x.mean(0), torch.tensor([-0.5, 0.5], dtype=torch.float64), atol=0.05, rtol=0)
    assert drawing.grid(2)[0, 0].tolist() == [-0.5, 0.5]


def test_the_density_of_a_drawing_is_bilinear() -> None:
    values = torch.rand(5, 7, generator=generator(), dtype=torch.float64)
    drawing = grid_density(values, bounds=(0, 7, 0, 5))  # cells of area 1
    at_centres = drawing.log_prob(torch.cartesian_prod(torch.arange(7) + 0.5, 4.5 - torch.arange(5)).double()).exp()
    torch.testing.assert_close(at_centres.view(7, 5).t(), values / values.sum())
    between = drawing.log_prob(torch.tensor([1.0, 4.5], dtype=torch.float64)).exp()
    torch.testing.assert_close(between, values[0, :2].mean() / values.sum())


def test_a_drawing_integrates_to_one_at_any_scale_and_shape() -> None:
    drawing = grid_density(1e30 * torch.rand(3, 4, generator=generator()), bounds=(-2, 1, 0, 2))
    # It fades out over one cell beyond its bounds; the midpoint rule is exact but for the cells at the kinks.
    assert integral(drawing, 480, (-3.5, 2.5, -2.0, 4.0)) == pytest.approx(1, abs=1e-3)
    assert not torch.isfinite(drawing.log_prob(torch.tensor([[1.6, 1.0], [0.0, -0.8]]))).any()


@pytest.mark.parametrize("kind", ["array", "bytes", "list"])
def test_a_drawing_may_be_anything_like_an_array(kind: str) -> None:
    values = face(16)
    source = {"array": values.numpy(), "bytes": (255 * values).round().to(torch.uint8), "list": values.tolist()}[kind]
    x = torch.tensor([[0.0, 1.0]])
    log_prob = grid_density(source, bounds=(-1, 1, -1, 1)).log_prob(x)
    torch.testing.assert_close(log_prob, grid_density(values, bounds=(-1, 1, -1, 1)).log_prob(x), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("values", "bounds", "error", "message"),
    [
        pytest.param([[0.0, 0.0]], (0, 1, 0, 1), OptionError, "draw something first", id="empty"),
        pytest.param([[1.0, -1.0]], (0, 1, 0, 1), OptionError, "at least 0", id="negative"),
        pytest.param([[1.0, math.nan]], (0, 1, 0, 1), OptionError, "finite", id="nan"),
        pytest.param([1.0, 2.0], (0, 1, 0, 1), ShapeError, r"\(2,\): expected \(rows, columns\)", id="one-row"),
        pytest.param(torch.zeros(0, 3), (0, 1, 0, 1), ShapeError, r"\(0, 3\)", id="no-rows"),
        pytest.param([[1.0]], (1, 0, 0, 1), OptionError, "x0 < x1", id="bounds"),
    ],
)
def test_a_bad_drawing_is_named(values: object, bounds: tuple[float, ...], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        grid_density(values, bounds)  # type: ignore[arg-type]


# --- the problem ------------------------------------------------------------------------------------------------------


def test_unknown_name() -> None:
    with pytest.raises(OptionError, match="density 'moons' is not known: choose one of eight_gaussians"):
        density("moons")


def test_negative_number_of_samples() -> None:
    with pytest.raises(OptionError, match="n=-1"):
        density("rings").sample(-1, generator())


def test_the_loss_is_entropy_plus_divergence() -> None:
    problem = DensityProblem(density("eight_gaussians"), dtype=torch.float64)
    assert problem.test.shape == (4096, 2)
    # KL to N(0, I) by another road: H(p, q) = log 2 pi + E|x|^2 / 2 with E|x|^2 = 2.8^2 + 2 * 0.2^2.
    cross_entropy = math.log(2 * math.pi) + (2.8**2 + 2 * 0.2**2) / 2
    assert problem.test_loss(Normal()).item() == pytest.approx(cross_entropy, abs=0.05)
    # The modes hardly overlap: H = log 8 + log(2 pi e sigma^2).
    assert problem.entropy == pytest.approx(math.log(8) + math.log(2 * math.pi * math.e * 0.04), abs=0.05)


def test_batches_and_seeds() -> None:
    problem, other = (DensityProblem(density("rings"), seed) for seed in (0, 1))
    assert not torch.equal(problem.test, other.test)
    x = problem.batch(10, generator())
    assert x.shape == (10, 2)
    assert x.dtype == torch.float32
    assert torch.equal(x, other.batch(10, generator()))


def test_pictures_show_samples_and_log_density() -> None:
    problem = DensityProblem(density("two_moons"), side=8)
    z = torch.randn(5, 2, generator=generator())
    pictures = problem.pictures(Normal(), z)
    assert torch.equal(pictures["samples"], z)
    assert pictures["samples"].data_ptr() != z.data_ptr()
    torch.testing.assert_close(pictures["log_density"][0, 0], Normal().log_prob(torch.tensor([-3.5, 3.5])))
    assert problem.truth().shape == pictures["log_density"].shape == (8, 8)
