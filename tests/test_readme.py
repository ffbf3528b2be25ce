"""The README's code runs, and its training loop saves what it says."""

import re
from pathlib import Path

import torch
from torch.optim import Adam

from p4lab import MergeSchedule, P4Inv

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_short_tour_runs() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[-1], names)
    linear, x = names["linear"], names["x"]
    torch.testing.assert_close(linear(x), names["y"], atol=1e-5, rtol=1e-5)


def test_the_training_loop_with_p4lab_runs_and_inverts() -> None:
    assert "P4Inv(512)" in BLOCKS[1]
    names = {
        "torch": torch,
        "Adam": Adam,
        "P4Inv": P4Inv,
        "MergeSchedule": MergeSchedule,
        "data": [torch.randn(8, 512) for _ in range(11)],
        "nll": lambda z, logdet: z.square().sum(-1).mean() / 2 - logdet,
    }
    exec(BLOCKS[1], names)
    assert names["merges"].attempts == 1
    torch.testing.assert_close(names["layer"](names["x"]), names["z"], atol=1e-4, rtol=1e-4)
