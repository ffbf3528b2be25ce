"""Text of Python's library, and the transformer that continues it."""

from __future__ import annotations

import math

import pytest
import torch

from p4lab.errors import OptionError, ShapeError, TrainingError
from p4lab.problems.characters import ALPHABET, CharacterModel, Characters, decoded, encoded


def test_text_survives() -> None:
    assert decoded(encoded(ALPHABET)) == ALPHABET
    assert encoded("").shape == (0,)


def test_files_are_for_training_or_for_testing() -> None:
    problem = Characters(32)
    train, test = decoded(problem.train[:20_000]), decoded(problem.test[:400])
    assert test not in train
    assert "import" in train
    batch = problem.batch(4, torch.Generator().manual_seed(0))
    assert batch.shape == (4, 33)
    assert torch.equal(batch, problem.batch(4, torch.Generator().manual_seed(0)))


def test_a_character_does_not_see_what_follows() -> None:
    torch.manual_seed(0)
    model = CharacterModel(width=8, blocks=2, heads=2, length=6)
    text = torch.randint(len(ALPHABET), (2, 6))
    other = text.clone()
    other[:, 4:] = 0
    torch.testing.assert_close(model(text)[:, :4], model(other)[:, :4])


def test_it_learns_and_writes() -> None:
    torch.manual_seed(0)
    problem, model = Characters(16), CharacterModel(width=16, blocks=1, heads=2, length=16)
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    assert float(problem.test_loss(model)) == pytest.approx(math.log(len(ALPHABET)), abs=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        problem.loss(model, problem.batch(32, generator)).backward()
        optimizer.step()
    assert float(problem.test_loss(model)) < 3.6
    text = model.write("import ", 20, torch.Generator().manual_seed(0))
    assert len(text) == 20
    assert text == model.write("import ", 20, torch.Generator().manual_seed(0))


def test_errors() -> None:
    with pytest.raises(OptionError, match="heads=3"):
        CharacterModel(width=8, heads=3)
    with pytest.raises(ShapeError, match="t <= 4"):
        CharacterModel(width=8, heads=2, length=4)(torch.zeros(1, 5, dtype=torch.int64))


def test_every_other_character_is_a_tilde() -> None:
    assert decoded(encoded("a\tb\x7fcäd\ud800e\U0001f600f")) == "a~b~c~d~e~f"


def test_what_is_not_finite_writes_nothing() -> None:
    model = CharacterModel(width=8, blocks=1, heads=2, length=6)
    torch.nn.init.constant_(model.head.bias, torch.nan)
    with pytest.raises(TrainingError, match="logits are not finite"):
        model.write("a", 3, torch.Generator())
