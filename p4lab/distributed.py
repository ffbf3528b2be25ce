"""Replicas: the processes that train one model together, and what keeps their copies of it equal bit for bit.

Under `torch.nn.parallel.DistributedDataParallel` nothing is to do but to give the wrapped model to the schedule, in
each process alike::

    model = DistributedDataParallel(flow)
    optimizer = torch.optim.Adam(model.parameters())
    merges = MergeSchedule(model, optimizer, every=10)

The schedule takes the parameters, buffers and generators of rank 0 for all, whatever the seeds were, so that each
process draws the same directions, and a gradient reset sums the sketches of all batches. What a merge computes, each
process computes by itself: they need the same kind of processor and the same number of threads, else rounding sets them
apart. `check_replicas` says whether they are equal.

Batches may differ in size, and one may be empty if its loss is then 0. Where processes have different numbers of
batches, `torch.distributed.algorithms.Join` gets the schedule, too, after the model: ``with Join([model, merges]):``,
with one ``merges.step()`` for each forward pass.

Under FSDP2 (`torch.distributed.fsdp.fully_shard`, torch >= 2.7) P4 layers stay whole, for a merge needs all of a
matrix. Leave their parameters out, give these an optimizer of their own, and average their gradients::

    mine = [p for layer in p4_modules(model) for p in layer.parameters()]
    fully_shard(model, ignored_params=set(mine))
    others = [p for p in model.parameters() if all(p is not q for q in mine)]
    optimizers = [torch.optim.Adam(mine), torch.optim.Adam(others)]
    merges = MergeSchedule(model, optimizers, every=10, group=torch.distributed.group.WORLD)
    ...
    loss.backward()
    average_gradients(mine)
"""

import hashlib
import io
import itertools
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.join import Joinable, JoinHook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from p4lab.errors import OptionError, ReplicaError, ShardingError

if dist.is_available():
    # Its functions keep, as defaults, the process group that exists when they are imported, and torch imports them with
    # the first wrapped model. A group that is kept outlives Python's end, and a thread of gloo may then abort a process
    # that has done all its work. Imported now, they keep none.
    import torch.distributed.nn.functional

Named = list[tuple[str, Tensor]]
"""Each tensor comes with its name in the model."""
Extra = tuple[nn.Module, dict[str, Any]]
"""Each module that has extra state comes with it."""


