"""Long-memory tasks: copy what was seen a long time ago, and add two marked numbers of a long sequence."""

import math
from abc import ABC, abstractmethod
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from p4lab.errors import OptionError

SYMBOLS = 8
"""Number of different symbols to remember."""
LENGTH = 10
"""How many symbols are to be remembered."""
TEST = 128
"""Sequences in a test set."""
LONGEST = 10_000
"""The largest delay."""

Sequences = tuple[Tensor, Tensor]
"""Inputs (steps, batch, channels) and targets, (steps, batch) symbols or (batch,) numbers."""


class Recurrent(Protocol):
    """What the tasks ask of a model: states from inputs, outputs from states."""

    def states(self, x: Tensor) -> Tensor:
        """Return the states after each step, shape (steps, batch, d), for inputs (steps, batch, channels)."""

    def read(self, states: Tensor) -> Tensor:
        """Return the outputs of states, shape (..., outputs)."""


class SequenceTask(ABC):
    """What `CopyMemory` and `Adding` share.

    Args:
        delay: T, at least ``least``.
        seed: of the test set.
        device: where batches are.
        dtype: of the inputs.

    Attributes:
        steps: length of a sequence.
        channels, outputs: length of an input and of an output.
        baseline: the best loss without memory.
        test: 128 fixed sequences.

    Raises:
        OptionError: T is out of range.
    """

    dim = 1
    least: int
    channels: int
    outputs: int

    def __init__(
        self, delay: int, seed: int = 0, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        if not (isinstance(delay, int) and self.least <= delay <= LONGEST):
            raise OptionError(f"delay={delay!r}: expected a whole number from {self.least} to {LONGEST}")
        self.delay, self.device, self.dtype = delay, device, dtype
        self.test = self.batch(TEST, torch.Generator().manual_seed(seed))

    @property
    @abstractmethod
    def steps(self) -> int:
        """How many steps a sequence has."""

    @property
    @abstractmethod
    def baseline(self) -> float:
        """The best loss without memory."""

    @abstractmethod
    def batch(self, size: int, generator: torch.Generator) -> Sequences:
        """Return inputs, shape (steps, size, channels), and targets. Cost O(size T)."""

    @abstractmethod
    def loss_of(self, model: Recurrent, states: Tensor, y: Tensor) -> Tensor:
        """Return the loss where the states are known."""

    def loss(self, model: Recurrent, batch: Sequences) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        return self.loss_of(model, model.states(x), y)

    def test_loss(self, model: Recurrent) -> Tensor:
        """Return the loss of the 128 fixed sequences."""
        return self.loss(model, self.test)


class CopyMemory(SequenceTask):
    r"""Remember ten symbols over a delay of T steps.

    A sequence has T + 20 steps: ten symbols out of eight, drawn at random, T - 1 blanks, a sign to answer, ten blanks.
    The target is blank until the sign was given, then the ten symbols; the loss is the cross-entropy, a mean over all
    steps (nats). Without memory the best loss is

    .. math:: \frac{10 \ln 8}{T + 20}

    Arguments and errors as for `SequenceTask`, with T at least 1.

    Source: Hochreiter and Schmidhuber (1997); in this form Arjovsky, Shah, Bengio, arXiv:1511.06464, section 5.1.

    Example:
        >>> x, y = CopyMemory(5).batch(2, torch.Generator().manual_seed(0))
        >>> x.shape, y.shape, bool((y[-10:] == x[:10].argmax(-1)).all())
        (torch.Size([25, 2, 10]), torch.Size([25, 2]), True)
    """

    least = 1
    channels = SYMBOLS + 2
    outputs = SYMBOLS + 1

    @property
    def steps(self) -> int:
        """T + 20."""
        return self.delay + 2 * LENGTH

    @property
    def baseline(self) -> float:
        """10 ln 8 / (T + 20)."""
        return LENGTH * math.log(SYMBOLS) / self.steps

    def batch(self, size: int, generator: torch.Generator) -> Sequences:
        """Return inputs, one-hot, shape (T + 20, size, 10), and targets, symbols 0 (blank) to 8, shape (T + 20, size).

        Cost O(size T).
        """
        symbols = torch.randint(1, SYMBOLS + 1, (LENGTH, size), generator=generator, device="cpu")
        blank = torch.zeros(self.steps, size, dtype=torch.long, device="cpu")
        x, y = blank, blank.clone()
        x[:LENGTH], y[-LENGTH:] = symbols, symbols
        x[self.delay + LENGTH - 1] = SYMBOLS + 1
        return F.one_hot(x, self.channels).to(self.device, self.dtype), y.to(self.device)

    def loss_of(self, model: Recurrent, states: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy where the states are known (nats)."""
        return F.cross_entropy(model.read(states).flatten(0, 1), y.flatten())

    def answers(self, model: Recurrent, x: Tensor, states: Tensor) -> Tensor:
        """Return the probabilities of blank and symbols, shape (T + 20, batch, 9)."""
        return torch.softmax(model.read(states), dim=-1)

    def recalled(self, model: Recurrent, batch: Sequences) -> Tensor:
        """Return the share of the ten symbols that the model names, one in eight by chance."""
        x, y = batch
        said = model.read(model.states(x)[-LENGTH:])[..., 1:].argmax(-1) + 1
        return (said == y[-LENGTH:]).double().mean()


class Adding(SequenceTask):
    r"""Add the two marked numbers of a sequence of T steps.

    Inputs are T numbers, uniform on [0, 1], and marks: 1 at one place of each half, else 0. The target is the sum of
    the two marked numbers, the loss the mean squared error of the last output. Without memory the best one is 1/6.

    Arguments and errors as for `SequenceTask`, with T at least 2.

    Source: Hochreiter and Schmidhuber (1997); in this form Arjovsky, Shah, Bengio, arXiv:1511.06464, section 5.2.

    Example:
        >>> x, y = Adding(6).batch(3, torch.Generator().manual_seed(0))
        >>> x.shape, bool(((x[..., 0] * x[..., 1]).sum(0) == y).all())
        (torch.Size([6, 3, 2]), True)
    """

    least = 2
    channels = 2
    outputs = 1
    baseline = 1 / 6

    @property
    def steps(self) -> int:
        """T."""
        return self.delay

    def batch(self, size: int, generator: torch.Generator) -> Sequences:
        """Return numbers and marks, shape (T, size, 2), and sums, shape (size,). Cost O(size T)."""
        half = self.steps // 2
        numbers = torch.rand(self.steps, size, generator=generator, dtype=self.dtype, device="cpu")
        first = torch.randint(0, half, (size,), generator=generator, device="cpu")
        second = torch.randint(half, self.steps, (size,), generator=generator, device="cpu")
        marks = torch.zeros_like(numbers)
        for place in (first, second):
            marks[place, torch.arange(size, device="cpu")] = 1.0
        x = torch.stack([numbers, marks], dim=-1).to(self.device, self.dtype)
        return x, (x[..., 0] * x[..., 1]).sum(0)

    def loss_of(self, model: Recurrent, states: Tensor, y: Tensor) -> Tensor:
        """Return the mean squared error where the states are known."""
        return F.mse_loss(model.read(states[-1])[..., 0], y)

    def answers(self, model: Recurrent, x: Tensor, states: Tensor) -> Tensor:
        """Return the sums that the model says, shape (batch,)."""
        return model.read(states[-1])[..., 0]


Task = CopyMemory | Adding
KINDS: dict[str, type[CopyMemory] | type[Adding]] = {"copy": CopyMemory, "adding": Adding}
"""The tasks by name."""
TASKS = tuple(KINDS)


def sequence_task(
    name: Literal["copy", "adding"] | str,
    delay: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Task:
    """Return a task by name.

    Raises:
        OptionError: unknown name, or a delay out of range.
    """
    if name not in KINDS:
        raise OptionError(f"sequence task {name!r} is not known: choose one of {TASKS}")
    return KINDS[name](delay, seed, device, dtype)
