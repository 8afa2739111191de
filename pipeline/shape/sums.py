"""Figures of a shaped artifact, file by file: whatever its size, a few numbers are held."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import polars as pl

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.advantages import DEAD_RANGE
from pipeline.shape.informative import one_reward

GRADED = ["group_id", "reward"]
"""What `FateSums.add` needs of rollouts."""


class FateSums:
    """What becomes of rows, added up over files that hold whole groups."""

    def __init__(self) -> None:
        self._kept = self._kept_groups = self._positives = self._negatives = self._dead = 0
        self._dropped: Counter[str] = Counter()
        self._weights: tuple[list[float], list[float]] = [], []
        self._least, self._most = math.inf, -math.inf

    def add(self, shaped: pl.DataFrame, rollouts: pl.DataFrame) -> None:
        """Rows of a file.

        Args:
            shaped: rows of a `Shaped` table.
            rollouts: `GRADED` of the same completions, as they were graded.
        """
        reward = pl.col("reward")
        groups = rollouts.group_by("group_id").agg(low=reward.min(), high=reward.max())
        self._dead += int((groups["high"] - groups["low"] < DEAD_RANGE).sum())
        low, high = groups["low"].min(), groups["high"].max()
        if isinstance(low, float) and isinstance(high, float):
            self._least, self._most = min(self._least, low), max(self._most, high)
        self.add_fates(shaped, len(groups))

    def add_fates(self, shaped: pl.DataFrame, groups: int | None = None) -> None:
        """
        Args:
            shaped: rows of a `Shaped` table.
            groups: that they are of, if that is known.
        """
        if shaped["keep"].all():
            kept, kept_groups = shaped, groups
        else:
            kept, kept_groups = shaped.filter("keep"), None
            self._dropped.update(dict(shaped.drop_nulls("drop_reason").group_by("drop_reason").len().iter_rows()))
        self._kept += len(kept)
        self._kept_groups += kept["group_id"].n_unique() if kept_groups is None else kept_groups
        advantage, weight = kept["advantage"], kept["weight"].cast(pl.Float64)
        positive, negative = advantage > 0, advantage < 0
        self._positives += int(positive.sum())
        self._negatives += int(negative.sum())
        for sums, chosen in zip(self._weights, (positive, negative), strict=True):
            sums.append(float(weight.filter(chosen).sum()))

    def fates(self) -> dict[str, Any]:
        """How many rows are kept, in how many groups and of which class, and why the others are not."""
        positive, negative = map(math.fsum, self._weights)
        return {
            "kept": self._kept,
            "kept_groups": self._kept_groups,
            "positives": self._positives,
            "negatives": self._negatives,
            "positive_share": round(positive / (positive + negative), 6) if positive + negative else None,
            "dropped": dict(sorted(self._dropped.items())),
        }

    def grades(self, groups: int, algorithm: Algorithm) -> dict[str, Any]:
        """How many groups there are and how many of them have equal rewards; and the reward that all have, if they do.

        Args:
            groups: of the rollouts.
        """
        rewards = pl.Series([self._least, self._most] if self._least <= self._most else [], dtype=pl.Float64)
        return {"groups": groups, "zero_variance_groups": self._dead, **one_reward(rewards, algorithm)}
