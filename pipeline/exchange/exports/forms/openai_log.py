"""Requests to an OpenAI-compatible server's /v1/completions and its responses, with the token ids that vLLM adds to them.

A completion of several turns is one choice, whose `action_mask`, which no server writes, says what the model drew.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

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
        **({} if row["action_mask"] is None else {"action_mask": row["action_mask"]}),
    }


FORM = ForeignForm(
    name="openai",
    title="requests and responses of an OpenAI-compatible server",
    file="requests.jsonl",
    holds=frozenset({"behavior_logprobs", "action_mask", "finish_reason", "policy_id", *SAMPLING}),
    tokens=True,
    groups="groups: completions of one prompt by one model come back as one",
    refuses=why(FAILED, "they failed"),
    lines=lines,
)
