"""Shaped rollouts: what training makes of each completion. No tokens; many shaped tables share one rollouts artifact."""

import dataframely as dy
import polars as pl

from schemas.table import Table, column, rule


class Shaped(Table):
    """One completion of a rollouts artifact: its advantage, its weight, and whether it is trained on.

    Written by shape, one file for each file of the rollouts. Here two of eight completions were right: A = 1 - 2/8.

    Example:
        {
            "group_id": "arith-train-02269@4f37dbfe",
            "sample_index": 7,
            "advantage": 0.75,
            "weight": 1.0,
            "keep": True,
            "drop_reason": None,
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    advantage = column(dy.Float32, "How much better than its baseline. 0 for rows that are not kept.")
    weight = column(dy.Float32, "Factor of the completion's loss.", min=0.0)
    keep = column(dy.Bool, "Whether it is trained on.")
    drop_reason = column(dy.String, "Which choice dropped it. Null if kept.", nullable=True)

    @rule
    def a_dropped_row_says_why(cls) -> pl.Expr:
        return pl.col("keep") == pl.col("drop_reason").is_null()
