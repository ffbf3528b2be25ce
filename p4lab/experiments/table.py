"""Results as Markdown: medians and spread over seeds, and who wins."""

from collections.abc import Mapping

from p4lab.bench.tables import Runs, median, method_table, table
from p4lab.experiments.settings import DIGITS, MULTIMODAL

Results = Mapping[str, Runs]
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
COST = {"steps": ("steps", ".0f"), "seconds": ("seconds", ".1f")}
COMPARED = {"test NLL": "test_nll", "bridge mass": "bridge_mass"}


def problem_table(problem: str, results: Results) -> str:
    """Return one row for each method: its parameters, its metrics (median [min, max] over seeds), and its cost."""
    columns = DIGITS_COLUMNS if problem == DIGITS else TOY_COLUMNS
    return method_table(results, columns, lambda run: not run["finite"], COST)


def toy_verdict(results: Mapping[str, Results], ours: str = "p4inv_bent", other: str = "realnvp") -> str:
    """Return for each toy density how the two methods compare by their medians, and who wins how often; "" if none.

    Args:
        results: by problem.
        ours, other: methods.
    """
    compared = {name: runs for name, runs in results.items() if ours in runs and other in runs}
    if not compared:
        return ""
    rows, wins = [], dict.fromkeys(COMPARED, 0)
    many = [name for name in compared if name in MULTIMODAL]
    for name, runs in compared.items():
        row = [name]
        for title, key in COMPARED.items():
            difference, seeds = _compared(runs[ours], runs[other], key)
            wins[title] += difference < 0 and (key == "test_nll" or name in many)
            row += [f"{difference:+.3f}", ours if difference < 0 else other, f"{seeds}/{len(runs[ours])}"]
        rows.append(row)
    header = ["problem", *(cell for title in COMPARED for cell in (f"{title}: difference", "better", "seeds"))]
    verdict = (
        f"{ours} has the lower median test NLL on {wins['test NLL']} of {len(compared)} densities, and the lower "
        f"median bridge mass on {wins['bridge mass']} of the {len(many)} that have several pieces."
    )
    return f"{table(header, rows)}\n\n{verdict}"


def digits_verdict(results: Results, ours: str = "p4inv", other: str = "swap") -> str:
    """Return in a sentence how two mixings compare on the digits; "" if one is missing."""
    if ours not in results or other not in results:
        return ""
    medians = [median(run["test_nll"] for run in results[name]) for name in (ours, other)]
    _, seeds = _compared(results[ours], results[other], "test_nll")
    return (
        f"Median test NLL: {ours} {medians[0]:.4f}, {other} {medians[1]:.4f} nats per pixel; {ours} is lower with "
        f"{seeds} of {len(results[ours])} seeds."
    )


def _compared(ours: Runs, other: Runs, key: str) -> tuple[float, int]:
    """Return the difference of the medians, and with how many seeds ours is lower."""
    difference = median(run[key] for run in ours) - median(run[key] for run in other)
    return difference, sum(a[key] < b[key] for a, b in zip(ours, other, strict=False))