class Replicas:
    """The processes that train one model together; all of them call the same methods in the same order.

    Args:
        group: their process group.

    Attributes:
        rank: this process in the group, counted from 0.
        size: how many they are.

    Example:
        >>> Replicas.of(nn.Linear(2, 2)) is None  # one process by itself
        True
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self._seed = 0

    @classmethod
    def of(cls, model: nn.Module, group: dist.ProcessGroup | None = None) -> Self | None:
        """Return the replicas of a model, or None if this process trains by itself.

        Args:
            model: any module; a `DistributedDataParallel`, itself or inside, says which processes belong together.
            group: says so in its place.

        Raises:
            ReplicaError: there are several processes, and neither says whether they belong together.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return None
        for wrapper in _wrappers(model):
            group = wrapper.process_group if group is None else group
        if group is None and dist.get_world_size() > 1:
            raise ReplicaError(
                f"{type(model).__name__} has no DistributedDataParallel around it, and there are "
                f"{dist.get_world_size()} processes: give the wrapped model; or group=torch.distributed.group.WORLD if "
                "they train one model without it; or group=torch.distributed.new_group([rank], "
                "use_local_synchronization=True) if each trains one of its own"
            )
        return cls(group) if group is not None and dist.get_world_size(group) > 1 else None

    @torch.no_grad()
    def total(self, rows: Tensor) -> Tensor:
        """Return the sum over all replicas of a tensor that has one shape in each, equal bit for bit in all of them.

        What is not finite in one of them is so in all. Cost: one all-reduce of the tensor.
        """
        rows = rows.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(rows, group=self.group)
        return rows

    @torch.no_grad()
    def synchronize(self, modules: Iterable[nn.Module], source: int = 0) -> None:
        """Give every replica the parameters, buffers and generators of one of them, in place.

        What `DistributedDataParallel` was told to ignore and what FSDP2 has sharded stays as it is.

        Args:
            modules: with all that is inside of them; of ``get_extra_state`` it takes the tensors of a dictionary.
            source: rank, in the group, of the one that the others follow.

        Raises:
            ReplicaError: the replicas have other tensors, so that they are no replicas.

        Cost: a small all-gather, and for each device a broadcast of the bytes of all tensors.
        """
        tensors, extras = _state(modules)
        self._seed = self._check_layout(tensors)[source]
        for device, places in _by_device(tensors):
            ours = [tensors[place][1] for place in places]
            for tensor, theirs in zip(ours, self._received(ours, device, source), strict=True):
                if self.rank != source:
                    tensor.copy_(theirs)
        for module, state in extras:
            module.set_extra_state(state)

    @contextmanager
    def common_draws(self, number: int) -> Iterator[None]:
        """Let torch's default generators, inside of this context, give the same in every replica; then they go on.

        For layers that have no generator of their own. After `synchronize` it depends on the seed of its source.

        Args:
            number: the draws are those of this number.
        """
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._seed + number)
            yield

    def synchronize_optimizers(self, optimizers: Iterable[Optimizer], source: int = 0) -> None:
        """Give every replica the state and the options of the optimizers of one of them (pickled, and so slow)."""
        for optimizer in optimizers:
            file = io.BytesIO()
            if self.rank == source:
                torch.save(optimizer.state_dict(), file)
            sent = [file.getvalue()]
            dist.broadcast_object_list(sent, dist.get_global_rank(self.group, source), group=self.group)
            if self.rank != source:
                optimizer.load_state_dict(torch.load(io.BytesIO(sent[0]), map_location="cpu", weights_only=False))

    def differences(self, tensors: Named) -> list[tuple[int, float]]:
        """Return, for each replica, its first tensor that is not bit-equal to that of rank 0, and by how much.

        Args:
            tensors: the same names, shapes and dtypes in each replica.

        Returns:
            For each rank an index (that of no tensor, ``len(tensors)``, if all are equal) and the largest difference of
            a number of that tensor (NaN if such are in it). All replicas return the same list.

        Raises:
            ReplicaError: they have other names, shapes or dtypes.

        Cost: two small all-gathers, and for each device a broadcast of the bytes of all tensors.
        """
        self._check_layout(tensors)
        first, difference = len(tensors), 0.0
        for device, places in _by_device(tensors):
            ours = [tensors[place][1].detach() for place in places]
            for place, mine, theirs in zip(places, ours, self._received(ours, device, 0), strict=True):
                if place < first and not torch.equal(_bytes(mine).to(device), _bytes(theirs)):
                    wide = torch.complex128 if mine.is_complex() else torch.float64
                    first, difference = place, float((mine.to(device, wide) - theirs.to(wide)).abs().max())
        return [(int(index), by) for index, by in self._gather([first, difference], _home(tensors))]

    def last(self, candidate: bool, device: torch.device) -> int:
        """Return the highest rank that calls this as a candidate (some rank must)."""
        ranks = self._gather([float(candidate)], device)
        return max(rank for rank, (asked,) in enumerate(ranks) if asked)

    def _received(self, tensors: Sequence[Tensor], device: torch.device, source: int) -> Iterator[Tensor]:
        flat = torch.cat([_bytes(tensor).to(device) for tensor in tensors])
        dist.broadcast(flat, dist.get_global_rank(self.group, source), group=self.group)
        sizes = [tensor.numel() * tensor.element_size() for tensor in tensors]
        for part, tensor in zip(flat.split(sizes), tensors, strict=True):
            yield part.clone().view(tensor.dtype).view(tensor.shape)  # a clone, for its bytes to be aligned

    def _check_layout(self, tensors: Named) -> list[int]:
        """Check that all replicas have such tensors, and return the seeds of their default generators."""
        text = repr([(name, tuple(t.shape), t.dtype) for name, t in tensors])
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")  # as a float64 still exact
        size = sum(tensor.numel() for _, tensor in tensors)
        rows = self._gather([digest, len(tensors), size, torch.initial_seed() % 2**48], _home(tensors))
        layouts, seeds = [row[:3] for row in rows], [int(row[3]) for row in rows]
        for rank, layout in enumerate(layouts):
            if layout != layouts[0]:
                (count, numbers), (count_0, numbers_0) = layout[1:], layouts[0][1:]
                raise ReplicaError(
                    f"rank {rank} has {count:.0f} tensors of {numbers:.0f} numbers, rank 0 {count_0:.0f} of "
                    f"{numbers_0:.0f}, or other names, shapes or dtypes: build the same model in every process"
                )
        return seeds

    def _gather(self, numbers: Sequence[float], device: torch.device) -> list[list[float]]:
        mine = torch.tensor(numbers, dtype=torch.float64, device=device)
        rows = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(rows, mine, group=self.group)
        return [row.tolist() for row in rows]


