"""Rows of tokens with a mask, as TRL's SFTTrainer takes them (trl 1.16: input_ids with assistant_masks or completion_mask).

assistant_masks is 1 at tokens of the assistant, completion_mask at those behind the prompt; where a row has both, the model drew
what is in both. What `rollbook export --to trl-tokens` writes has texts, logprobs, rewards and groups beside them.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import number, numbers, rest_of, text, token_ids, truths

MASKS = ("assistant_masks", "completion_mask")
REWARD, COMPONENT = "reward", "reward_"


class TRLTokens(Format):
    """One completion a line."""

    name = "trl-tokens"
    title = "tokens with a mask, as TRL's SFTTrainer takes them"
    signatures = (("input_ids", "assistant_masks"), ("input_ids", "completion_mask"))
    fields = {
        "input_ids": "prompt_token_ids, completion_token_ids",
        "assistant_masks, completion_mask": "action_mask",
        "logprobs": "behavior_logprobs",
        "reward, reward_*": "the same",
        "group": "group",
    }
    engine = "unknown"

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        ids = token_ids(values, "input_ids")
        masks = {name: mask for name in MASKS if (mask := truths(values, name)) is not None}
        if ids is None or not masks:
            raise ValueError("columns input_ids and assistant_masks: expected a list of token ids and one of 0 and 1")
        if other := next((name for name, mask in masks.items() if len(mask) != len(ids)), None):
            raise ValueError(f"column {other}: has {len(masks[other])} values for {len(ids)} tokens")
        parts = {name.removeprefix(COMPONENT): number(values, name) for name in values if name.startswith(COMPONENT)}
        names = {"input_ids", *MASKS, "logprobs", "prompt_text", "completion_text", "answer", "group"}
        group = text(values, "group")
        yield Known(
            row=row,
            **split(
                ids,
                [all(one) for one in zip(*masks.values(), strict=True)],
                numbers(values, "logprobs"),
                column=next(iter(masks)),
            ),
            prompt=text(values, "prompt_text"),
            completion=text(values, "completion_text"),
            answer=text(values, "answer"),
            reward=number(values, REWARD),
            components=parts,
            group=() if group is None else (group,),
            rest=rest_of(values, {*names, REWARD, *(name for name in values if name.startswith(COMPONENT))}),
        )


FORMAT = TRLTokens
