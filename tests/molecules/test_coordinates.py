"""Coordinates of alanine dipeptide: meaning of the columns, both directions, volume, permutations, validity, state."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from p4lab.errors import DtypeError, OptionError, P4Error, ShapeError
from p4lab.molecules import dataset
from p4lab.molecules.coordinates import Coordinates
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.packages import package
from p4lab.molecules.zmatrix import Internal, ZMatrix

MOLECULE = Molecule.from_sequence("A")

CIRCULAR, COLUMNS = MOLECULE.graph.circular, MOLECULE.columns
METHYLS = [one.moved for one in MOLECULE.rotors]
ROW_OF = {row[0]: row for row in MOLECULE.graph.rows}


def frames(n: int, seed: int = 0) -> Tensor:
    """Frames near a minimum, with the five circular torsions anywhere, turned and shifted."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    zmatrix = ZMatrix(MOLECULE.graph.rows)
    bonds, angles, torsions = (part.expand(n, -1).clone() for part in zmatrix.internal(MOLECULE.start[None]))
    torsions += 0.1 * normal(*torsions.shape)
    for column, row in enumerate(MOLECULE.graph.rows[3:]):
        if row[0] in CIRCULAR:
            torsions[:, column] = 2 * math.pi * torch.rand(n, generator=generator, dtype=torch.float64) - math.pi
    x = zmatrix.cartesian(
        Internal(bonds + 0.003 * normal(*bonds.shape), angles + 0.05 * normal(*angles.shape), torsions)
    )
    rotation = torch.linalg.qr(normal(n, 3, 3)).Q
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    return x @ rotation + normal(n, 1, 3)


def cis(x: Tensor) -> Tensor:
    """The frame with all that comes after the second amide bond turned by half a turn about it."""
    turned = x.clone()
    axis = torch.nn.functional.normalize(x[16] - x[14], dim=0)
    arm = x[17:] - x[16]
    turned[17:] = x[16] + 2 * (arm @ axis)[:, None] * axis - arm
    return turned


def same(y: Tensor, other: Tensor, atol: float) -> bool:
    """Whether coordinates are equal, the circular ones modulo 2 pi."""
    difference = y - other
    turns = torch.remainder(difference[:, :5] + math.pi, 2 * math.pi) - math.pi
    return bool(turns.abs().max() < atol and difference[:, 5:].abs().max() < atol)


@pytest.fixture(scope="module")
def training() -> Tensor:
    return frames(400)


@pytest.fixture(scope="module")
def coordinates(training: Tensor) -> Coordinates:
    return Coordinates.fit(MOLECULE, training)


# --- What the columns are ---


def test_there_are_5_circular_and_55_other_columns_each_once(coordinates: Coordinates) -> None:
    assert (coordinates.dim, coordinates.circular) == (60, 5)
    assert len(COLUMNS) == len(set(COLUMNS)) == 60
    assert {kind: sum(column[0] == kind for column in COLUMNS) for kind in ("bond", "angle", "torsion")} == {
        "bond": 21, "angle": 20, "torsion": 19
    }  # fmt: skip


