"""Internal coordinates: values and signs, both directions, volume, gradients, singular geometries, bad rows."""

from __future__ import annotations

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from p4lab.errors import DtypeError, OptionError, P4Error, ShapeError
from p4lab.molecules.molecule import Molecule
from p4lab.molecules.packages import package
from p4lab.molecules.zmatrix import Internal, ZMatrix

MOLECULE = Molecule.from_sequence("A")

CHAIN = [(0, -1, -1, -1), (1, 0, -1, -1), (2, 1, 0, -1), (3, 2, 1, 0), (4, 3, 2, 1)]
MOLECULES = {
    "three-atoms": CHAIN[:3],
    "chain": CHAIN,
    "third-bonded-to-first": [*CHAIN[:2], (2, 0, 1, -1), (3, 0, 1, 2)],
    "star-of-siblings": [*CHAIN[:2], (2, 0, 1, -1), (3, 0, 1, 2), (4, 0, 1, 3), (5, 0, 1, 4)],
    # Rows of the deepest level stand between those of the first, atoms are not in order.
    "rows-not-by-level": [(2, -1, -1, -1), (5, 2, -1, -1), (0, 5, 2, -1), (1, 0, 5, 2), (4, 1, 0, 5), (3, 2, 5, 0)],
    "alanine": list(MOLECULE.graph.rows),
}
molecules = pytest.mark.parametrize("rows", MOLECULES.values(), ids=MOLECULES)


