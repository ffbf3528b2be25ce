"""Train rotations and shears on a fake GPU and print what waited for the host (JSON): see no_sync_program.py."""

from __future__ import annotations

import json
import os

import torch
from p4.no_sync_program import NoCopies, fake_gpu
from p4.rotations import KINDS, WITH_DIRECTIONS
from torch import nn
from torch._subclasses import FakeTensorMode

from p4lab.p4 import MergeSchedule, P4Linear

CASES = {
    f"{kind.__name__}-{reset}-{direction}": (kind, reset, direction)
    for kind in KINDS
    for reset in ("gaussian", "gradient")
    for direction in ("forward", "inverse", "caught")
    if kind in WITH_DIRECTIONS or reset == "gaussian"
}


def train(device: str, kind: type[P4Linear], reset: str, direction: str) -> None:
    with FakeTensorMode():
        options = {"reset": reset} if kind in WITH_DIRECTIONS else {}
        layer = kind(9, rank=2, seed=0, device=device, **options)
        model = nn.Sequential(layer, nn.Tanh())
        optimizer = torch.optim.Adam(model.parameters(), capturable=True)
        merges = MergeSchedule(model, optimizer, every=1, refine_every=1)
        for _ in range(2):
            x = torch.randn(4, 9, device=device)
            with NoCopies():
                optimizer.zero_grad()
                y = layer.inverse(x) if direction == "inverse" else model(x)
                loss = y.square().mean() - layer.logabsdet() + layer.sign()
                loss.backward()
                if direction == "caught":
                    loss.item()
                optimizer.step()
                merges.step()


def main() -> None:
    device, results = fake_gpu(), {}
    for name, case in CASES.items():
        try:
            train(device, *case)
            results[name] = None
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(results), flush=True)
    os._exit(0)  # autograd's thread for a fake device may abort an ordinary exit


if __name__ == "__main__":
    main()
