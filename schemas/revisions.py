"""Revisions: what an expert made of the policy's own completions."""

import dataframely as dy
import polars as pl

from schemas.table import Table, column, one_of, rule

ROLES = ("own", "revised", "reference")


class Revisions(Table):
    """One completion of a revisions artifact: whose it is, and how much each of its tokens weighs.

    Written by revise beside the rollouts of the same artifact. There every own completion has a group to itself: sample 0 is the
    own one, and those after it are what is preferred to it.

    Example:
        {
            "group_id": "arith-train-02269/3@5b1d90ae",
            "sample_index": 1,
            "role": "revised",
            "token_weights": [1.0, 1.0, 2.5, 2.5, 1.0],
            "change": 0.4,
            "said": None,
            "note": None,
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    role = column(dy.String, f"One of {', '.join(ROLES)}.", check=one_of(*ROLES))
    token_weights = column(dy.List, "Weight of each completion token in a margin between pairs.", dy.Float32(min=0.0))
    change = column(
        dy.Float32, "Of a revision: share of the tokens of both texts that the other has not.", nullable=True, min=0.0, max=1.0
    )
    said = column(dy.String, "Of an own completion: the expert's text as it came. Null if nobody was asked.", nullable=True)
    note = column(dy.String, "Of an own completion: why there is no revision of it. Null if there is.", nullable=True)

    @rule
    def a_revision_says_how_much_it_changes(cls) -> pl.Expr:
        return (pl.col("role") == "revised") == pl.col("change").is_not_null()
