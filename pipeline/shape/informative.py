"""Whether rewards tell an algorithm anything: asked of settings before there are any, and of a round's as they are."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.advantages import DEAD_RANGE, Constant
from pipeline.algorithms.cells.cell import BEHAVIOR
from pipeline.algorithms.cells.density import DENSITY
from pipeline.algorithms.preference import Preference
from pipeline.config.shape import ShapeConfig
from pipeline.shape.choices import KEPT, REASON, finished, shape_rows, with_pairs

MOST_MADE_UP = 16
"""Parts that the made-up groups cut their size into: of one none is solved, of one a sixteenth, and so on."""
MOST_SAMPLES = 4096
"""Larger groups are not tried: that takes seconds, and they hold every mix of rewards."""


def one_reward(rewards: pl.Series, algorithm: Algorithm) -> dict[str, float]:
    """For the summary: {"only_reward": value} if all of a round's rewards are equal and its algorithm goes by them, else {}."""
    goes_by_them = algorithm.filters or not isinstance(algorithm.advantage, Constant)
    low, high = rewards.min(), rewards.max()
    if not goes_by_them or not isinstance(low, float) or not isinstance(high, float) or high - low >= DEAD_RANGE:
        return {}
    return {"only_reward": low}


def imitates(algorithm: Algorithm) -> bool:
    """Whether an algorithm learns from completions that are all equally good: its advantage does not compare them."""
    return not isinstance(algorithm, Preference) and isinstance(algorithm.advantage, Constant)


def cannot_learn(samples: int, max_tokens: int, choices: ShapeConfig, algorithm: Algorithm) -> Iterator[str]:
    """Why a run's settings leave nothing to learn from its own rollouts, whatever their rewards are. Nothing if they do.

    Args:
        samples: size of a group.
        max_tokens: longest completion.
    """
    if choices.min_group > samples:
        yield (
            f"shape.min_group is {choices.min_group} and generate.samples {samples}: every group is too small, so no completion "
            "is trained on"
        )
        return
    if samples > MOST_SAMPLES:
        return
    rows = finished(shape_rows(_made_up(samples, max_tokens, choices, algorithm), choices, algorithm, seed=0), algorithm)
    if isinstance(algorithm, Preference):
        rows, _ = with_pairs(rows, algorithm.pairing)
    kept = rows.filter(KEPT)
    if kept.is_empty():
        reasons = ", ".join(sorted(rows[REASON].drop_nulls().unique()))
        yield f"groups of generate.samples {samples} are dropped whatever their rewards ({reasons}), so nothing is trained on"
    elif (kept["advantage"] == 0).all():
        yield (
            f"{algorithm.name} compares a completion with the others of its group, and generate.samples is {samples}: every "
            "advantage is 0, so nothing is learned. Use samples: 2 or more"
        )


def _made_up(samples: int, max_tokens: int, choices: ShapeConfig, algorithm: Algorithm) -> pl.DataFrame:
    """Groups of completions of which none, some and all are solved."""
    solved = sorted({round(samples * share / MOST_MADE_UP) for share in range(MOST_MADE_UP + 1)})
    best = max(1.0, choices.solved_at)
    groups = [
        pl.DataFrame({"sample_index": range(samples)}).with_columns(
            group_id=pl.lit(f"made-up-{count}"), reward=pl.when(pl.col("sample_index") < count).then(best).otherwise(0.0)
        )
        for count in solved
    ]
    rows = pl.concat(groups).with_columns(
        status=pl.lit("ok"),
        policy_version=pl.lit(0),
        tokens=pl.lit(1),
        drawn=pl.lit(1),
        max_tokens=pl.lit(max_tokens),
        sample_index=pl.col("sample_index").cast(pl.Int32),
    )
    return rows.with_columns(pl.lit(-0.5).alias(DENSITY)) if BEHAVIOR in algorithm.shaping_needs else rows