def test_circular_columns_are_phi_psi_and_methyls_as_mdtraj_has_them(coordinates: Coordinates) -> None:
    mdtraj = package("mdtraj")
    x = frames(100, seed=1)
    y, _ = coordinates.encode(x)
    trajectory = mdtraj.Trajectory(x.numpy(), mdtraj.Topology.from_openmm(MOLECULE.topology))
    rows = [MOLECULE.torsions["phi"], MOLECULE.torsions["psi"], *(ROW_OF[hydrogens[0]] for hydrogens in METHYLS)]
    expected = torch.from_numpy(mdtraj.compute_dihedrals(trajectory, rows)).double()
    difference = torch.remainder(y[:, :5] - expected + math.pi, 2 * math.pi) - math.pi
    assert difference.abs().max() < 1e-4  # mdtraj computes in float32
    # mdtraj finds phi and psi by the names of the atoms.
    assert mdtraj.compute_phi(trajectory)[0].tolist() == [list(MOLECULE.torsions["phi"])]
    assert mdtraj.compute_psi(trajectory)[0].tolist() == [list(MOLECULE.torsions["psi"])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_circular_columns_lie_in_the_half_open_interval(coordinates: Coordinates, dtype: torch.dtype) -> None:
    near = torch.tensor([0.0, 1e-16, 1e-9, 1e-7, 3e-7, 1e-3], dtype=torch.float64)
    y = torch.zeros(2 * len(near), 60, dtype=torch.float64)
    y[:, :5] = torch.cat([math.pi - near, near - math.pi])[:, None]
    again, _ = coordinates.encode(coordinates.decode(y)[0].to(dtype))
    assert again[:, :5].min() >= -math.pi - 1e-6 * (dtype == torch.float32)  # float32 has no pi
    assert torch.all(again[:, :5] < torch.tensor(math.pi, dtype=dtype))


def test_narrow_columns_are_standardized_over_all_permutations(coordinates: Coordinates, training: Tensor) -> None:
    y, _ = coordinates.encode(training)
    shifts = torch.tensor(list(itertools.product(range(3), repeat=3)))
    turned = torch.cat([coordinates.permute(y, shift.expand(len(y), 3)) for shift in shifts])
    assert turned[:, 5:].mean(0).abs().max() < 1e-9
    assert (turned[:, 5:].std(0) - 1).abs().max() < 2e-3  # Bessel's correction


def test_torsions_about_pi_are_not_torn(coordinates: Coordinates, training: Tensor) -> None:
    omega = dataset.dihedral(training, (1, 4, 6, 8))
    assert omega.min() < -3
    assert omega.max() > 3  # both ends of the interval occur
    y, _ = coordinates.encode(training)
    assert y[:, 5:].abs().max() < 6
    torsions = [at - 5 for at, (kind, _) in enumerate(COLUMNS) if kind == "torsion" and at >= 5]
    assert coordinates.std[torsions].max() < 0.3


def test_the_frames_that_come_with_p4lab_are_narrow() -> None:
    x = dataset.load().x[::20]
    y, logabsdet = Coordinates.fit(MOLECULE, x).encode(x)
    assert y.dtype == torch.float32
    assert y[:, 5:].abs().max() < 8
    assert logabsdet.isfinite().all()


# --- Both directions ---


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=str)
def test_coordinates_come_back(coordinates: Coordinates, dtype: torch.dtype, atol: float) -> None:
    y, logabsdet = coordinates.encode(frames(200, seed=2).to(dtype))
    x, back = coordinates.decode(y)
    again, _ = coordinates.encode(x)
    assert {tensor.dtype for tensor in (y, logabsdet, x, back)} == {dtype}
    assert same(again, y, atol)
    assert (logabsdet + back).abs().max() < atol * 10  # it is about 300


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_positions_come_back_in_the_same_hand(coordinates: Coordinates, dtype: torch.dtype, atol: float) -> None:
    x = frames(200, seed=2)
    back = coordinates.decode(coordinates.encode((x - x.mean(1, keepdim=True)).to(dtype))[0])[0].double()
    assert (torch.cdist(back, back) - torch.cdist(x, x)).abs().max() < atol
    assert MOLECULE.valid(back).all()


def test_a_circular_torsion_may_be_any_number(coordinates: Coordinates) -> None:
    y, _ = coordinates.encode(frames(10))
    far = y.clone()
    far[:, :5] += 2 * math.pi * torch.tensor([1.0, -1, 2, -3, 0], dtype=torch.float64)
    for part, expected in zip(coordinates.decode(far), coordinates.decode(y), strict=True):
        assert torch.allclose(part, expected, atol=1e-9)


