"""Text, character by character: the sources of Python's library, and a small transformer that continues them."""

import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from p4lab.errors import MissingPackageError, OptionError, ShapeError, TrainingError

ALPHABET = "\n" + "".join(chr(code) for code in range(32, 127))
"""The characters of a text; all others are read as the last one, a tilde."""
PLACES = np.full(128, len(ALPHABET) - 1, np.uint8)
"""The number in the alphabet of each ASCII code; the last one, DEL, stands for all codes beyond."""
PLACES[[ord(character) for character in ALPHABET]] = np.arange(len(ALPHABET), dtype=np.uint8)
TEST_EVERY = 10
"""Each tenth file is kept for testing."""
TEST_WINDOWS = 256
"""The test loss is that of so many windows, spread evenly over the test files."""


@cache
def corpus() -> tuple[Tensor, Tensor]:
    """Return the training and the test text, as numbers of characters in `ALPHABET` (uint8, on the CPU).

    These are the modules of Python's standard library that are single files, in alphabetical order: some eight million
    characters that every machine with a Python has (of its version).

    Raises:
        MissingPackageError: this Python has no sources of its library.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(folder.glob("*.py"))
    if len(files) < TEST_EVERY:
        raise MissingPackageError(
            f"there are {len(files)} sources of Python's library in {folder}, at least 10 expected"
        )
    parts: tuple[list[str], list[str]] = ([], [])
    for place, file in enumerate(files):
        parts[place % TEST_EVERY == 0].append(file.read_text(encoding="utf-8", errors="replace"))
    train, test = ("\n".join(texts) for texts in parts)
    return encoded(train), encoded(test)


def encoded(text: str) -> Tensor:
    """Return the numbers of a text's characters, shape (length,), uint8.

    Example:
        >>> encoded(" a"), decoded(encoded("a tilde for ä"))
        (tensor([ 1, 66], dtype=torch.uint8), 'a tilde for ~')
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return torch.from_numpy(PLACES[np.minimum(codes, len(PLACES) - 1)])


def decoded(numbers: Tensor) -> str:
    """Return the text of numbers of characters, shape (length,)."""
    return "".join(ALPHABET[number] for number in numbers.tolist())


class Block(nn.Module):
    """A block of a transformer that looks back: attention and a network of two layers, each added to its normed input.

    Args:
        width: d.
        heads: of attention; they divide the width.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what becomes of x, shape (batch, length, d)."""
        z = self.before_attention(x)
        q, k, v = (
            part(z).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.before_network(x))))


class CharacterModel(nn.Module):
    r"""A transformer that tells the next character: :math:`p(c_{t+1} | c_1 \dots c_t)`.

    Args:
        width: d.
        blocks: number of blocks.
        heads: of attention in each of them; they divide the width.
        length: the most characters that it looks at.

    Raises:
        OptionError: heads that do not divide the width, or a number below 1.
        ShapeError: more characters than ``length``.
    """

    def __init__(self, width: int = 128, blocks: int = 2, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        if min(width, blocks, heads, length) < 1 or width % heads:
            raise OptionError(
                f"width={width}, blocks={blocks}, heads={heads}, length={length}: expected numbers of at least 1, and "
                "heads that divide the width"
            )
        self.length = length
        self.characters = nn.Embedding(len(ALPHABET), width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(ALPHABET))

    def forward(self, text: Tensor) -> Tensor:
        """Return logits of the next characters, shape (batch, t, 96), for numbers of characters, shape (batch, t)."""
        if text.dim() != 2 or text.shape[1] > self.length:
            raise ShapeError(f"text of shape {tuple(text.shape)}: expected (batch, t) with t <= {self.length}")
        x = self.characters(text) + self.places.weight[: text.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def write(self, start: str, length: int, generator: torch.Generator, temperature: float = 0.8) -> str:
        """Continue a text by characters that are drawn from the model, those of logits divided by the temperature.

        Raises:
            TrainingError: the logits are not finite.
        """
        device = self.places.weight.device
        text = encoded(start or "\n").long()
        for _ in range(length):
            logits = self(text[-self.length :].unsqueeze(0).to(device))[0, -1].to("cpu", torch.float64) / temperature
            if not bool(torch.isfinite(logits).all()):
                raise TrainingError("the logits are not finite: go back to earlier weights")
            text = torch.cat((text, torch.multinomial(logits.softmax(-1), 1, generator=generator)))
        return decoded(text[-length:]) if length else ""


class Characters:
    """Continue the sources of Python's standard library: mean cross-entropy of the next character, in nats.

    Args:
        length: characters of a window.
        device: where batches go.

    Attributes:
        dim: the number of characters in the alphabet.
    """

    name = "characters"
    dim = len(ALPHABET)

    def __init__(self, length: int = 64, device: torch.device | str = "cpu") -> None:
        self.length, self.device = length, torch.device(device)
        self.train, self.test = corpus()
        starts = torch.linspace(0, len(self.test) - length - 2, TEST_WINDOWS, dtype=torch.float64).long()
        self.windows = self._windows(self.test, starts)

    def batch(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw windows of the training text, shape (size, length + 1), int64; every device draws the same."""
        starts = torch.randint(len(self.train) - self.length - 1, (size,), generator=generator, device="cpu")
        return self._windows(self.train, starts)

    def loss(self, model: nn.Module, text: Tensor) -> Tensor:
        """Return the mean cross-entropy (nats) of each window's characters but the first, a differentiable scalar."""
        logits = model(text[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())

    @torch.no_grad()
    def test_loss(self, model: nn.Module) -> Tensor:
        """Return the loss on windows of the test files."""
        return self.loss(model, self.windows)

    def _windows(self, text: Tensor, starts: Tensor) -> Tensor:
        return text[starts[:, None] + torch.arange(self.length + 1)].long().to(self.device)
