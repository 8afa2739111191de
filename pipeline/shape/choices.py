"""What becomes of each completion before training: a named choice for every case, and the reason on every dropped row."""

from __future__ import annotations

import polars as pl

from pipeline.algorithms.cells.advantages import GROUP, Advantage, is_dead
from pipeline.config import ShapeConfig


def shape_rows(rows: pl.DataFrame, choices: ShapeConfig, advantage: Advantage) -> pl.DataFrame:
    """Advantage, weight and fate of each completion.

    Args:
        rows: group_id, sample_index, status, reward, tokens (completion length); whole groups, any order.

    Returns:
        The rows of a `Shaped` table, in the order of `rows`. Completions without a usable reward are left out of their
        group's statistics; truncated ones that are dropped are not (their reward is known).
    """
    status = pl.col("status")
    reward = pl.col("reward")
    if choices.reward_error == "zero_reward":
        reward = pl.when(status == "reward_error").then(0.0).otherwise(reward)
    if choices.truncated == "zero_reward":
        reward = pl.when(status == "truncated").then(0.0).otherwise(reward)
    unusable = {
        "engine_error": status == "engine_error",
        "reward_error": (status == "reward_error") & (choices.reward_error == "drop"),
        "empty": pl.col("tokens") == 0,
    }
    numbered = rows.with_row_index("row").with_columns(_first_reason(unusable), reward=reward)
    usable = numbered.filter(pl.col("drop_reason").is_null())
    dropped = {
        "small_group": pl.len().over(GROUP) < choices.min_group,
        "zero_variance": is_dead(pl.col("reward")) & (choices.zero_variance == "drop"),
        "truncated": (pl.col("status") == "truncated") & (choices.truncated == "drop"),
    }
    usable = usable.with_columns(_first_reason(dropped), advantage=advantage.expression(pl.col("reward")))
    shaped = pl.concat([usable, numbered.filter(pl.col("drop_reason").is_not_null())], how="diagonal").sort("row")
    keep = pl.col("drop_reason").is_null()
    return shaped.select(
        "group_id",
        "sample_index",
        advantage=pl.when(keep).then(pl.col("advantage")).otherwise(0.0).cast(pl.Float32),
        weight=pl.when(keep).then(1.0).otherwise(0.0).cast(pl.Float32),
        keep=keep,
        drop_reason="drop_reason",
    )


def _first_reason(reasons: dict[str, pl.Expr]) -> pl.Expr:
    first = pl.coalesce([pl.when(condition).then(pl.lit(name)) for name, condition in reasons.items()])
    return first.cast(pl.String).alias("drop_reason")