def positions(n_atoms: int, frames: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Atoms anywhere: all angles and torsions occur."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(frames, n_atoms, 3, generator=generator, dtype=torch.float64).to(dtype)


def wrapped(angle: Tensor) -> Tensor:
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def superposed(x: Tensor, onto: Tensor) -> Tensor:
    """Frames after the proper rotation and the translation that bring them closest to others."""
    centred, target = x - x.mean(1, keepdim=True), onto - onto.mean(1, keepdim=True)
    u, _, vh = torch.linalg.svd(centred.transpose(1, 2) @ target)
    u = torch.cat([u[:, :, :2], u[:, :, 2:] * torch.linalg.det(u @ vh)[:, None, None]], 2)
    return centred @ (u @ vh) + onto.mean(1, keepdim=True)


def log_volume(zmatrix: ZMatrix, internal: Internal) -> Tensor:
    """log|det| of one frame's positions by internal coordinates, rotation and translation, from autograd."""
    sizes = [part.shape[1] for part in internal]

    def move(q: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
        x = zmatrix.cartesian(Internal(*q[None].split(sizes, 1)))[0]
        return (x + torch.linalg.cross(turn.expand_as(x), x) + shift).flatten()

    rigid = torch.zeros(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(move, (torch.cat(internal, 1)[0], rigid, rigid))
    return torch.linalg.slogdet(torch.cat(jacobian, 1)).logabsdet


def test_values_and_signs_are_those_of_mdtraj() -> None:
    mdtraj = package("mdtraj")
    x = positions(len(MOLECULE), 50)
    frames = mdtraj.Trajectory(x.numpy(), mdtraj.Topology.from_openmm(MOLECULE.topology))
    internal = ZMatrix(MOLECULE.graph.rows).internal(x)
    bonds = torch.from_numpy(mdtraj.compute_distances(frames, [row[:2] for row in MOLECULE.graph.rows[1:]]))
    angles = torch.from_numpy(mdtraj.compute_angles(frames, [row[:3] for row in MOLECULE.graph.rows[2:]]))
    torsions = torch.from_numpy(mdtraj.compute_dihedrals(frames, list(MOLECULE.graph.rows[3:])))
    assert (internal.bonds - bonds).abs().max() < 1e-5  # mdtraj computes in float32
    assert (internal.angles - angles).abs().max() < 1e-4
    assert wrapped(internal.torsions - torsions).abs().max() < 1e-4


@molecules
def test_positions_come_back_up_to_a_proper_rigid_motion(rows: list[tuple[int, int, int, int]]) -> None:
    zmatrix = ZMatrix(rows)
    x = positions(len(rows), 20)
    back = zmatrix.cartesian(zmatrix.internal(x))
    assert (superposed(back, onto=x) - x).abs().max() < 1e-9


@molecules
def test_internal_coordinates_come_back(rows: list[tuple[int, int, int, int]]) -> None:
    zmatrix = ZMatrix(rows)
    internal = zmatrix.internal(positions(len(rows), 20))
    back = zmatrix.internal(zmatrix.cartesian(internal))
    assert (back.bonds - internal.bonds).abs().max() < 1e-12
    assert (back.angles - internal.angles).abs().max() < 1e-9
    assert torch.all(wrapped(back.torsions - internal.torsions).abs() < 1e-8)
    assert zmatrix.regular(internal).all()


@molecules
def test_log_volume_is_that_of_autograd(rows: list[tuple[int, int, int, int]]) -> None:
    zmatrix = ZMatrix(rows)
    x = positions(len(rows), 3)
    logabsdet = zmatrix.logabsdet(zmatrix.internal(x))
    expected = torch.stack([log_volume(zmatrix, zmatrix.internal(frame[None])) for frame in x])
    assert (logabsdet - expected).abs().max() < 1e-8


@st.composite
def random_rows(draw: Any) -> list[tuple[int, ...]]:
    """Rows of any molecule of 3 to 9 atoms."""
    order = draw(st.permutations(range(draw(st.integers(3, 9)))))
    rows = []
    for number, atom in enumerate(order):
        others = draw(st.permutations(order[:number]))[:3]
        rows.append((atom, *others, *[-1] * (3 - len(others))))
    return rows


@settings(max_examples=25)
@given(rows=random_rows(), seed=st.integers(0, 10_000))
def test_any_molecule_keeps_its_shape_and_volume(rows: list[tuple[int, ...]], seed: int) -> None:
    zmatrix = ZMatrix(rows)
    x = positions(len(rows), 1, seed=seed)
    internal = zmatrix.internal(x)
    assert (superposed(zmatrix.cartesian(internal), onto=x) - x).abs().max() < 1e-6
    # The determinant of a matrix this ill-conditioned (atoms may lie almost on a line) has few exact digits.
    assert abs(zmatrix.logabsdet(internal)[0] - log_volume(zmatrix, internal)) < 1e-4


def test_a_rigid_motion_changes_nothing_and_a_reflection_the_sign_of_torsions() -> None:
    zmatrix = ZMatrix(MOLECULE.graph.rows)
    x = positions(len(MOLECULE), 10)
    rotation = torch.linalg.qr(positions(3, 1)[0]).Q
    rotation = rotation * torch.linalg.det(rotation)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    original, moved, mirrored = (zmatrix.internal(frames) for frames in (x, x @ rotation + 3, x @ mirror))
    for part, expected in zip(moved, original, strict=True):
        assert torch.allclose(part, expected, atol=1e-9)
    assert torch.allclose(mirrored.angles, original.angles)
    assert torch.allclose(mirrored.torsions, -original.torsions)


def test_the_first_three_rows_fix_origin_axis_and_plane() -> None:
    zmatrix = ZMatrix(MOLECULES["rows-not-by-level"])
    x = zmatrix.cartesian(zmatrix.internal(positions(6, 10)))
    assert torch.equal(x[:, 2], torch.zeros(10, 3, dtype=torch.float64))
    assert torch.all(x[:, 5, 0] > 0)
    assert torch.equal(x[:, 5, 1:], torch.zeros(10, 2, dtype=torch.float64))
    assert torch.all(x[:, 0, 1] > 0)
    assert torch.equal(x[:, 0, 2], torch.zeros(10, dtype=torch.float64))


@molecules
def test_gradients_into_internal_coordinates(rows: list[tuple[int, int, int, int]]) -> None:
    zmatrix = ZMatrix(rows)
    assert torch.autograd.gradcheck(lambda x: tuple(zmatrix.internal(x)), positions(len(rows), 1).requires_grad_())


@molecules
def test_gradients_of_positions_and_volume(rows: list[tuple[int, int, int, int]]) -> None:
    zmatrix = ZMatrix(rows)
    parts = [part.detach().clone().requires_grad_() for part in zmatrix.internal(positions(len(rows), 1))]
    assert torch.autograd.gradcheck(lambda *q: zmatrix.cartesian(Internal(*q)), parts)
    assert torch.autograd.gradcheck(lambda r, a: zmatrix.logabsdet(Internal(r, a, parts[2])), parts[:2])


def singular(kind: str, dtype: torch.dtype) -> Tensor:
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 1], [2, 1, 1]], dtype=dtype)
    if kind == "bonded-atoms-coincide":
        x[3] = x[2]
    elif kind == "all-atoms-coincide":
        x[:] = 0.1
    elif kind == "angle-of-pi":
        x[2] = torch.tensor([2.0, 0, 0], dtype=dtype)
    elif kind == "angle-of-zero":
        x[2] = torch.tensor([-0.5, 0, 0], dtype=dtype)
    elif kind == "far-underflow":
        x = 1e-25 * x
    elif kind == "all-on-a-line":
        x = torch.arange(5, dtype=dtype)[:, None] * torch.tensor([0.0, 1, 0], dtype=dtype)
    return x[None]


