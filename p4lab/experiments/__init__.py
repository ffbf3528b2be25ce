"""Repeatable experiments: problems x methods x seeds, as tables."""
