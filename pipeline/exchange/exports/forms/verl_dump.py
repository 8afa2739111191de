"""verl's dumps of rollouts (trainer.rollout_data_dir), a completion a line.

Beside verl's own columns stand the tokens, the mask and the logprobs, by the names that its agent loops have (AgentLoopOutput).
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipeline.exchange.exports.form import FAILED, ForeignForm, Row, drawn, why

TOKENS = ("prompt_ids", "response_ids", "response_mask", "response_logprobs")
OWN = ("input", "output", "gts", "score", "step", "uid", *TOKENS)


def lines(group: list[Row]) -> Iterator[Row]:
    for row in group:
        parts = {name.removeprefix("reward_"): value for name, value in row.items() if name.startswith("reward_")}
        yield {
            "input": row["prompt_text"],
            "output": row["completion_text"],
            "gts": row["answer"],
            "score": row["reward"],
            "step": row["policy_version"],
            **{name: value for name, value in parts.items() if name not in OWN},
            "uid": f"{row['group_id']}_0_{row['sample_index']}",
            "prompt_ids": row["prompt_token_ids"],
            "response_ids": row["completion_token_ids"],
            "response_mask": [int(own) for own in drawn(row)],
            "response_logprobs": row["behavior_logprobs"],
        }


FORM = ForeignForm(
    name="verl",
    title="verl's dumps of rollouts",
    file="rollouts.jsonl",
    holds=frozenset({"reward", "answer", "behavior_logprobs", "action_mask"}),
    tokens=True,
    groups="names of prompts: a group is what its uid has in common",
    refuses=pl.coalesce(
        why(FAILED, "they failed"),
        why(pl.col("reward").is_null(), "they have no reward, and a score is a number"),
    ),
    lines=lines,
)