SINGULAR = ["bonded-atoms-coincide", "all-atoms-coincide", "angle-of-pi", "angle-of-zero", "all-on-a-line"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", SINGULAR)
def test_a_singular_frame_is_told_and_makes_no_nan(kind: str, dtype: torch.dtype) -> None:
    zmatrix = ZMatrix(CHAIN)
    x = torch.cat([singular(kind, dtype), singular("none", dtype)]).requires_grad_()
    internal = zmatrix.internal(x)
    volume = zmatrix.logabsdet(internal)
    assert zmatrix.regular(internal).tolist() == [False, True]
    assert volume[0] == -math.inf
    assert volume[1].isfinite()
    back = zmatrix.cartesian(internal)
    assert back.isfinite().all()
    outcome = sum(part.sum() for part in internal) + back.square().sum() + volume.sum()
    (gradient,) = torch.autograd.grad(outcome, x)
    assert gradient.isfinite().all()
    # The regular frame beside it is not touched.
    alone = singular("none", dtype).requires_grad_()
    internal = zmatrix.internal(alone)
    outcome = sum(part.sum() for part in internal) + zmatrix.cartesian(internal).square().sum()
    (expected,) = torch.autograd.grad(outcome + zmatrix.logabsdet(internal).sum(), alone)
    assert torch.allclose(gradient[1:], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("distance", [1e-4, 1e-7, 1e-10, 1e-14, 1e-20, 1e-30])
@pytest.mark.parametrize("kind", [*SINGULAR, "far-underflow"])
def test_no_gradient_overflows_near_a_singular_frame(kind: str, distance: float, dtype: torch.dtype) -> None:
    zmatrix = ZMatrix(CHAIN)
    x = (singular(kind, dtype) + distance * positions(5, 8, dtype)).requires_grad_()
    internal = zmatrix.internal(x)
    (gradient,) = torch.autograd.grad(sum(part.sum() for part in internal), x)
    assert gradient.isfinite().all()
    parts = [part.detach().requires_grad_() for part in internal]
    back = zmatrix.cartesian(Internal(*parts))
    assert back.isfinite().all()
    assert all(part.isfinite().all() for part in torch.autograd.grad(back.square().sum(), parts))


@pytest.mark.parametrize(
    ("part", "value"),
    [("bonds", -0.1), ("bonds", 0.0), ("angles", -0.2), ("angles", 3.5), ("angles", math.nan), ("bonds", math.nan)],
)
def test_internal_coordinates_that_no_frame_has_are_told(part: str, value: float) -> None:
    zmatrix = ZMatrix(CHAIN)
    internal = zmatrix.internal(singular("none", torch.float64).expand(2, -1, -1))
    changed = getattr(internal, part).clone()
    changed[0, 1] = value
    leaves = [tensor.detach().requires_grad_() for tensor in internal._replace(**{part: changed})]
    assert zmatrix.regular(Internal(*leaves)).tolist() == [False, True]
    volume = zmatrix.logabsdet(Internal(*leaves))
    assert volume[0] == -math.inf
    assert volume[1].isfinite()
    for gradient in torch.autograd.grad(volume[1] + volume[0], leaves[:2]):
        assert torch.equal(gradient[0], torch.zeros_like(gradient[0]))
        assert gradient[1].isfinite().all()


def test_float32_stays_float32_and_is_as_good() -> None:
    zmatrix = ZMatrix(MOLECULE.graph.rows)
    exact = MOLECULE.start[None].expand(7, -1, -1) + 0.005 * positions(len(MOLECULE), 7)
    internal = zmatrix.internal(exact.float())
    back = zmatrix.cartesian(internal)
    volume = zmatrix.logabsdet(internal)
    assert {part.dtype for part in (*internal, back, volume)} == {torch.float32}
    assert (superposed(back.double(), onto=exact) - exact).abs().max() < 1e-5
    assert (volume - zmatrix.logabsdet(zmatrix.internal(exact))).abs().max() < 1e-3


def test_no_frames_are_fine() -> None:
    zmatrix = ZMatrix(CHAIN)
    internal = zmatrix.internal(torch.zeros(0, 5, 3))
    assert zmatrix.cartesian(internal).shape == (0, 5, 3)
    assert zmatrix.logabsdet(internal).shape == (0,)


def test_it_has_no_state_and_copies() -> None:
    zmatrix = ZMatrix(CHAIN)
    assert not zmatrix.state_dict()
    x = positions(5, 2)
    assert torch.equal(copy.deepcopy(zmatrix).internal(x).torsions, zmatrix.internal(x).torsions)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        pytest.param([], "0 rows", id="none"),
        pytest.param(CHAIN[:2], "2 rows", id="two-atoms"),
        pytest.param([*CHAIN[:3], (3, 2, 1)], "row 3 .* 3 numbers", id="too-few-numbers"),
        pytest.param([*CHAIN[:3], (3, 2, 1, 0, 0)], "row 3 .* 5 numbers", id="too-many-numbers"),
        pytest.param([(0, 1, -1, -1), *CHAIN[1:]], "row 0 .* 0 others", id="first-row-refers"),
        pytest.param([CHAIN[0], (1, -1, -1, -1), *CHAIN[2:]], "row 1 .* 1 others", id="second-row-without-bond"),
        pytest.param([*CHAIN[:2], (2, 1, -1, -1), *CHAIN[3:]], "row 2 .* 2 others", id="third-row-without-angle"),
        pytest.param([*CHAIN[:3], (3, 2, 1, -1)], "row 3 .* 3 others", id="fourth-row-without-torsion"),
        pytest.param([*CHAIN[:2], (2, -1, 0, -1), *CHAIN[3:]], "row 2", id="gap"),
        pytest.param([*CHAIN[:2], (2, 1, 0, -2), *CHAIN[3:]], "row 2", id="minus-two"),
        pytest.param([*CHAIN[:4], (4, 3, 2, 9)], "atom 9 is unknown", id="unknown-reference"),
        pytest.param([*CHAIN[:4], (7, 3, 2, 1)], "atom 7 is unknown", id="unknown-atom"),
        pytest.param([*CHAIN[:4], (4, 3, 2, 3)], "there twice", id="repeated-reference"),
        pytest.param([*CHAIN[:4], (4, 4, 2, 3)], "there twice", id="refers-to-itself"),
        pytest.param([*CHAIN[:4], (3, 2, 1, 0)], "atom 3 has a row already", id="atom-placed-twice"),
        pytest.param([*CHAIN[:3], (3, 4, 1, 0), (4, 2, 1, 0)], "atom 4 is not placed yet", id="out-of-order"),
        pytest.param([*CHAIN[:3], (3, 2, 1, 4), (4, 2, 1, 3)], "atom 4 is not placed yet.*cycle", id="cycle"),
    ],
)
def test_bad_rows_are_refused_by_name(rows: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ZMatrix(rows)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        pytest.param(torch.zeros(5, 3), ShapeError, r"\(5, 3\).*\(B, 5, 3\).*x\[None\]", id="one-frame"),
        pytest.param(torch.zeros(2, 4, 3), ShapeError, r"\(2, 4, 3\).*\(B, 5, 3\)", id="wrong-atoms"),
        pytest.param(torch.zeros(2, 5, 2), ShapeError, r"\(2, 5, 2\)", id="in-the-plane"),
        pytest.param(torch.zeros(2, 15), ShapeError, r"\(2, 15\)", id="flat"),
        pytest.param(torch.zeros(2, 5, 3, dtype=torch.long), DtypeError, "int64", id="integers"),
        pytest.param(torch.zeros(2, 5, 3).half(), DtypeError, "float16", id="half"),
    ],
)
def test_bad_frames_are_refused_by_name(x: Tensor, error: type[P4Error], message: str) -> None:
    with pytest.raises(error, match=message):
        ZMatrix(CHAIN).internal(x)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        pytest.param(((2, 5), (2, 3), (2, 2)), r"bonds of shape \(2, 5\)", id="bonds"),
        pytest.param(((2, 4), (2, 4), (2, 2)), r"angles of shape \(2, 4\)", id="angles"),
        pytest.param(((2, 4), (2, 3), (3, 2)), r"torsions of shape \(3, 2\)", id="batch"),
        pytest.param(((4,), (3,), (2,)), r"bonds of shape \(4,\)", id="no-batch"),
    ],
)
@pytest.mark.parametrize("method", ["cartesian", "logabsdet", "regular"])
def test_bad_internal_coordinates_are_refused(method: str, sizes: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        getattr(ZMatrix(CHAIN), method)(Internal(*(torch.ones(size) for size in sizes)))
