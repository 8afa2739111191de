"""The figures of a rollouts artifact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.lengths import length
from schemas.rollouts import ends_episode


def read_scalars(paths: Sequence[Path]) -> pl.DataFrame:
    """What the figures are made of, row by row."""
    rows = pl.scan_parquet(list(paths), glob=False).select(
        "group_id",
        "status",
        "reward",
        "policy_version",
        "error",
        "finish_reason",
        tokens=length("completion_token_ids"),
        prompt_tokens=length("prompt_token_ids"),
    )
    return rows.collect()


def summarize(rows: pl.DataFrame) -> dict[str, Any]:
    """Figures of all completions, as the manifest has them.

    Args:
        rows: of `read_scalars`.
    """
    ends = rows.filter(ends_episode())
    statuses = ends.group_by("status").len().sort("status")
    return {
        "groups": rows["group_id"].n_unique(),
        "completions": len(ends),
        "tokens": int(rows["tokens"].sum()),
        "prompt_tokens": int(rows["prompt_tokens"].sum()),
        "reward_mean": ends["reward"].mean(),
        "statuses": dict(statuses.iter_rows()),
        "policy_version": int(rows["policy_version"][0]),
    }
