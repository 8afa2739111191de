"""verl: what trainer.rollout_data_dir and trainer.validation_data_dir write, one <step>.jsonl a step.

Fields (verl, trainer/ppo/ray_trainer.py, `_dump_generations`): input, output, gts, score, step, and whatever the reward
function returned beside the score. Input and output are decoded without special tokens, so the prompt's chat markup is gone.
What `rollbook export --to verl` writes has the tokens beside them, as AgentLoopOutput calls them: prompt_ids, response_ids,
response_mask, response_logprobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import (
    Values,
    needed_text,
    number,
    numbers,
    reference,
    rest_of,
    text,
    token_ids,
    truths,
)

TOKENS = ("prompt_ids", "response_ids", "response_mask", "response_logprobs")


class Verl(Format):
    """One completion a line."""

    name = "verl"
    title = "verl's rollout dumps (rollout_data_dir)"
    signatures = (("input", "output", "score", "step"),)
    fields = {
        "input": "prompt_text",
        "output": "completion_text",
        "gts": "answer",
        "score": "reward",
        "step": "group",
        "uid": "group (without its last two numbers)",
    }
    engine = "verl"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        group = (f"step {text(values, 'step')}", *([prompt_of(uid)] if (uid := text(values, "uid")) else []))
        answer = reference(values.get("gts"))
        yield Known(
            row=row,
            prompt=needed_text(values, "input"),
            completion=needed_text(values, "output"),
            answer=answer,
            reward=number(values, "score"),
            group=group,
            **_tokens(values),
            rest=rest_of(values, {"input", "output", "score", *TOKENS, *(() if answer is None else ("gts",))}),
        )


def _tokens(values: Values) -> dict[str, Any]:
    """Of a dump that has them."""
    mask = truths(values, "response_mask")
    return {
        "prompt_tokens": token_ids(values, "prompt_ids"),
        "completion_tokens": token_ids(values, "response_ids"),
        "action_mask": None if mask is None or all(mask) else mask,
        "logprobs": numbers(values, "response_logprobs"),
    }


def prompt_of(uid: str) -> str:
    """The prompt's part of a uid. The trainer that is the default since 0.9 (`use_v1`) writes {uid}_{session}_{index}, which
    no two rows share.

    >>> prompt_of("1b9d6bcd_2_0"), prompt_of("1b9d6bcd")
    ('1b9d6bcd', '1b9d6bcd')
    """
    own, *places = uid.rsplit("_", 2)
    return own if len(places) == 2 and all(place.isdigit() for place in places) else uid


FORMAT = Verl