class JoinedSchedule(Joinable):
    """What lets processes with different numbers of batches share a schedule: ``with Join([model, merges]):``.

    A process whose batches are used up goes on merging, without gradients of its own, so that the others do not wait
    for it. At the end it takes over model, generators and optimizers of a process that had batches to the end.

    A subclass counts an optimizer step, and merges if that is due, in ``_advance``, which begins with `check_join`.

    Args:
        model: what the schedule merges.
        optimizers: those that step it.
        replicas: of the model (None: this process trains by itself).
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer], replicas: Replicas | None) -> None:
        super().__init__()
        self.model, self.optimizers, self.replicas = model, optimizers, replicas
        self._wrappers = list(_wrappers(model))
        self._apart = self._join_config

    @abstractmethod
    def _advance(self) -> object:
        """Count one optimizer step, and merge if that is due."""

    def check_join(self) -> None:
        """Check that the processes merge together even where some have fewer batches.

        Raises:
            ReplicaError: the model is in a ``join`` that this schedule is not in, or that names the schedule first.
        """
        if self.replicas is None:
            return
        joined = any(wrapper._join_config.enable for wrapper in self._wrappers)
        if joined and not self._join_config.enable:
            raise ReplicaError(
                "the model is inside of `with model.join():`, where a process whose batches are used up does not merge "
                "with the others: write `with Join([model, merges]):` with torch.distributed.algorithms.Join (also "
                "after a `model.join()` that has ended, for torch does not say so)"
            )
        if self._join_config.enable and self._join_config.is_first_joinable:
            raise ReplicaError("Join got the schedule first: name the model first, `with Join([model, merges]):`")

    def join_hook(self, **options: Any) -> JoinHook:
        """Return what a process does when its batches are used up."""
        return _Joined(self)

    @property
    def join_device(self) -> torch.device:
        """Device of the model."""
        return _home(_named_tensors([self.model]))

    @property
    def join_process_group(self) -> dist.ProcessGroup | None:
        """Process group of the replicas."""
        groups = [wrapper.process_group for wrapper in self._wrappers]
        return self.replicas.group if self.replicas else groups[0] if groups else dist.group.WORLD


class _Joined(JoinHook):
    def __init__(self, schedule: JoinedSchedule) -> None:
        self.schedule = schedule

    def main_hook(self) -> None:
        self.schedule._advance()

    def post_hook(self, is_last_joiner: bool) -> None:
        schedule, replicas = self.schedule, self.schedule.replicas
        if replicas is not None:
            source = replicas.last(is_last_joiner, schedule.join_device)
            replicas.synchronize([schedule.model], source)
            replicas.synchronize_optimizers(schedule.optimizers, source)
        for joinable in (schedule, *schedule._wrappers):  # torch leaves them as if the context went on
            joinable._join_config = schedule._apart


def check_replicas(
    model: nn.Module,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Check that all replicas of a model are equal bit for bit: parameters, buffers, generators, optimizer state.

    All processes call it, and it raises in all of them alike. In one process it has nothing to do.

    Args:
        model: the model, wrapped or not. What FSDP2 has sharded is not compared, nor are buffers of other layers than
            P4: the running statistics of a BatchNorm are each replica's own until the next forward pass.
        optimizer: the optimizer, or optimizers, whose tensors are compared, too.
        group: the processes (default: those of `DistributedDataParallel`, else all).

    Raises:
        ReplicaError: they differ; it names the first tensor that does, and says by how much.

    Cost: a few small collectives and a broadcast of all bytes, which it holds three times: not for every step.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    replicas = Replicas.of(model, group or next((w.process_group for w in _wrappers(model)), dist.group.WORLD))
    if replicas is None:
        return
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer or ())
    running = {id(b) for m in model.modules() if not hasattr(m, "perturbation") for b in m.buffers(recurse=False)}
    tensors = [(name, tensor) for name, tensor in _state([model])[0] if id(tensor) not in running]
    tensors += _optimizer_state(model, optimizers)
    differences = replicas.differences(tensors)
    first, rank = min((index, rank) for rank, (index, _) in enumerate(differences))
    if first < len(tensors):
        name, tensor = tensors[first]
        apart = max((by for index, by in differences if index == first), key=lambda by: (by != by, by))
        raise ReplicaError(
            f"the replicas differ: {name}, shape {tuple(tensor.shape)}, of rank {rank} is not that of rank 0; they are"
            f" up to {apart:.3g} apart. In every process give the wrapped model to MergeSchedule, step it at the same "
            "steps, and merge no layer by hand"
        )


@torch.no_grad()
def average_gradients(parameters: Sequence[nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """Replace gradients by their mean over all processes, as `DistributedDataParallel` does: for what it does not wrap.

    Call it between ``backward`` and the optimizer step. A missing gradient counts as zero, and is then there.

    Args:
        parameters: in the same order in each process.
        group: the processes (default: all).

    Raises:
        OptionError: the parameters come in a set, which has an order of its own in each process.
        ShardingError: FSDP2 takes care of one of them.

    Cost: one all-reduce of all gradients, for each dtype and device.
    """
    if isinstance(parameters, (set, frozenset)):
        raise OptionError("average_gradients got a set: give a list, whose order is the same in each process")
    mine = [parameter for parameter in parameters if parameter.requires_grad]
    if any(map(_is_sharded, mine)):
        raise ShardingError("average_gradients got a DTensor, whose gradient is averaged already: leave it out")
    if not (dist.is_available() and dist.is_initialized()):
        return
    for parameter in mine:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    grads = [parameter.grad for parameter in mine if parameter.grad is not None]
    for kind in dict.fromkeys((grad.device, grad.dtype) for grad in grads):
        part = [grad for grad in grads if (grad.device, grad.dtype) == kind]
        flat = torch.cat([grad.reshape(-1) for grad in part])
        dist.all_reduce(flat, group=group)
        flat /= dist.get_world_size(group)
        for grad, mean in zip(part, flat.split([grad.numel() for grad in part]), strict=True):
            grad.copy_(mean.view_as(grad))


def refuse_shards(model: nn.Module) -> None:
    """Check that each process has the P4 layers of a model as a whole.

    Raises:
        ShardingError: FSDP or tensor parallelism has divided one of them; it says what to do.
    """
    layers = [module for module in model.modules() if hasattr(module, "perturbation")]
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nobody has loaded it, nothing is divided
    flat = fsdp is not None and any(isinstance(module, fsdp.FullyShardedDataParallel) for module in model.modules())
    for layer in layers:
        sharded = [name for name, tensor in _named_tensors([layer]) if _is_sharded(tensor)]
        if flat and getattr(layer, "_is_fsdp_managed_module", False):
            sharded = ["what was its parameters"]
        if sharded:
            raise ShardingError(
                f"{type(layer).__name__}: {sharded[0]} is divided among processes, but a merge needs all of it. Leave "
                "P4 layers whole: fully_shard(model, ignored_params=set(mine)) with mine = [p for layer in "
                "p4_modules(model) for p in layer.parameters()] (torch >= 2.7), an optimizer of its own for mine, "
                "p4lab.distributed.average_gradients(mine) after backward, and MergeSchedule(..., "
                "group=torch.distributed.group.WORLD). See p4lab.distributed"
            )


# --- the tensors of a model ------------------------------------------------------------------------------------------


def _wrappers(model: nn.Module) -> Iterator[DistributedDataParallel]:
    return (module for module in model.modules() if isinstance(module, DistributedDataParallel))


def _is_sharded(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _named_tensors(modules: Iterable[nn.Module]) -> Named:
    """Return parameters and buffers, each once, without those that DistributedDataParallel ignores."""
    tensors: dict[int, tuple[str, Tensor]] = {}
    for module in modules:
        root = module.module if isinstance(module, DistributedDataParallel) else module
        ignored = frozenset(getattr(root, "_ddp_params_and_buffers_to_ignore", ()))
        for name, tensor in itertools.chain(root.named_parameters(), root.named_buffers()):
            if name not in ignored:
                tensors.setdefault(id(tensor), (name, tensor))
    return list(tensors.values())


def _state(modules: Iterable[nn.Module]) -> tuple[Named, list[Extra]]:
    """Return all tensors that replicas share, and the modules with extra state, whose tensors are among them."""
    modules = list(modules)
    tensors = [(name, tensor) for name, tensor in _named_tensors(modules) if not _is_sharded(tensor)]
    names: dict[nn.Module, str] = {}
    for root in modules:
        for name, module in (root.module if isinstance(root, DistributedDataParallel) else root).named_modules():
            names.setdefault(module, name)
    extras: list[Extra] = []
    for module, name in names.items():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            state = module.get_extra_state()
            if isinstance(state, dict):
                extras.append((module, state))
                path = f"{name}." if name else ""
                tensors += [(f"{path}{key}", value) for key, value in state.items() if torch.is_tensor(value)]
    return tensors, extras


def _optimizer_state(model: nn.Module, optimizers: Iterable[Optimizer]) -> Named:
    """Return the tensors that optimizers keep for the parameters of a model."""
    tensors = []
    for optimizer in optimizers:
        for name, parameter in _named_tensors([model]):
            for key, value in optimizer.state[parameter].items() if parameter in optimizer.state else ():
                if torch.is_tensor(value) and not _is_sharded(value):
                    tensors.append((f"{key} of {name} in {type(optimizer).__name__}", value))
    return tensors


def _home(tensors: Named) -> torch.device:
    """Return the device of a model, on which its processes communicate."""
    devices = [tensor.device for _, tensor in tensors]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))


def _by_device(tensors: Named) -> Iterator[tuple[torch.device, list[int]]]:
    """Yield each device and the places of its tensors; those on the CPU (generators) travel with the model's."""
    home = _home(tensors)
    places: dict[torch.device, list[int]] = {}
    for place, (_, tensor) in enumerate(tensors):
        places.setdefault(home if tensor.device.type == "cpu" else tensor.device, []).append(place)
    yield from places.items()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
