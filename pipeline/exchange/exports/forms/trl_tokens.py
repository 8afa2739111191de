"""Rows that TRL's SFTTrainer takes as they are: input_ids, and assistant_masks, which is 1 at the tokens that it learns."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipeline.exchange.exports.form import FAILED, NOTHING_DRAWN, STARTS_ELSEWHERE, ForeignForm, Row, drawn, why


def lines(group: list[Row]) -> Iterator[Row]:
    for row in group:
        yield {
            "input_ids": [*row["prompt_token_ids"], *row["completion_token_ids"]],
            "assistant_masks": [0] * len(row["prompt_token_ids"]) + [int(own) for own in drawn(row)],
            "logprobs": row["behavior_logprobs"],
            "prompt_text": row["prompt_text"],
            "completion_text": row["completion_text"],
            **{name: value for name, value in row.items() if name == "reward" or name.startswith("reward_")},
            "answer": row["answer"],
            "group": row["group_id"],
        }


FORM = ForeignForm(
    name="trl-tokens",
    title="tokens with their mask, as TRL's SFTTrainer takes them",
    file="tokens.jsonl",
    holds=frozenset({"behavior_logprobs", "action_mask", "reward", "reward_*", "answer"}),
    tokens=True,
    groups="names of prompts: a group is what its rows call so",
    refuses=pl.coalesce(
        why(FAILED, "they failed"),
        why(NOTHING_DRAWN | STARTS_ELSEWHERE, "they do not begin with a token that was drawn, which the mask could not say"),
    ),
    lines=lines,
)
