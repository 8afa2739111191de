"""Atropos' groups: ScoredDataGroup, as its environments save them and its API takes them, one a line."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from pipeline.exchange.exports.form import FAILED, NOTHING_DRAWN, STARTS_ELSEWHERE, ForeignForm, Row, drawn, why

NOT_DRAWN, NO_LOGPROB = -100, 1.0
"""In masks, and in inference_logprobs."""


def lines(group: list[Row]) -> Iterator[Row]:
    yield {
        "tokens": [[*row["prompt_token_ids"], *row["completion_token_ids"]] for row in group],
        "masks": [_mask(row) for row in group],
        "scores": [row["reward"] for row in group],
        "inference_logprobs": [_logprobs(row) for row in group],
        "messages": [_messages(row) for row in group],
        "advantages": None,
        "ref_logprobs": None,
        "overrides": None,
        "group_overrides": None,
        "images": None,
    }


def _mask(row: Row) -> list[int]:
    own = [token if is_own else NOT_DRAWN for token, is_own in zip(row["completion_token_ids"], drawn(row), strict=True)]
    return [NOT_DRAWN] * len(row["prompt_token_ids"]) + own


def _logprobs(row: Row) -> list[float]:
    found = row["behavior_logprobs"] or [NO_LOGPROB] * len(row["completion_token_ids"])
    own = [value if is_own else NO_LOGPROB for value, is_own in zip(found, drawn(row), strict=True)]
    return [NO_LOGPROB] * len(row["prompt_token_ids"]) + own


def _messages(row: Row) -> list[Row]:
    return [{"role": "user", "content": row["prompt_text"]}, {"role": "assistant", "content": row["completion_text"]}]


FORM = ForeignForm(
    name="atropos",
    title="groups of Atropos (ScoredDataGroup)",
    file="groups.jsonl",
    holds=frozenset({"behavior_logprobs", "action_mask", "reward"}),
    tokens=True,
    groups="names of groups and prompts: a group is a line",
    refuses=pl.coalesce(
        why(FAILED, "they failed"),
        why(pl.col("reward").is_null(), "they have no reward, and a score is a number"),
        why(NOTHING_DRAWN | STARTS_ELSEWHERE, "they do not begin with a token that was drawn, which the mask could not say"),
    ),
    lines=lines,
)
