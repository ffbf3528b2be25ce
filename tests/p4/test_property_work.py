"""What the P4 properties compute: nothing of size d x d or cost d^3 in a step or a merge, and no wait for the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from p4.property_zoo import CASES, Case
from p4.test_work_counts import BATCH, D, record

from p4lab.p4 import P4Circulant, P4PositiveDefinite

PROGRAM = Path(__file__).with_name("property_no_sync_program.py")
ONE_MATRIX = tuple(c for c in CASES if c.name not in ("permutation", "lipschitz-oblong"))

cases = pytest.mark.parametrize("case", ONE_MATRIX, ids=lambda c: c.name)
resets = pytest.mark.parametrize("reset", ["gaussian", "gradient"])
ranks = pytest.mark.parametrize("rank", [1, 2, 8], ids="k{}".format)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def make(case: Case, rank: int, reset: str, dtype: torch.dtype = torch.float32) -> Any:
    return case.perturbed(D, rank, dtype, **({"reset": reset} if case.resets else {}))


def step(layer: Any, dtype: torch.dtype = torch.float32) -> Callable[[], None]:
    x = torch.randn(BATCH, D, dtype=dtype, requires_grad=True)

    def work() -> None:
        loss = layer(x).square().mean() + layer.penalty()
        if hasattr(layer, "inverse"):
            loss = loss + layer.inverse(x).square().mean() - layer.logabsdet()
        loss.backward()

    return work


@cases
@resets
@ranks
def test_a_step_makes_no_d_x_d_temporary_and_nothing_cubic(rank: int, reset: str, case: Case) -> None:
    layer = make(case, rank, reset)
    recorder = record(layer, step(layer))
    assert not recorder.temporaries
    assert not recorder.cubic


@cases
@resets
@ranks
@dtypes
@pytest.mark.parametrize("verdict", ["merged", "discarded"])
def test_a_merge_is_in_place_and_quadratic(verdict: str, dtype: torch.dtype, rank: int, reset: str, case: Case) -> None:
    layer = make(case, rank, reset, dtype)
    step(layer, dtype)()
    if verdict == "discarded":
        torch.nn.init.constant_(layer.u, torch.nan)
    addresses = {name: b.data_ptr() for name, b in layer.named_buffers()}
    reports: list[Any] = []
    recorder = record(layer, lambda: reports.append(layer.merge()))
    assert verdict in reports[0].status.name.lower()
    assert not recorder.temporaries
    assert not recorder.cubic
    assert addresses == {name: b.data_ptr() for name, b in layer.named_buffers()}


@ranks
def test_the_determinant_of_a_positive_definite_matrix_touches_no_matrix(rank: int) -> None:
    layer = P4PositiveDefinite(D, rank=rank, seed=0)
    assert not record(layer, lambda: layer.logabsdet().backward()).touching


def test_a_circulant_layer_touches_no_matrix_at_all() -> None:
    layer = P4Circulant(D)
    assert not record(layer, lambda: (layer(torch.randn(1, D)).sum() - layer.logabsdet()).backward()).touching


@pytest.fixture(scope="module")
def results() -> dict[str, str | None]:
    path = os.pathsep.join([str(PROGRAM.parents[2]), str(PROGRAM.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("reset", ["gaussian", "gradient"])
@pytest.mark.parametrize(
    "name", ["positive-definite", "lipschitz", "lipschitz-oblong", "circulant", "permutation", "caught"]
)
def test_nothing_waits_for_the_host(name: str, reset: str, results: dict[str, str | None]) -> None:
    problem = results[f"{name}-{reset}"]
    if name == "caught":
        assert "DataDependent" in (problem or "nothing was raised")
    else:
        assert problem is None
