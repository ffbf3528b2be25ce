"""Train one flow in several processes, merges included: an example to start, and to copy from.

    torchrun --standalone --nproc-per-node 2 -m p4lab.experiments.replicas --save flow.pt
    torchrun --standalone --nproc-per-node 3 -m p4lab.experiments.replicas --resume flow.pt

It trains on GPUs if there is one for each process, else on processors. Without torchrun it is one process.
"""

import argparse
import gc
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from p4lab.command import command
from p4lab.distributed import check_replicas
from p4lab.errors import RunFileError
from p4lab.flows import realnvp
from p4lab.p4 import RECOMMENDED
from p4lab.problems import density


def begin() -> torch.device:
    """Join the processes that torchrun has started, if it has, and return the device of this one."""
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if gpus else "gloo")
    return device


def train(device: torch.device, steps: int, rows: int, save: Path | None, resume: Path | None) -> None:
    """Train, print the loss of rank 0 every 50 steps, and check at the end that all replicas are equal.

    Raises:
        ReplicaError: they are not.
    """
    several = dist.is_initialized()
    rank = dist.get_rank() if several else 0
    flow = realnvp(2, blocks=4, mixing="p4inv", hidden=32, seed=rank).to(device)  # the seeds may well differ
    model: nn.Module = DistributedDataParallel(flow) if several else flow
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    merges = RECOMMENDED.schedule(model, optimizer)
    if resume:
        state: dict[str, Any] = torch.load(resume, map_location=device, weights_only=True)
        flow.load_state_dict(state["flow"])
        optimizer.load_state_dict(state["optimizer"])
        merges.load_state_dict(state["merges"])  # after the flow: here the replicas take over what rank 0 has
    moons = density("two_moons")
    for step in range(merges.steps + 1, merges.steps + steps + 1):
        generator = torch.Generator().manual_seed(step * 1000 + rank)  # each process has data of its own
        x = moons.sample(rows, generator, dtype=torch.float32).to(device)
        z, logabsdet = model(x)
        loss = (0.5 * z.square().sum(-1) - logabsdet).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        merges.step()
        if rank == 0 and step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    check_replicas(model, optimizer)
    if rank == 0 and save:
        state = {"flow": flow.state_dict(), "optimizer": optimizer.state_dict(), "merges": merges.state_dict()}
        torch.save(state, save)
    if rank == 0:
        replicas = f"{dist.get_world_size()} replicas are equal" if several else "done by one process"
        print(f"{replicas} after {merges.steps} steps", flush=True)


@command("p4lab.experiments.replicas", __doc__, steps=200, batch=256, save=None, resume=None)
def main(options: argparse.Namespace) -> None:
    """Train, and leave the other processes in good order."""
    if options.resume and not options.resume.is_file():
        raise RunFileError(f"--resume {options.resume}: there is no such file")
    train(begin(), options.steps, options.batch, options.save, options.resume)
    if dist.is_initialized():
        gc.collect()  # gloo's threads end with the last model that uses them, and must do so before Python does
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
