"""The example that torchrun starts, as its docstring says to, and resumed by another number of processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from p4lab.experiments import replicas


def torchrun(processes: int, *arguments: str) -> str:
    """What the example prints; it meets on loopback, at a free port."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, "-m", "p4lab.experiments.replicas", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(printed: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"step (\d+): loss (\S+)", printed)}


def test_it_trains_and_resumes_with_any_number_of_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "flow.pt"
    first = torchrun(2, "--steps=100", f"--save={file}")
    assert list(losses(first)) == [50, 100]
    assert losses(first)[100] < losses(first)[50]
    assert "2 replicas are equal after 100 steps" in first

    second = torchrun(3, "--steps=50", f"--resume={file}")
    assert losses(second)[150] < losses(first)[100] + 0.1
    assert "3 replicas are equal after 150 steps" in second

    replicas.main(["--steps=50", f"--resume={file}"])
    third = capsys.readouterr().out
    assert losses(third)[150] < losses(first)[100] + 0.1
    assert "done by one process after 150 steps" in third


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no such file"):
        replicas.main([f"--resume={tmp_path / 'none.pt'}"])
