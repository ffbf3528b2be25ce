"""The digits of 28 x 28 pixels: their split, the map to the model's coordinates, and the flow that comes with p4lab."""

from pathlib import Path

import pytest
import torch

from p4lab.errors import DataFileError, OptionError, ShapeError
from p4lab.flows import FoldedLinear, glow
from p4lab.problems import trained_glow
from p4lab.problems.images import CLASSES, SHAPE, Batch, Images, read_digits, to_levels


@pytest.fixture(scope="module")
def digits() -> Images:
    return Images(test=20)


def test_the_split_is_fixed_and_has_as_many_digits_of_each_class(digits: Images) -> None:
    assert digits.train.shape == (4000, *SHAPE)
    assert digits.labels.bincount().tolist() == [400] * CLASSES
    whole = Images()
    assert whole.test.shape == (1000, *SHAPE)
    torch.testing.assert_close(whole.dequantized.x[:20], digits.dequantized.x)
    assert digits.dequantized.context.argmax(1).tolist() == [*range(CLASSES)] * 2
    pixels, _ = read_digits()
    both = torch.cat([digits.train, whole.test]).flatten(1)
    assert torch.equal(both.double().sum(0), pixels.flatten(1).double().sum(0))


def test_batches_are_dequantized_digits_of_their_class(digits: Images) -> None:
    batch, again = (digits.batch(50, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(batch.x, again.x)
    rows = zip(digits.train.flatten(1).tolist(), digits.labels.tolist(), strict=True)
    known = {tuple(row): label for row, label in rows}
    for image, context in zip(to_levels(batch.x), batch.context, strict=True):
        assert known[tuple(image.flatten().tolist())] == int(context.argmax())


def test_log_det_and_inverse_of_the_map(digits: Images) -> None:
    wide = Images(dtype=torch.float64, test=10)
    x = wide.dequantized.x[:1]
    y, logabsdet = wide.to_model(x)
    torch.testing.assert_close(wide.to_data(y), x)
    slope = torch.autograd.functional.jvp(lambda a: wide.to_model(a)[0], x, torch.ones_like(x))[1]
    torch.testing.assert_close(logabsdet, slope.log().sum()[None])


def test_bits_are_those_of_784_pixels(digits: Images) -> None:
    """A density that is uniform over grey levels has 8 bits; here a flow whose density is known."""
    flow = glow(SHAPE, 2, 1, hidden=2, context=CLASSES)
    y, logabsdet = digits.to_model(digits.dequantized.x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(y).sum((1, 2, 3))
    expected = -(normal + logabsdet).mean() / 784 / torch.tensor(2.0).log()
    assert digits.bits(flow) == pytest.approx(float(expected), rel=1e-5)
    assert digits.loss(flow, Batch(*digits.dequantized)).requires_grad


def test_errors(digits: Images, tmp_path: Path) -> None:
    for test in (0, 15, 1010):
        with pytest.raises(OptionError, match=f"test={test}: expected a multiple of 10"):
            Images(test=test)
    with pytest.raises(ShapeError, match=r"expected \(n, 1, 28, 28\)"):
        digits.to_model(torch.zeros(1, 28, 28))


# --- the flow that comes with p4lab -----------------------------------------------------------------------------------


def test_a_saved_flow_is_the_same_flow_and_small(tmp_path: Path) -> None:
    flow, path = glow(SHAPE, 2, 1, hidden=2, context=CLASSES), tmp_path / "flow.pt"
    trained_glow.save(path, flow, {"levels": 2, "blocks": 1, "hidden": 2}, {"bits": 1.5})
    loaded, figures = trained_glow.load(path)
    assert figures == {"bits": 1.5}
    x, context = torch.zeros(2, *SHAPE), torch.eye(CLASSES)[:2]
    torch.testing.assert_close(loaded.log_prob(x, context), flow.log_prob(x, context))
    for content, message in ((b"no", "cannot be read"), (None, "cannot be read")):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(DataFileError, match=message):
            trained_glow.load(path)
    torch.save({"format": "other"}, path)
    with pytest.raises(DataFileError, match="not a flow of digits"):
        trained_glow.load(path)


def test_the_shipped_flow_has_the_bits_that_its_file_says() -> None:
    assert trained_glow.SHIPPED.stat().st_size < 3e6
    flow, figures = trained_glow.load()
    assert all(isinstance(layer, FoldedLinear) for level in flow.linear_layers() for layer in level)
    assert Images().bits(flow) == pytest.approx(figures["bits"], abs=2e-3)
    y, context = Images(test=10).to_model(Images(test=10).dequantized.x)[0], torch.eye(CLASSES)
    assert float((flow.inverse(flow(y, context)[0], context) - y).detach().abs().max()) < 2e-4
