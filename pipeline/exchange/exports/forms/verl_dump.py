"""verl's dumps of rollouts (trainer.rollout_data_dir), a completion a line."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipeline.exchange.exports.form import FAILED, ForeignForm, Row, why


def lines(group: list[Row]) -> Iterator[Row]:
    for row in group:
        parts = {name.removeprefix("reward_"): value for name, value in row.items() if name.startswith("reward_")}
        yield {
            "input": row["prompt_text"],
            "output": row["completion_text"],
            "gts": row["answer"],
            "score": row["reward"],
            "step": row["policy_version"],
            **{name: value for name, value in parts.items() if name not in ("input", "output", "gts", "score", "step", "uid")},
            "uid": f"{row['group_id']}_0_{row['sample_index']}",
        }


FORM = ForeignForm(
    name="verl",
    title="verl's dumps of rollouts",
    file="rollouts.jsonl",
    holds=frozenset({"reward", "answer"}),
    tokens=False,
    groups="names of prompts: a group is what its uid has in common",
    refuses=pl.coalesce(
        why(FAILED, "they failed"),
        why(pl.col("reward").is_null(), "they have no reward, and a score is a number"),
        why(pl.col("action_mask").is_not_null(), "some of their tokens were not drawn, which texts do not say"),
    ),
    lines=lines,
)
