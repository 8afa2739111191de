"""Turns: who spoke when in an episode."""

import dataframely as dy
import polars as pl

from schemas.table import Table, column, one_of, rule

VOID = "void"
"""Status of a turn of the policy that is neither a call nor an answer, as its environment says."""
SPEAKERS = ("policy", "environment", "tool")
TURN_STATUSES = ("ok", "turn_limit", "episode_limit", "context_full", "engine_error", "tool_error", VOID)


class Turns(Table):
    """One turn of one episode. The turns of an episode follow one another without a gap and cover its completion.

    Written beside the rollouts of an environment, one file a shard. The reward of an episode is the sum of its turns'.

    Example:
        {
            "group_id": "calc-train-00012@4f37dbfe",
            "sample_index": 3,
            "turn": 1,
            "start": 13,
            "length": 4,
            "who": "tool",
            "name": "calculator",
            "reward": None,
            "status": "ok",
        }
    """

    group_id = column(dy.String, "As in the rollouts.", primary_key=True)
    sample_index = column(dy.Int32, "As in the rollouts.", primary_key=True, min=0)
    turn = column(dy.Int32, "Number of the turn in its episode, from 0.", primary_key=True, min=0)
    start = column(dy.Int32, "Its first token's place in completion_token_ids.", min=0)
    length = column(dy.Int32, "How many tokens it has.", min=0, unit="tokens")
    who = column(dy.String, f"Who spoke: {', '.join(SPEAKERS)}. Tokens of the policy were drawn.", check=one_of(*SPEAKERS))
    name = column(dy.String, "Of the tool that speaks.", nullable=True)
    reward = column(dy.Float64, "What the environment gave for a turn of the policy. Null: nothing.", nullable=True)
    status = column(
        dy.String,
        "ok, or how a turn of the policy was cut: turn_limit (generate.max_tokens), episode_limit (environment.max_tokens), "
        "context_full; engine_error: the engine failed; void: the environment says that it is neither a call nor an answer. "
        "tool_error: the tool says that its call failed.",
        check=one_of(*TURN_STATUSES),
    )

    @rule
    def only_the_policy_is_rewarded(cls) -> pl.Expr:
        return pl.col("reward").is_null() | ((pl.col("who") == "policy") & pl.col("reward").is_finite())
