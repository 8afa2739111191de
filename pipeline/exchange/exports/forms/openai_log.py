"""Requests to an OpenAI-compatible server's /v1/completions and its responses, with the token ids that vLLM adds to them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import polars as pl

from pipeline.exchange.exports.form import FAILED, SAMPLING, UNKNOWN, ForeignForm, Row, why

ID_MARK = "token_id:"


def lines(group: list[Row]) -> Iterator[Row]:
    for (policy, *sampling), rows in groupby(group, key=lambda row: (row["policy_id"], *(row[name] for name in SAMPLING))):
        answered = list(rows)
        said = {name: value for name, value in zip(SAMPLING, sampling, strict=True) if value is not None}
        model = None if policy == UNKNOWN else policy
        yield {
            "request": {"model": model, "prompt": answered[0]["prompt_text"], "n": len(answered), **said},
            "response": {
                "object": "text_completion",
                "model": model,
                "prompt_token_ids": answered[0]["prompt_token_ids"],
                "choices": [_choice(place, row) for place, row in enumerate(answered)],
            },
        }


def _choice(place: int, row: Row) -> Row:
    ids, logprobs = row["completion_token_ids"], row["behavior_logprobs"]
    marked = None if logprobs is None else {"tokens": [f"{ID_MARK}{token}" for token in ids], "token_logprobs": logprobs}
    return {
        "index": place,
        "text": row["completion_text"],
        "finish_reason": row["finish_reason"],
        "token_ids": ids,
        "logprobs": marked,
    }


FORM = ForeignForm(
    name="openai",
    title="requests and responses of an OpenAI-compatible server",
    file="requests.jsonl",
    holds=frozenset({"behavior_logprobs", "finish_reason", "policy_id", *SAMPLING}),
    tokens=True,
    groups="groups: completions of one prompt by one model come back as one",
    refuses=pl.coalesce(
        why(FAILED, "they failed"),
        why(pl.col("action_mask").is_not_null(), "some of their tokens were not drawn, which a choice does not say"),
    ),
    lines=lines,
)
