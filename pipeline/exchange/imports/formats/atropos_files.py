"""Atropos: groups as its environments save them (`process --env.data_path_to_save_groups`), one a line.

Fields (atroposlib 0.4, `ScoredDataGroup`), of each completion one value in every list: tokens (prompt and completion), masks
(-100 where the model did not draw the token, else the token's id again), scores, inference_logprobs (of every token; +1.0 at
those of the prompt, which is no logprob), messages, and what else the group has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.explode import parts_of
from pipeline.exchange.imports.format import Format, misfit, reason
from pipeline.exchange.imports.known import Known, Misfit, SourceRow
from pipeline.exchange.imports.sequence import split
from pipeline.exchange.imports.values import Values, number, numbers, rest_of, token_ids

NOT_DRAWN = -100
NO_LOGPROB = 1.0
LISTS = ("tokens", "masks", "scores", "inference_logprobs")
OF_EACH = ("messages", "advantages", "ref_logprobs", "overrides", "images", "distill_token_ids", "distill_logprobs")


class Atropos(Format):
    """A group a line, token by token."""

    name = "atropos"
    title = "Atropos' saved groups"
    signatures = (("tokens", "masks", "scores"),)
    fields = {
        "tokens": "prompt_token_ids, completion_token_ids",
        "masks": "action_mask (-100: not drawn)",
        "scores": "reward",
        "inference_logprobs": "behavior_logprobs",
        "<line>": "group",
    }
    engine = "Atropos"

    def known(self, row: SourceRow) -> Iterable[Known | Misfit]:
        size = len(row.values["tokens"] or ())
        lists = [
            name
            for name in row.values
            if name in LISTS or (name in OF_EACH and isinstance(row.values[name], list) and len(row.values[name]) == size)
        ]
        for place, values in enumerate(parts_of(row.values, [name for name in lists if row.values[name] is not None])):
            try:
                yield self._one(row, values)
            except (ValueError, TypeError, KeyError) as error:
                found = misfit(row, reason(error))
                yield found._replace(place=f"{row.place}, completion {place}")

    def _one(self, row: SourceRow, values: Values) -> Known:
        ids, masks = token_ids(values, "tokens"), values["masks"]
        if ids is None or not isinstance(masks, list):
            raise ValueError("columns tokens and masks: expected a list of token ids each")
        for place, (mask, token) in enumerate(zip(masks, ids, strict=False)):
            if mask not in (NOT_DRAWN, token):
                raise ValueError(f"column masks: value {place} is {mask}, expected {NOT_DRAWN} or the token's id {token}")
        return Known(
            row=row,
            **split(ids, [mask != NOT_DRAWN for mask in masks], _logprobs(values, masks), column="masks"),
            reward=number(values, "scores"),
            group=(f"{row.file} {row.number}",),
            rest=rest_of(values, set(LISTS)),
        )


def _logprobs(values: Values, masks: list[Any]) -> list[float] | None:
    """Of every token; None if the server gave none, for which the file has +1.0 at drawn tokens too."""
    found = numbers(values, "inference_logprobs")
    if found and all(value == NO_LOGPROB for value, mask in zip(found, masks, strict=False) if mask != NOT_DRAWN):
        return None
    return found


FORMAT = Atropos
