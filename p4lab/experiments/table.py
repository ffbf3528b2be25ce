"""Results as Markdown: medians and spread over seeds, and who wins."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from p4lab.experiments.settings import DIGITS, MULTIMODAL

Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""By method, the results of its seeds in the order of the seeds."""
TOY_COLUMNS = {
    "test NLL": ("test_nll", ".3f"),
    "KL": ("kl", ".3f"),
    "bridge mass %": ("bridge_mass", ".1%"),
    "modes %": ("mode_coverage", ".0%"),
    "SW2": ("sliced_wasserstein", ".3f"),
    "MMD²": ("mmd", ".1e"),
    "round trip": ("round_trip", ".0e"),
}
DIGITS_COLUMNS = {
    "test nats/pixel": ("test_nll", ".4f"),
    "test bits/pixel": ("bits_per_dim", ".3f"),
    "train nats/pixel": ("train_nll", ".4f"),
    "round trip": ("round_trip", ".0e"),
}
COMPARED = {"test NLL": "test_nll", "bridge mass": "bridge_mass"}


def spread(values: Sequence[float], form: str) -> str:
    """Return "median [min, max]", or the one number that there is; what is not finite counts as infinitely bad.

    Example:
        >>> spread([0.3, 0.1, 0.2], ".1f")
        '0.2 [0.1, 0.3]'
    """
    values = [value if math.isfinite(value) else math.inf for value in values]
    text = [f"{value:{form}}".removesuffix("%") for value in (statistics.median(values), min(values), max(values))]
    return f"{text[0]} [{text[1]}, {text[2]}]" if len(values) > 1 else text[0]


def problem_table(problem: str, results: Results) -> str:
    """Return one row for each method: its parameters, its metrics (median [min, max] over seeds), and its cost."""
    columns = DIGITS_COLUMNS if problem == DIGITS else TOY_COLUMNS
    header = ["method", "parameters", *columns, "steps", "seconds", "seeds"]
    rows = []
    for method, runs in results.items():
        broken = sum(not run["finite"] for run in runs)
        cells = [spread([run[key] for run in runs], form) for key, form in columns.values()]
        steps, seconds = (statistics.median(run[key] for run in runs) for key in ("steps", "seconds"))
        seeds = f"{len(runs)}" + f", {broken} stopped early" * bool(broken)
        rows.append([method, f"{runs[0]['parameters']:,}", *cells, f"{steps:.0f}", f"{seconds:.1f}", seeds])
    return markdown(header, rows)


def toy_verdict(results: Mapping[str, Results], ours: str = "p4inv_bent", other: str = "realnvp") -> str:
    """Return for each toy density how the two methods compare by their medians, and who wins how often; "" if none.

    Args:
        results: by problem.
        ours, other: methods.
    """
    compared = {name: found for name, found in results.items() if ours in found and other in found}
    if not compared:
        return ""
    rows, wins = [], dict.fromkeys(COMPARED, 0)
    many = [name for name in compared if name in MULTIMODAL]
    for name, found in compared.items():
        row = [name]
        for title, key in COMPARED.items():
            medians = [_median(found[method], key) for method in (ours, other)]
            better = medians[0] < medians[1]
            seeds = sum(a[key] < b[key] for a, b in zip(found[ours], found[other], strict=False))
            wins[title] += better and (key == "test_nll" or name in many)
            row += [f"{medians[0] - medians[1]:+.3f}", ours if better else other, f"{seeds}/{len(found[ours])}"]
        rows.append(row)
    header = ["problem", *(cell for title in COMPARED for cell in (f"{title}: difference", "better", "seeds"))]
    said = (
        f"{ours} has the lower median test NLL on {wins['test NLL']} of {len(compared)} densities, and the lower "
        f"median bridge mass on {wins['bridge mass']} of the {len(many)} that have several pieces."
    )
    return f"{markdown(header, rows)}\n\n{said}"


def digits_verdict(results: Results, ours: str = "p4inv", other: str = "swap") -> str:
    """Return in a sentence how two mixings compare on the digits; "" if one is missing."""
    if ours not in results or other not in results:
        return ""
    medians = [_median(results[name], "test_nll") for name in (ours, other)]
    seeds = sum(a["test_nll"] < b["test_nll"] for a, b in zip(results[ours], results[other], strict=False))
    return (
        f"Median test NLL: {ours} {medians[0]:.4f}, {other} {medians[1]:.4f} nats per pixel; {ours} is lower with "
        f"{seeds} of {len(results[ours])} seeds."
    )


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]
    lines = ["| " + " | ".join(f"{cell:{w}}" for cell, w in zip(line, widths, strict=True)) + " |" for line in rows]
    head = "| " + " | ".join(f"{cell:{w}}" for cell, w in zip(header, widths, strict=True)) + " |"
    return "\n".join([head, "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines])


def _median(runs: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.median(run[key] if math.isfinite(run[key]) else math.inf for run in runs)
