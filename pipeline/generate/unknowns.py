"""What is not known of stored completions: the figures that the summary of imported ones has beside those of any."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import polars as pl

OF_ROLLOUTS = {
    "without_logprobs": pl.col("behavior_logprobs").is_null(),
    "without_reward": pl.col("reward").is_null(),
    "without_sampling": pl.any_horizontal(pl.col("temperature", "top_p", "top_k", "min_p").is_null()),
    "scored": pl.col("logprobs_mode") == "scored",
}
OF_ORIGINS = {"retokenized": pl.col("tokens") == "retokenized"}
LACKS_LOGPROBS = pl.col("behavior_logprobs").is_null() | (pl.col("logprobs_mode") == "unknown")
"""Rows whose logprobs are not known, or not known to be the policy's: a later scoring fills them in."""


def count_unknowns(names: Collection[str], rollouts: Sequence[Path], origins: Sequence[Path]) -> dict[str, int]:
    """In how many rows each of these figures finds what it counts; other names are passed over.

    Args:
        rollouts: files of the table.
        origins: files of the table, of the same rows.
    """
    return {
        **_counted({name: rule for name, rule in OF_ROLLOUTS.items() if name in names}, rollouts),
        **_counted({name: rule for name, rule in OF_ORIGINS.items() if name in names}, origins),
    }


def _counted(rules: dict[str, pl.Expr], files: Sequence[Path]) -> dict[str, int]:
    if not rules or not files:
        return {}
    found = pl.scan_parquet(list(files), glob=False).select(**{name: rule.sum() for name, rule in rules.items()})
    return {name: int(count) for name, count in found.collect().row(0, named=True).items()}
