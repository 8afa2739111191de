"""Pairing: which completions of a group are compared. Polars over the kept rows of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import polars as pl
from pydantic import Field

from pipeline.algorithms.cells.advantages import DEAD_RANGE, GROUP
from pipeline.algorithms.cells.cell import NotNegative


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardPairs:
    """Pairs of completions of one group whose rewards differ by at least a margin; the higher one is chosen.

    With `ties`, also pairs of equals, each once, with preference 1/2: they pull h towards 0.
    """

    strategy: Literal["best_worst", "all"] = "best_worst"
    """best_worst: one pair a group, the first of equals. all: every pair that the margin allows."""
    margin: NotNegative = 1e-6
    """Least difference of rewards; groups with equal rewards give no pair."""
    cap: Annotated[int, Field(ge=0)] = 0
    """Most pairs per group, widest margin first; 0 for no limit."""
    soft: NotNegative = 0.0
    """Temperature of soft labels: preference = sigmoid(difference / soft). 0: hard labels, preference = 1."""
    ties: bool = False
    """With strategy all: also pair completions whose rewards are equal."""

    def pairs(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of a `Pairs` table, from kept rows with group_id, sample_index and reward."""
        rows = rows.select(GROUP, "sample_index", "reward")
        if self.strategy == "best_worst":
            ordered = rows.sort("reward", "sample_index", descending=[True, False])
            best = ordered.group_by(GROUP, maintain_order=True).first()
            worst = rows.sort("reward", "sample_index").group_by(GROUP, maintain_order=True).first()
            joined = best.join(worst, on=GROUP, suffix="_rejected")
        else:
            joined = rows.join(rows, on=GROUP, suffix="_rejected")
        margin = pl.col("reward") - pl.col("reward_rejected")
        label = pl.lit(1.0) if self.soft == 0 else 1 / (1 + (-margin / self.soft).exp())
        tie = (margin.abs() < DEAD_RANGE) & (pl.col("sample_index") < pl.col("sample_index_rejected")) & self.ties
        pairs = joined.filter((margin >= max(self.margin, DEAD_RANGE)) | tie).select(
            GROUP,
            chosen_index="sample_index",
            rejected_index="sample_index_rejected",
            preference=pl.when(tie).then(0.5).otherwise(label).cast(pl.Float32),
            margin=pl.when(tie).then(0.0).otherwise(margin),
        )
        order = [GROUP, "margin", "chosen_index", "rejected_index"]
        pairs = pairs.sort(order, descending=[False, True, False, False])
        return pairs if self.cap == 0 else pairs.group_by(GROUP, maintain_order=True).head(self.cap).select(pairs.columns)
