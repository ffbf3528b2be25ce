"""Train replicas in processes that talk over loopback, and write for each case what went wrong (JSON; null is nothing).

    python replica_program.py FOLDER RANK SIZE [ONLY]

A program of its own, for starting takes longer than a case: it starts once for all of them.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import itertools
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from p4.property_zoo import Sets
from replica_harness import Case, Processes, difference, raises, require, run, traffic
from torch import Tensor, nn
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from p4lab import flows
from p4lab.distributed import Replicas, average_gradients, check_replicas
from p4lab.errors import OptionError, ReplicaError, ShardingError
from p4lab.p4 import (
    RECOMMENDED,
    MergeSchedule,
    P4Circulant,
    P4Givens,
    P4Inv,
    P4Lipschitz,
    P4Orthogonal,
    P4PositiveDefinite,
    P4Reflections,
    P4SpecialLinear,
    P4Spectrum,
    P4Stiefel,
    Preset,
    convert,
    p4_modules,
)
from p4lab.p4.examples import P4Triangular

DIM, RANK, STEPS, EVERY = 6, 2, 200, 3
NAN_STEPS = (50, 131)
"""Steps with a merge after them, at which something is NaN in the last process alone."""
RESETS = ("gaussian", "gradient")
ADAM = partial(torch.optim.Adam, lr=1e-2)
NEW_DDP = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
NEW_FSDP = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)
"""Whether `fully_shard` has ``ignored_params``."""


# --- what is trained --------------------------------------------------------------------------------------------------


class Density(nn.Module):
    """Negative log-density of each row under a normal distribution whose covariance is a P4PositiveDefinite."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = P4PositiveDefinite(DIM, **options)

    def forward(self, x: Tensor) -> Tensor:
        return -self.layer.log_density(x)


def converted(reset: Any, seed: int) -> nn.Module:
    """A module that reads its weights by name: those are made of P4 layers. In a bias a NaN would stay."""
    cell = nn.RNNCell(DIM, DIM, bias=False)
    convert(cell, "invertible", rank=RANK, reset=reset, seed=seed)
    return cell


def preset(reset: Any) -> Preset:
    return dataclasses.replace(RECOMMENDED, rank=RANK, reset=reset)


