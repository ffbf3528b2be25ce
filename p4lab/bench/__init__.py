"""Benchmarks that anyone can run: ``python -m p4lab.bench``. Ratios are measured side by side in one run."""
