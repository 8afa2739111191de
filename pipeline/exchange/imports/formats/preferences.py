"""Sets of preferences: chosen and rejected answers to one prompt, as chats, texts, or dialogues such as hh-rlhf's.

Columns: chosen and rejected; prompt (question, instruction), perhaps with a system's text, or as much of both as is alike
(chats with the question in them, and texts of Human and Assistant turns); score_chosen and score_rejected where the set has
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipeline.exchange.imports.format import Format
from pipeline.exchange.imports.formats.plain import ASSISTANT, HUMAN
from pipeline.exchange.imports.known import Known, SourceRow
from pipeline.exchange.imports.values import as_answer, is_missing, messages, number, rest_of, text
from pipeline.sources.chats import chat

ASKED = ("prompt", "question", "instruction")
"""Columns of a prompt, the first that a row has first."""
SIDES = {"chosen": 1.0, "rejected": 0.0}
"""Rewards that are declared where the set has no scores."""


class Preferences(Format):
    """Two completions a row."""

    name = "preference"
    title = "pairs of chosen and rejected answers"
    signatures = (("chosen", "rejected"),)
    fields = {
        "prompt, question, instruction, or what chosen and rejected have in common": "prompt_text",
        "system": "prompt_text, before it",
        "chosen, rejected": "completion_text",
        "score_chosen, score_rejected": "reward; 1 and 0 where there are none",
        "prompt_id": "prompt_id",
    }
    engine = "preferences"
    ends_with_eos = True

    def known(self, row: SourceRow) -> Iterable[Known]:
        values = row.values
        sides = {side: self._side(values, side) for side in SIDES}
        (prompt, _), (other, _) = sides.values()
        if prompt != other:
            raise ValueError("columns chosen and rejected: they answer different prompts")
        scores = {side: number(values, f"score_{side}") for side in SIDES}
        scored = None not in scores.values()
        if scored:
            self.remark("rewards are score_chosen and score_rejected")
        else:
            self.remark("rewards are declared: 1 of what was chosen, 0 of what was rejected")
        used = {"prompt", "system", *ASKED, "prompt_id", "chosen", "rejected", *(f"score_{side}" for side in SIDES)}
        rest = rest_of(values, used | ({"messages"} if values.get("messages") == values["chosen"] else set()))
        for side, (_, completion) in sides.items():
            yield Known(
                row=row,
                prompt=prompt,
                prompt_is_whole=isinstance(prompt, str) and prompt.endswith(ASSISTANT),
                completion=completion,
                prompt_id=text(values, "prompt_id"),
                group=(f"{row.file} {row.number}",),
                reward=scores[side] if scored else SIDES[side],
                rest=rest | {"side": side},
            )

    def _prompt(self, values: dict[str, Any]) -> Any:
        column = next((name for name in ASKED if not is_missing(values.get(name))), ASKED[0])
        asked, system = messages(values, column), text(values, "system")
        if system and isinstance(asked, str):
            return [{"role": "system", "content": system}, {"role": "user", "content": asked}]
        return asked

    def _side(self, values: dict[str, Any], side: str) -> tuple[Any, Any]:
        """The prompt, and the answer."""
        said = values[side]
        if isinstance(said, list):
            turns = chat(said, side)
            if not turns or turns[-1]["role"] != "assistant":
                raise ValueError(f"column {side}: expected chat messages that end with an assistant's answer")
            before: Any = turns[:-1]
            if not before:
                before = self._prompt(values)
            return before, as_answer(turns[-1:], side)
        found = text(values, side)
        if found is None:
            raise ValueError(f"column {side}: is null or missing")
        if any(not is_missing(values.get(name)) for name in ASKED):
            prompt = self._prompt(values)
            return prompt, found.removeprefix(prompt) if isinstance(prompt, str) else found
        before, mark, last = found.rpartition(ASSISTANT)
        if not (mark and found.startswith(HUMAN)):
            raise ValueError(f"column {side}: a text without a column prompt, expected a dialogue of Human and Assistant turns")
        return before + mark, last


FORMAT = Preferences
