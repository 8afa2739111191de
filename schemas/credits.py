"""Credits: what each turn of the policy earns, where advantages or masks are of turns."""

import dataframely as dy
import polars as pl

from schemas.table import Table, column, rule


class Credits(Table):
    """One turn of the policy in a kept completion: its own advantage, and whether its tokens carry a loss.

    Written by shape beside the shaped rows, one file for each of theirs, where `shape.credit` or `shape.void_turns` asks for it.
    The advantage of the shaped row is then the mean over the tokens of its turns that are kept.

    Example:
        {
            "group_id": "calc-train-00012@4f37dbfe",
            "sample_index": 3,
            "turn": 2,
            "start": 17,
            "length": 8,
            "advantage": 0.75,
            "keep": True,
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    turn = column(dy.Int32, "Number of the turn in its episode, from 0, as in the turns.", primary_key=True, min=0)
    start = column(dy.Int32, "Its first token's place in completion_token_ids.", min=0)
    length = column(dy.Int32, "How many tokens it has.", min=0, unit="tokens")
    advantage = column(dy.Float32, "How much better than its baseline. 0 where it is not kept.")
    keep = column(dy.Bool, "Whether its tokens carry a loss.")

    @rule
    def a_turn_without_a_loss_has_no_advantage(cls) -> pl.Expr:
        return pl.col("keep") | (pl.col("advantage") == 0)
