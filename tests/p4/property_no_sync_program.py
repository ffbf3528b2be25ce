"""Train every P4 property on a fake GPU and print what waited for the host (JSON): see no_sync_program.py."""

from __future__ import annotations

import json
import os

import torch
from p4.no_sync_program import NoCopies, fake_gpu
from torch import nn
from torch._subclasses import FakeTensorMode

from p4lab.p4 import MergeSchedule, P4Circulant, P4Lipschitz, P4Permutation, P4PositiveDefinite, P4Spectrum, P4Stiefel

LAYERS = {
    "positive-definite": lambda **kind: P4PositiveDefinite(8, rank=2, seed=0, **kind),
    "lipschitz": lambda **kind: P4Lipschitz(8, 8, rank=2, seed=0, **kind),
    "stiefel": lambda **kind: P4Stiefel(8, 3, rank=2, seed=0, **kind),
    "spectrum": lambda **kind: P4Spectrum(8, 3, rank=2, seed=0, **kind),
    "lipschitz-oblong": lambda **kind: P4Lipschitz(8, 3, rank=2, seed=0, **kind),
    "circulant": lambda device, **kind: P4Circulant(8, device=device),
    "permutation": lambda **kind: P4Permutation(8, rank=2, seed=0, **kind),
    "caught": lambda **kind: P4Lipschitz(8, 8, seed=0, **kind),
}


def train(device: str, name: str, reset: str) -> None:
    with FakeTensorMode():
        layer = LAYERS[name](reset=reset, device=device)
        model = nn.Sequential(layer, nn.Tanh())
        optimizer = torch.optim.Adam(model.parameters(), capturable=True)
        merges = MergeSchedule(model, optimizer, every=1, refine_every=1)
        for _ in range(2):
            x = torch.randn(4, 8, device=device)
            with NoCopies():
                optimizer.zero_grad()
                loss = model(x).square().mean()
                if hasattr(layer, "inverse"):
                    items = (4,) if name == "permutation" else ()
                    loss = loss + layer.inverse(x).square().mean() - layer.logabsdet(*items) + layer.sign(*items)
                loss.backward()
                if name == "caught":
                    loss.item()
                optimizer.step()
                merges.step()


def main() -> None:
    device, results = fake_gpu(), {}
    for name in LAYERS:
        for reset in ("gaussian", "gradient"):
            try:
                train(device, name, reset)
                results[f"{name}-{reset}"] = None
            except Exception as error:
                results[f"{name}-{reset}"] = f"{type(error).__name__}: {error}"
    print(json.dumps(results), flush=True)
    os._exit(0)  # autograd's thread for a fake device may abort an ordinary exit


if __name__ == "__main__":
    main()
