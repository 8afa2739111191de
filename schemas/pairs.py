"""Pairs: which completion of a prompt is preferred to which."""

import dataframely as dy
import polars as pl

from schemas.table import Table, column, rule


class Pairs(Table):
    """Two completions of one group of a rollouts artifact, one preferred to the other.

    Written by shape for algorithms that learn from pairs, beside the shaped table.

    Example:
        {
            "group_id": "arith-train-02269@4f37dbfe",
            "chosen_index": 7,
            "rejected_index": 0,
            "preference": 1.0,
            "margin": 1.0,
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    chosen_index = column(dy.Int32, "Sample index of the completion with the higher reward.", primary_key=True, min=0)
    rejected_index = column(dy.Int32, "Sample index of the other.", primary_key=True, min=0)
    preference = column(dy.Float32, "Probability that the chosen one is better; 1 for a hard label.", min=0.0, max=1.0)
    margin = column(dy.Float64, "Difference of their rewards.")

    @rule
    def a_pair_is_of_two_completions(cls) -> pl.Expr:
        return pl.col("chosen_index") != pl.col("rejected_index")