def test_log_volume_is_that_of_autograd(coordinates: Coordinates) -> None:
    def move(numbers: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        x = coordinates.decode(numbers[None])[0][0]
        return (x + torch.linalg.cross(turn.expand_as(x), x) + shift).flatten()

    x = frames(4, seed=3)
    y, logabsdet = coordinates.encode(x)
    rigid = torch.zeros(3, dtype=torch.float64)
    for numbers, own in zip(y, logabsdet, strict=True):
        jacobian = torch.cat(torch.autograd.functional.jacobian(move, (numbers, rigid, rigid)), 1)
        assert jacobian.shape == (66, 66)
        assert abs(torch.linalg.slogdet(jacobian).logabsdet + own) < 1e-8


def test_one_way_is_the_inverse_jacobian_of_the_other(coordinates: Coordinates) -> None:
    y, _ = coordinates.encode(frames(1, seed=4))
    x, _ = coordinates.decode(y)
    down = torch.autograd.functional.jacobian(lambda numbers: coordinates.decode(numbers[None])[0].flatten(), y[0])
    up = torch.autograd.functional.jacobian(lambda atoms: coordinates.encode(atoms)[0][0], x).reshape(60, 66)
    assert torch.allclose(up @ down, torch.eye(60, dtype=torch.float64), atol=1e-8)


def test_gradients(coordinates: Coordinates) -> None:
    x = MOLECULE.start[None].requires_grad_()
    assert torch.autograd.gradcheck(coordinates.encode, x, eps=1e-7, atol=1e-3)
    y = coordinates.encode(x)[0].detach().requires_grad_()
    assert torch.autograd.gradcheck(coordinates.decode, y)


@pytest.mark.parametrize(("kind", "atom", "far"), [("bond", 11, -60.0), ("angle", 4, 40.0), ("torsion", 5, 60.0)])
def test_what_no_frame_has_weighs_nothing(coordinates: Coordinates, kind: str, atom: int, far: float) -> None:
    y = torch.zeros(2, 60, dtype=torch.float64)
    y[0, COLUMNS.index((kind, atom))] = far
    y.requires_grad_()
    x, logabsdet = coordinates.decode(y)
    assert x.isfinite().all()
    assert logabsdet[0] == -math.inf
    assert logabsdet[1].isfinite()
    (gradient,) = torch.autograd.grad(x.square().sum() + logabsdet.sum(), y)
    assert gradient.isfinite().all()


def test_atoms_in_one_place_are_told(coordinates: Coordinates) -> None:
    x = frames(2)
    x[0, 0] = x[0, 1]
    y, logabsdet = coordinates.encode(x)
    assert y.isfinite().all()
    assert logabsdet[0] == math.inf
    assert logabsdet[1].isfinite()


# --- Permutations of methyl hydrogens ---


@pytest.mark.parametrize("shifts", list(itertools.product(range(3), repeat=3)), ids=str)
def test_permuting_coordinates_is_permuting_atoms(coordinates: Coordinates, shifts: tuple[int, int, int]) -> None:
    x = frames(30, seed=5)
    order = list(range(len(MOLECULE)))
    for hydrogens, shift in zip(METHYLS, shifts, strict=True):
        for at, hydrogen in enumerate(hydrogens):
            order[hydrogen] = hydrogens[(at + shift) % 3]
    expected, volume = coordinates.encode(x[:, order])
    y, original = coordinates.encode(x)
    turned = coordinates.permute(y, torch.tensor(shifts).expand(30, 3))
    assert same(turned, expected, 1e-9)
    assert torch.allclose(volume, original, atol=1e-9)
    assert torch.allclose(coordinates.decode(turned)[1], -original, atol=1e-9)
    assert torch.all((turned[:, :5] >= -math.pi) & (turned[:, :5] < math.pi))
    assert any(shifts) == (not same(turned, y, 1e-3))


def test_permutations_keep_volume_and_come_back_after_three(coordinates: Coordinates) -> None:
    y, _ = coordinates.encode(frames(3, seed=6))
    shifts = torch.tensor([[1, 0, 0], [1, 2, 1], [2, 2, 1]])
    for numbers, shift in zip(y, shifts, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda row, shift=shift: coordinates.permute(row[None], shift[None])[0], numbers
        )
        # Columns of one methyl group have the same deviation, so that the determinant is 1 in y too.
        assert abs(torch.linalg.slogdet(jacobian).logabsdet) < 1e-9
    thrice = y
    for _ in range(3):
        thrice = coordinates.permute(thrice, shifts)
    assert same(thrice, y, 1e-9)


def test_augmentation_draws_all_27_and_repeats_from_the_seed(coordinates: Coordinates) -> None:
    one, _ = coordinates.encode(frames(1, seed=7))
    y = one.expand(2000, -1)
    drawn_y = coordinates.augment(y, torch.Generator().manual_seed(0))
    assert torch.equal(drawn_y, coordinates.augment(y, torch.Generator().manual_seed(0)))
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))
    table = coordinates.permute(one.expand(27, -1), every)
    distance, drawn = torch.cdist(drawn_y, table).min(1)
    assert distance.max() < 1e-5
    counts = torch.bincount(drawn, minlength=27)
    assert counts.min() > 40  # 74 are expected
    assert counts.max() < 110


def test_augmentation_leaves_the_other_columns_alone(coordinates: Coordinates) -> None:
    y, _ = coordinates.encode(frames(50, seed=8))
    hydrogens = {hydrogen for group in METHYLS for hydrogen in group}
    others = [at for at, (_, atom) in enumerate(COLUMNS) if atom not in hydrogens]
    assert len(others) == 60 - 27
    assert torch.allclose(coordinates.augment(y, torch.Generator().manual_seed(1))[:, others], y[:, others], atol=1e-12)


