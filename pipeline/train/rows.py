"""Rollouts as training and scoring read them: one file at a time, whole groups together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from pipeline.common.lengths import length
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup

KEY = ["group_id", "sample_index"]
_READ = [
    "prompt_token_ids", "completion_token_ids", "behavior_logprobs", "action_mask", "reward", "temperature", "policy_id",
    "policy_version",
]  # fmt: skip


def groups_of(path: Path) -> Iterator[TrainingGroup]:
    """Every group of a rollouts file, without advantages."""
    rows = in_groups(read_rows(path, policy="")).filter(pl.col("tokens").list.len() > 0)
    for _, frame in rows.group_by("group_id", maintain_order=True):
        completions = [
            TrainingCompletion(
                group_id=row["group_id"],
                sample_index=row["sample_index"],
                tokens=np.asarray(row["tokens"], np.int32),
                behavior=None,
                mask=np.ones(len(row["tokens"]), np.bool_),
                temperature=row["temperature"],
            )
            for row in frame.select(*KEY, "tokens", "temperature").iter_rows(named=True)
        ]
        yield TrainingGroup(np.asarray(frame["prompt_token_ids"][0], np.int32), completions)


def longest_of(paths: list[Path]) -> int:
    """Tokens of the longest prompt with its completion in rollouts files."""
    both = length("prompt_token_ids") + length("completion_token_ids")
    return int(pl.scan_parquet(paths, glob=False).select(both.max()).collect().item() or 0)


def read_rows(path: Path, policy: str) -> pl.DataFrame:
    """A rollouts file with null masks filled in. Greedy completions (temperature 0) are scored at temperature 1.

    Args:
        policy: id of the checkpoint that training starts from.
    """
    temperature = pl.col("temperature").fill_null(1.0)
    every = pl.col("completion_token_ids").list.eval(pl.element() >= 0)
    frame = pl.read_parquet(path, columns=[*KEY, *_READ], glob=False)
    return frame.select(
        *KEY,
        "prompt_token_ids",
        "policy_version",
        from_parent=pl.col("policy_id") == policy,
        tokens="completion_token_ids",
        behavior="behavior_logprobs",
        mask=pl.coalesce("action_mask", every),
        reward=pl.col("reward").fill_null(float("nan")),
        temperature=pl.when(temperature == 0).then(1.0).otherwise(temperature),
    )


def in_groups(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows in the order of their keys, with `starts_group`."""
    rows = rows.sort(KEY)
    return rows.with_columns(starts_group=pl.col("group_id") != pl.col("group_id").shift(1, fill_value=""))