LAYERS: dict[str, Callable[..., nn.Module]] = {
    "P4Inv": partial(P4Inv, DIM, rank=RANK),
    "P4Inv of rank 1": partial(P4Inv, DIM, rank=1),
    "P4Inv with train_v": partial(P4Inv, DIM, rank=RANK, train_v=True),
    "P4Orthogonal": partial(P4Orthogonal, DIM, rank=RANK),
    "P4Reflections": partial(P4Reflections, DIM, rank=RANK),
    "P4SpecialLinear": partial(P4SpecialLinear, DIM, rank=RANK),
    "P4PositiveDefinite": partial(P4PositiveDefinite, DIM, rank=RANK),
    "log_density of P4PositiveDefinite": partial(Density, rank=RANK),
    "P4Lipschitz": partial(P4Lipschitz, DIM, DIM, rank=RANK),
    "P4Stiefel": partial(P4Stiefel, DIM, DIM - 1, rank=RANK),
    "P4Spectrum": partial(P4Spectrum, DIM, DIM, rank=RANK),
    "P4Permutation": partial(Sets, DIM // 3, rank=RANK),
    "P4Givens": lambda reset, seed: P4Givens(DIM, rank=RANK, seed=seed),
    "P4Circulant": lambda reset, seed: P4Circulant(DIM),
    "a converted RNNCell": converted,
    "a property of one's own": lambda reset, seed: P4Triangular(DIM),
}
FLOWS: dict[str, Callable[..., nn.Module]] = {
    "p4inv_bent": lambda reset, **o: flows.p4inv_bent(DIM, 2, preset=preset(reset), **o),
    "realnvp with p4inv": lambda reset, **o: flows.realnvp(DIM, 2, "p4inv", hidden=8, preset=preset(reset), **o),
    "realnvp with p4orthogonal": lambda reset, **o: flows.realnvp(
        DIM, 2, "p4orthogonal", hidden=8, preset=preset(reset), **o
    ),
}


class SideBySide(nn.ModuleDict):
    """Models that get the same input and train at the same time, which saves most of what a step costs."""

    def forward(self, x: Tensor) -> list[Any]:
        return [model(x) for model in self.values()]


def side_by_side(names: Iterable[str], reset: str, seed: int) -> SideBySide:
    return SideBySide({name: (LAYERS | FLOWS)[name](reset=reset, seed=seed) for name in names})


def loss_of(model: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """A loss that is 0 for an empty batch."""
    outputs = model(x)
    total = x.new_zeros(())
    for output in outputs if isinstance(outputs, list) else [outputs]:
        if isinstance(output, tuple):  # a flow's z and log|det|
            rows = 0.5 * output[0].square().sum(-1) - output[1]
        else:
            target = x.roll(1, -1)[..., : output.shape[-1]]
            rows = output if output.dim() == 1 else (output - target).square().sum(-1)
        total = total + rows.sum()
    return total / max(1, len(x))


def batch(rank: int, step: int, rows: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return (torch.randn(rows, DIM, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 2, DIM)).to(dtype)


# --- bit-equal after many steps ---------------------------------------------------------------------------------------


def train(
    at: Processes,
    names: Sequence[str],
    reset: str,
    seeds: str = "different",
    steps: int = STEPS,
    optimizer: Callable[..., Optimizer] = ADAM,
    accumulate: int = 1,
    **settings: Any,
) -> None:
    """Train with uneven batches, empty ones among them, and with NaN in one process; then all must be equal."""
    seed = at.rank if seeds == "different" else 0
    torch.manual_seed(seed)
    model = side_by_side(names, reset, seed)
    flow = any(name in FLOWS for name in names)
    ddp = at.wrap(model, **settings)
    stepped = optimizer(ddp.parameters())
    merges = MergeSchedule(ddp, stepped, every=EVERY, refine_every=5)
    trained = [parameter for layer in merges.layers for parameter in layer.perturbation()]
    merged = torch.zeros(len(merges.layers))
    for step in range(steps):
        stepped.zero_grad()
        x = batch(at.rank, step, 0 if step % 7 == at.rank else 8 + 3 * at.rank)
        hooks = []
        if step in NAN_STEPS and at.rank == at.size - 1:
            if flow or step == NAN_STEPS[-1]:  # a NaN in x would stay in the couplings of a flow
                hooks = [p.register_hook(lambda grad: torch.full_like(grad, torch.nan)) for p in trained]
            else:
                x = torch.full((8, DIM), torch.nan)
        *parts, last = x.chunk(accumulate)
        for part in parts:
            with ddp.no_sync():
                loss_of(ddp, part).backward()
        loss_of(ddp, last).backward()
        for hook in hooks:
            hook.remove()
        stepped.step()
        reports = merges.step()
        merged += torch.tensor([report.merged for report in reports] or [False])
        if step in NAN_STEPS and not all(report.discarded for report in reports):
            raise AssertionError(f"step {step}: one process had NaN, and a merge was not discarded")
    for name, part in model.items():
        counts = [int(merged[merges.layers.index(layer)]) for layer in p4_modules(part)]
        few = f"{counts} of {steps // EVERY} merges" if min(counts) < 0.7 * (steps // EVERY) else None
        at.problems[name] = few or difference(at, part, stepped) or _copied(part)
    check_replicas(ddp, stepped)


def _copied(model: nn.Module) -> str | None:
    """Whether what has merged with others can be copied and pickled."""
    for twin in copy.deepcopy(model), pickle.loads(pickle.dumps(model)):
        for name, tensor in model.state_dict().items():
            if torch.is_tensor(tensor) and not torch.equal(twin.state_dict()[name], tensor):
                return f"{name} of a copy differs"
    return None


def sketch_size(layer: nn.Module) -> int:
    """How many numbers the sketch of a layer's gradient has: k x d."""
    if isinstance(layer, (P4Givens, P4Circulant)):
        return 0  # they have no directions to learn
    return layer.u.numel()


def merge_traffic(at: Processes, names: Sequence[str], reset: str) -> None:
    """A merge is at most one all-reduce of k x d numbers for a layer, and none where directions are random."""
    for name in names:
        ddp = at.wrap(side_by_side([name], reset, at.rank))
        adam = ADAM(ddp.parameters())
        merges = MergeSchedule(ddp, adam, every=2, refine_every=2)
        at.problems[name] = None
        for step in range(4):
            loss_of(ddp, batch(at.rank, step, 8)).backward()
            adam.step()
            sketched = reset == "gradient" and merges.due
            allowed = [("all_reduce", sketch_size(layer)) for layer in merges.layers if sketched and sketch_size(layer)]
            with traffic() as calls:
                merges.step()
            if calls != allowed:
                at.problems[name] = f"step {step}: {calls} instead of {allowed}"


# --- different numbers of batches -------------------------------------------------------------------------------------


def different_numbers_of_batches(at: Processes, name: str, reset: str) -> None:
    """``Join([model, merges])``: nobody waits, and at the end all are equal, optimizer included."""
    ddp = at.wrap(side_by_side([name], reset, at.rank), **buffers(False))
    adam = ADAM(ddp.parameters())
    merges = MergeSchedule(ddp, adam, every=EVERY)
    for epoch in range(4):
        # One process has no batch at all, and who goes on longest is another one each time; the last epoch is even.
        batches = 7 * ((at.rank + epoch) % at.size) if epoch < 3 else 10
        with Join([ddp, merges]) if epoch < 3 else contextlib.nullcontext():
            for step in range(batches):
                adam.zero_grad()
                loss_of(ddp, batch(at.rank, step, 8)).backward()
                adam.step()
                merges.step()
        require(difference(at, ddp.module, adam))
        counts = at.gather(merges.state_dict())
        if any(other != counts[0] for other in counts):
            raise AssertionError(f"the schedules count differently: {counts}")
    if merges.steps != 3 * 7 * (at.size - 1) + 10:
        raise AssertionError(f"{merges.steps} steps were counted")


def wrong_join(at: Processes, order: str) -> None:
    ddp = at.wrap(P4Inv(DIM, seed=0))
    merges = MergeSchedule(ddp, every=EVERY)
    with raises(ReplicaError, "Join"), Join([ddp] if order == "alone" else [merges, ddp]):
        merges.step()


# --- what is said -----------------------------------------------------------------------------------------------------


def lone_model(at: Processes) -> None:
    """A model that nothing wraps is refused, for it would drift; with a group, it trains."""
    model = nn.Sequential(P4Inv(DIM, rank=RANK, reset="gradient", seed=at.rank), nn.Linear(DIM, DIM))
    with raises(ReplicaError, "group="):
        MergeSchedule(model)
    adam = ADAM(model.parameters())
    merges = MergeSchedule(model, adam, every=EVERY, group=at.group)
    for step in range(30):
        adam.zero_grad()
        if step or at.rank == 0:  # a missing gradient counts as zero
            loss_of(model, batch(at.rank, step, 8)).backward()
        average_gradients(list(model.parameters()), at.group)
        adam.step()
        merges.step()
    require(difference(at, model, adam))
    with raises(OptionError, "list"):
        average_gradients(set(model.parameters()), at.group)  # type: ignore[arg-type]
    alone = dist.new_group([at.rank], use_local_synchronization=True)
    if Replicas.of(model, alone) is not None:
        raise AssertionError("a group of one process has replicas")


def averaged_gradients(at: Processes) -> None:
    """They are what DistributedDataParallel makes of them."""
    model = P4Inv(DIM, rank=RANK, seed=0)
    twin = copy.deepcopy(model)
    x = batch(at.rank, 0, 8)
    ddp = at.wrap(twin)
    loss_of(ddp, x).backward()
    loss_of(model, x).backward()
    average_gradients(list(model.parameters()), at.group)
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        if not torch.allclose(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6):
            raise AssertionError(f"{name}: {mine.grad} instead of {theirs.grad}")


def difference_is_named(at: Processes) -> None:
    """`check_replicas` raises in all processes, for each kind of tensor, and says which one differs by how much."""
    model = FLOWS["realnvp with p4inv"](reset="gradient", seed=0)
    ddp = at.wrap(model)
    adam = ADAM(ddp.parameters())
    loss_of(ddp, batch(0, 0, 8)).backward()
    adam.step()
    check_replicas(ddp, adam)
    layer = p4_modules(model)[0]
    (path,) = (name for name, module in model.named_modules() if module is layer)
    last = at.rank == at.size - 1
    for name, tensor in ((f"{path}.u", layer.u), (f"{path}.frozen_weight", layer.frozen_weight)):
        with torch.no_grad():
            tensor[0, 1] += 0.25 * last
        with raises(ReplicaError, rf"{re.escape(name)}.*rank {at.size - 1}.*0\.25"):
            check_replicas(ddp, adam)
        Replicas(at.group).synchronize([model])
        check_replicas(ddp, adam)
    if last:
        layer.generator.manual_seed(5)
    with raises(ReplicaError, rf"{re.escape(path)}\.generator"):
        check_replicas(ddp)
    Replicas(at.group).synchronize([model])
    if last:
        adam.state[layer.u]["exp_avg"][0, 0] = torch.nan
    check_replicas(ddp)
    with raises(ReplicaError, "exp_avg of .*nan"):
        check_replicas(ddp, adam)
    Replicas(at.group).synchronize_optimizers([adam])
    check_replicas(ddp, adam)
    with raises(ReplicaError, "same model"):
        check_replicas(P4Inv(DIM if last else DIM + 1, seed=0), group=at.group)
    with raises(ReplicaError, "same model"):
        Replicas(at.group).synchronize([P4Inv(DIM, bias=last, seed=0)])
    with raises(ReplicaError, "differ"):
        check_replicas(P4Inv(DIM, seed=at.rank), group=at.group)


def everything_is_synchronized(at: Processes) -> None:
    """Tensors of each dtype and layout, shared ones among them, become those of the given rank, in place."""
    model = nn.Module()
    generator = torch.Generator().manual_seed(at.rank)
    for name, dtype in (("flags", torch.bool), ("counts", torch.int64), ("waves", torch.complex64)):
        model.register_buffer(name, torch.randn(3, 2, generator=generator).to(dtype))
    model.register_buffer("scalar", torch.randn((), generator=generator, dtype=torch.float64))
    model.register_buffer("empty", torch.empty(0))
    model.register_buffer("hidden", torch.randn(2, generator=generator), persistent=False)
    model.register_buffer("turned", torch.randn(3, 2, generator=generator).t())
    model.weight = nn.Parameter(torch.randn(2, 2, generator=generator))
    model.shared = model.weight
    model.layer = P4Inv(DIM, seed=at.rank)
    model.ignored = nn.Parameter(torch.full((1,), float(at.rank)))
    model._ddp_params_and_buffers_to_ignore = ["ignored"]
    pointers = {name: tensor.data_ptr() for name, tensor in model.named_buffers()}
    before = at.gather({name: tensor.detach().clone() for name, tensor in model.named_buffers()})
    Replicas(at.group).synchronize([model], source=at.size - 1)
    require(difference(at, model.layer))
    check_replicas(model, group=at.group)
    for name, tensor in model.named_buffers():
        if not torch.equal(tensor, before[-1][name]):
            raise AssertionError(f"{name} is not that of the last rank")
        if tensor.data_ptr() != pointers[name]:
            raise AssertionError(f"{name} was replaced")
    if float(model.ignored.detach()) != at.rank:
        raise AssertionError("what was to be ignored was not")
    torch.manual_seed(at.rank)
    replicas = Replicas(at.group)
    replicas.synchronize([model.layer])
    with replicas.common_draws(3):
        common = torch.randn(4)
    own = torch.randn(4)
    torch.manual_seed(at.rank)
    if any(not torch.equal(common, other) for other in at.gather(common)) or not torch.equal(own, torch.randn(4)):
        raise AssertionError("the default generators did not draw in common, or did not go on")


# --- checkpoints ------------------------------------------------------------------------------------------------------

RESUMED: dict[str, Callable[..., nn.Module]] = {
    "P4Inv": partial(LAYERS["P4Inv"], dtype=torch.float64),
    "P4Orthogonal": partial(LAYERS["P4Orthogonal"], dtype=torch.float64),
    "realnvp with p4inv": partial(FLOWS["realnvp with p4inv"], dtype=torch.float64),
}


def checkpoint_file(folder: Path, name: str, reset: str) -> Path:
    return folder / f"{name} {reset}.pt"


def go_on(model: nn.Module, optimizer: Optimizer, merges: MergeSchedule, steps: range) -> list[Tensor]:
    """Train on batches that are the same in each process, so that their number does not matter; return the merges."""
    tensors = []
    for step in steps:
        optimizer.zero_grad()
        loss_of(model, batch(0, step, 16, torch.float64)).backward()
        optimizer.step()
        if merges.step():
            tensors += [tensor.detach().clone() for layer in merges.layers for tensor in (layer.weight, layer.v)]
    return tensors


def save(at: Processes, name: str, reset: str) -> None:
    """Write a checkpoint in the midst of training, and the merges that follow."""
    ddp = at.wrap(RESUMED[name](reset=reset, seed=at.rank))
    adam = ADAM(ddp.parameters())
    merges = MergeSchedule(ddp, adam, every=EVERY, refine_every=5)
    go_on(ddp, adam, merges, range(19))
    state = {"model": ddp.module.state_dict(), "optimizer": adam.state_dict(), "merges": merges.state_dict()}
    state = copy.deepcopy(state) | {"found": go_on(ddp, adam, merges, range(19, 40))}
    if at.rank == 0:
        torch.save(state, checkpoint_file(at.folder, name, reset))
    dist.barrier(at.group)


def resume(
    folder: Path, name: str, reset: str, wrap: Callable[[nn.Module], nn.Module] | None = None, rank: int = 0
) -> str | None:
    """Go on from a checkpoint of two processes, and return what is not as it was there (None: nothing)."""
    state = torch.load(checkpoint_file(folder, name, reset), weights_only=True)
    model = RESUMED[name](reset=reset, seed=10 + rank)
    wrapped = wrap(model) if wrap else model
    adam = ADAM(wrapped.parameters())
    merges = MergeSchedule(wrapped, adam, every=EVERY, refine_every=5)
    if rank == 0:  # the others take over what it has
        model.load_state_dict(state["model"])
    adam.load_state_dict(state["optimizer"])
    merges.load_state_dict(state["merges"])
    tensors = go_on(wrapped, adam, merges, range(19, 40))
    if len(tensors) != len(state["found"]):
        return f"{len(tensors)} tensors of merges instead of {len(state['found'])}"
    apart = max(float((a - b).abs().max()) for a, b in zip(tensors, state["found"], strict=True))
    return f"merges differ by {apart:.3g} from those of two processes" if not apart < 1e-8 else None


def resume_here(at: Processes, name: str, reset: str) -> None:
    require(resume(at.folder, name, reset, at.wrap, at.rank))


# --- FSDP -------------------------------------------------------------------------------------------------------------


def sharding(at: Processes) -> Callable[..., None]:
    """`fully_shard` over the processes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # That a flow's output may be a view matters to those who write into it.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    return partial(fully_shard, mesh=init_device_mesh("cpu", (at.size,)))


def fsdp_is_refused(at: Processes) -> None:
    fully_shard = sharding(at)
    model = FLOWS["realnvp with p4inv"](reset="gradient", seed=0)
    fully_shard(model)
    with raises(ShardingError, r"P4Inv: .* is divided.*ignored_params.*average_gradients"):
        MergeSchedule(model, group=dist.group.WORLD)
    with raises(ShardingError, "averaged already"):
        average_gradients(list(model.parameters()))


def fsdp1_is_refused(at: Processes, use_orig_params: bool) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = nn.Sequential(P4Inv(DIM, seed=0), nn.Linear(DIM, DIM))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        wrapped = FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))
    with raises(ShardingError, "ignored_params"):
        MergeSchedule(wrapped, group=dist.group.WORLD)


def fsdp_recipe(at: Processes, name: str, reset: str) -> None:
    """What the error advises: P4 layers whole, everything else sharded."""
    fully_shard = sharding(at)
    model = nn.Sequential((LAYERS | FLOWS)[name](reset=reset, seed=at.rank))
    if name in LAYERS:
        model.append(nn.Linear(DIM, DIM))
    mine = [p for layer in p4_modules(model) for p in layer.parameters()]
    fully_shard(model, ignored_params=set(mine))
    others = [p for p in model.parameters() if all(p is not q for q in mine)]
    optimizers = [ADAM(mine), ADAM(others)]
    merges = MergeSchedule(model, optimizers, every=EVERY, group=dist.group.WORLD)
    for step in range(30):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, batch(at.rank, step, 8 + at.rank)).backward()
        average_gradients(mine)
        for optimizer in optimizers:
            optimizer.step()
        merges.step()
    require(difference(at, nn.ModuleList(merges.layers), optimizers[0]))
    check_replicas(model, optimizers)
    with torch.no_grad():
        losses = at.gather(float(loss_of(model, batch(0, 0, 8))))
    if len(set(losses)) > 1:
        raise AssertionError(f"the losses of one batch are {losses}")


# --- all of them ------------------------------------------------------------------------------------------------------


def buffers(sync: bool) -> dict[str, Any]:
    """The setting of DistributedDataParallel by the name that this torch has for it."""
    return {"forward_sync_buffers" if NEW_DDP else "broadcast_buffers": sync}


SETTINGS: dict[str, dict[str, Any]] = {
    "broadcast_buffers=True": {"broadcast_buffers": True},
    "broadcast_buffers=False": {"broadcast_buffers": False},
    "no first synchronization": {"init_sync": False, "broadcast_buffers": False},
    "static_graph": {"static_graph": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "equal seeds": {"seeds": "equal"},
    "accumulated gradients": {"accumulate": 2},
    "SGD with momentum": {"optimizer": partial(torch.optim.SGD, lr=1e-3, momentum=0.9)},
}
if NEW_DDP:
    SETTINGS |= {f"forward_sync_buffers={sync}": {"forward_sync_buffers": sync} for sync in (True, False)}
SOME = ("P4Inv", "P4Orthogonal", "a property of one's own")


def cases(size: int) -> dict[str, tuple[Case, Sequence[str]]]:
    """What so many processes do, by name, and the parts that report for themselves."""
    cases_by_name: dict[str, tuple[Case, Sequence[str]]] = {}

    def training(title: str, names: Sequence[str], **options: Any) -> None:
        cases_by_name[title] = partial(train, names=names, **options), names

    turns = itertools.cycle((True, False))
    for reset in RESETS:
        training(f"layers, {reset}", list(LAYERS), reset=reset, **buffers(next(turns)))
        for name in FLOWS:
            training(f"flow, {reset}, {name}", [name], reset=reset, **buffers(next(turns)))
    if size == 2:
        for setting, options in SETTINGS.items():
            for reset in RESETS:
                training(f"layers, {reset}, {setting}", SOME, reset=reset, steps=51, **options)
            training(f"flow, gradient, {setting}", ["realnvp with p4inv"], reset="gradient", steps=51, **options)
    for reset in RESETS:
        names = [name for name in LAYERS | FLOWS if name != "a property of one's own"]
        cases_by_name[f"collectives, {reset}"] = partial(merge_traffic, names=names, reset=reset), names
        for name in RESUMED:
            case, title = (save, "checkpoint") if size == 2 else (resume_here, "resumed")
            cases_by_name[f"{title}, {reset}, {name}"] = partial(case, name=name, reset=reset), ()
        for name in ("P4Inv", "realnvp with p4orthogonal"):
            cases_by_name[f"Join, {reset}, {name}"] = partial(different_numbers_of_batches, name=name, reset=reset), ()
    for name, reset in zip(("P4Orthogonal", "realnvp with p4inv"), RESETS, strict=True) if NEW_FSDP else ():
        cases_by_name[f"FSDP2 recipe, {reset}, {name}"] = partial(fsdp_recipe, name=name, reset=reset), ()
    for use in (True, False):
        cases_by_name[f"FSDP1 is refused, use_orig_params={use}"] = partial(fsdp1_is_refused, use_orig_params=use), ()
    for order in ("alone", "last"):
        cases_by_name[f"Join with the model {order}"] = partial(wrong_join, order=order), ()
    cases_by_name["FSDP2 is refused"] = fsdp_is_refused, ()
    for case in (lone_model, averaged_gradients, difference_is_named, everything_is_synchronized):
        cases_by_name[case.__name__.replace("_", " ")] = case, ()
    return cases_by_name


def reports(size: int) -> list[str]:
    """The names of all that so many processes report on."""
    return [
        name for title, (_, parts) in cases(size).items() for name in (title, *(f"{title}: {part}" for part in parts))
    ]


if __name__ == "__main__":
    folder, rank, size, only = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), "".join(sys.argv[4:5])
    run(folder, rank, size, {title: case for title, (case, _) in cases(size).items() if only in title})