# --- Validity, fitting, state ---


def test_valid_frames_are_of_the_l_form_with_trans_amides_and_finite() -> None:
    x = MOLECULE.start
    broken = x.clone()
    broken[20, 1] = math.nan
    mirrored = x * torch.tensor([1.0, 1.0, -1.0])
    assert MOLECULE.valid(torch.stack([x, mirrored, cis(x), broken])).tolist() == [True, False, False, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_state_comes_back(coordinates: Coordinates, dtype: torch.dtype, tmp_path: Any) -> None:
    torch.save(coordinates.state_dict(), tmp_path / "coordinates.pt")
    loaded = Coordinates(MOLECULE)
    loaded.load_state_dict(torch.load(tmp_path / "coordinates.pt"))
    assert set(loaded.state_dict()) == {"mean", "std", "center"}
    x = frames(5).to(dtype)
    for part, expected in zip(loaded.encode(x), coordinates.encode(x), strict=True):
        assert torch.equal(part, expected)


def test_copies_and_casts_work(coordinates: Coordinates) -> None:
    x = frames(5)
    copied = copy.deepcopy(coordinates).float()
    assert same(copied.encode(x)[0], coordinates.encode(x)[0], 1e-4)
    assert copied.encode(x.float())[0].dtype == torch.float32


def test_without_a_fit_the_numbers_are_bare(training: Tensor) -> None:
    bare = Coordinates(MOLECULE)
    y, logabsdet = bare.encode(training)
    internal = bare.zmatrix.internal(training)
    assert torch.equal(y[:, 5:26], internal.bonds)
    assert torch.equal(-logabsdet, bare.zmatrix.logabsdet(internal))
    assert same(bare.encode(bare.decode(y)[0])[0], y, 1e-9)


def test_fitting_float32_frames_is_done_in_float64(coordinates: Coordinates, training: Tensor) -> None:
    fitted = Coordinates.fit(MOLECULE, training.float())
    assert fitted.mean.dtype == torch.float64
    assert (fitted.std / coordinates.std - 1).abs().max() < 1e-3
    assert not fitted.std.requires_grad


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(lambda x: x[0], ShapeError, r"\(22, 3\).*x\[None\]", id="one-frame"),
        pytest.param(lambda x: x[:, :21], ShapeError, r"\(10, 21, 3\).*\(B, 22, 3\)", id="an-atom-less"),
        pytest.param(lambda x: x.long(), DtypeError, "int64", id="integers"),
        pytest.param(lambda x: x[:1], OptionError, "1 frames: expected at least 2", id="too-few"),
        pytest.param(lambda x: x[:1].expand(5, -1, -1), OptionError, "the same in all 5 frames", id="all-the-same"),
        pytest.param(lambda x: torch.cat([x, cis(x[0])[None]]), OptionError, "1 of 11 frames.*cis amide", id="cis"),
        pytest.param(lambda x: -x, OptionError, "10 of 10 frames.*D form", id="mirrored"),
        pytest.param(lambda x: x / torch.zeros(1), OptionError, "10 of 10 frames.*NaN", id="not-finite"),
    ],
)
def test_bad_training_frames_are_refused_by_name(change: Any, error: type[P4Error], message: str) -> None:
    with pytest.raises(error, match=message):
        Coordinates.fit(MOLECULE, change(frames(10)))


@pytest.mark.parametrize(
    ("method", "given", "error", "message"),
    [
        pytest.param("encode", (torch.zeros(22, 3),), ShapeError, r"\(B, 22, 3\)", id="encode-one-frame"),
        pytest.param("decode", (torch.zeros(60),), ShapeError, r"\(60,\).*y\[None\]", id="decode-one-sample"),
        pytest.param("decode", (torch.zeros(2, 66),), ShapeError, r"\(2, 66\).*\(B, 60\)", id="decode-positions"),
        pytest.param("decode", (torch.zeros(2, 60).half(),), DtypeError, "float16", id="decode-half"),
        pytest.param("augment", (torch.zeros(2, 59),), ShapeError, r"\(2, 59\)", id="augment-width"),
        pytest.param(
            "permute", (torch.zeros(2, 60), torch.zeros(2, 2).long()), ShapeError, r"\(2, 2\).*\(2, 3\)", id="shifts"
        ),
    ],
)
def test_bad_input_is_refused_by_name(
    coordinates: Coordinates, method: str, given: Any, error: type[P4Error], message: str
) -> None:
    with pytest.raises(error, match=message):
        getattr(coordinates, method)(*given)
