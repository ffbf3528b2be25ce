"""Command line of the benchmarks."""

import argparse

import torch

from p4lab.bench import linear, steps, timing


def main() -> None:
    """Run the chosen benchmarks and print Markdown tables."""
    parser = argparse.ArgumentParser(prog="python -m p4lab.bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "steps", "linear"), default="all")
    parser.add_argument("--quick", action="store_true", help="few sizes, rounds and seeds: a look, not a measurement")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's own choice)")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(f"{timing.machine()}\n")
    if options.what in ("all", "steps"):
        sizes, rounds = ((2, 64, 256, 512), 3) if options.quick else (steps.SIZES, 9)
        large = [size for size in sizes if size >= 256]
        _print(
            "Training step (forward, backward, Adam, merge every 10), batch 512, as a ratio to nn.Linear",
            steps.steps(sizes, rounds=rounds),
        )
        _print(
            "The same for a first layer (no input gradient)", steps.steps(large, rounds=rounds, input_gradient=False)
        )
    if options.what in ("all", "linear"):
        seeds, limit = ((0,), 5.0) if options.quick else ((0, 1, 2, 3, 4), 20.0)
        _print("Linear problems, d = 101, batch 64: to mean squared error 1e-6", linear.linear(seeds, limit=limit))


def _print(title: str, body: str) -> None:
    print(f"\n### {title}\n\n{body}\n", flush=True)


if __name__ == "__main__":
    main()
