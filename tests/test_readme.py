"""The README's code runs, and its training loop saves what it says."""

import re
from pathlib import Path
from typing import Any

import torch
from torch.optim import Adam

from p4lab import MergeSchedule, P4Inv

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def block(part: str) -> str:
    """The one code block with this text."""
    (found,) = (block for block in BLOCKS if part in block)
    return found


def test_the_live_example_trains() -> None:
    names: dict[str, Any] = {}
    exec(block("train_live"), names)
    lab = names["lab"]
    try:
        lab.player.step()
        assert lab.frame().index[-1] == 1
        assert lab.error is None
    finally:
        lab.close()


def test_the_example_of_other_peoples_loops_runs() -> None:
    names: dict[str, Any] = {}
    exec(block("AveragedWeights"), names)
    assert names["merges"].steps == 3
    assert names["average"].updates == 3
    weight = names["averaged"][0].weight
    assert 0 < (weight - torch.eye(64)).abs().max() < 0.1


def test_the_example_of_ones_own_model_runs_and_folds() -> None:
    names: dict[str, Any] = {}
    exec(block("convert(model"), names)
    plain, model, x = names["plain"], names["model"], names["x"]
    torch.testing.assert_close(plain(x), model(x), atol=1e-5, rtol=1e-5)
    assert names["merges"].attempts == 2
    assert list(plain.state_dict()) == [f"{i}.{name}" for i in (0, 3, 5) for name in ("weight", "bias")]
    assert max(torch.linalg.matrix_norm(plain[i].weight.flatten(1), 2) for i in (0, 3, 5)) < 1 + 1e-5


def test_the_short_tour_runs() -> None:
    names: dict[str, Any] = {}
    exec(block("layer.fold()"), names)
    linear, x = names["linear"], names["x"]
    torch.testing.assert_close(linear(x), names["y"], atol=1e-5, rtol=1e-5)


def test_the_training_loop_with_p4lab_runs_and_inverts() -> None:
    names = {
        "torch": torch,
        "Adam": Adam,
        "P4Inv": P4Inv,
        "MergeSchedule": MergeSchedule,
        "data": [torch.randn(8, 512) for _ in range(11)],
        "nll": lambda z, logdet: z.square().sum(-1).mean() / 2 - logdet,
    }
    exec(block("P4Inv(512)"), names)
    assert names["merges"].attempts == 1
    torch.testing.assert_close(names["layer"](names["x"]), names["z"], atol=1e-4, rtol=1e-4)


def test_the_flows_example_runs_and_folds() -> None:
    names: dict[str, Any] = {}
    exec(block("flows.realnvp"), names)
    x = names["x"]
    torch.testing.assert_close(names["plain"].log_prob(x), names["flow"].log_prob(x), atol=1e-4, rtol=1e-5)
    assert len(names["z"]) == len(names["flow"].layers) + 1
    assert names["samples"].shape == (1000, 7, 2)


def test_the_example_of_a_table_scores_samples_and_searches() -> None:
    names: dict[str, Any] = {}
    exec(block("FlowDensity"), names)
    assert (names["samples"].dtypes == names["patients"].dtypes).all()
    assert -34 < names["density"].score(names["test"]) < -32
    assert -36 < names["search"].best_score_ < -32


def test_the_boltzmann_example_runs_and_weighs() -> None:
    names: dict[str, Any] = {}
    exec(block("steerable_flow"), names)
    log_w, boltzmann = names["log_w"].detach(), names["boltzmann"]
    assert torch.isfinite(names["loss"])
    assert log_w.shape == (1000,)
    assert 0 < float(boltzmann.ess(log_w)) <= float(boltzmann.clipped_ess(log_w)) <= 1


def test_layers_of_any_shape_keep_what_they_say() -> None:
    names: dict[str, Any] = {}
    exec(block("P4Stiefel(20, 50"), names)
    assert type(names["layer"]).__name__ == "P4Orthogonal"
