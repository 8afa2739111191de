"""Rows of prompts as probing sees them: the reference, the answer that stands in it, and a worked solution where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from pipeline.rewards.graders.maths.reading import BOX, MARKER, TAG, find
from pipeline.rewards.graders.text import number
from pipeline.rewards.items import RewardItem, prompt_for_grader

SOLUTIONS = ("solution", "worked_solution", "rationale", "reasoning", "explanation", "chain_of_thought", "cot", "steps")
"""Columns that often hold a worked solution, likeliest first."""
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True, eq=False)
class ProbeRow:
    """One prompt to ask about."""

    prompt: Mapping[str, Any]
    """Its row, as graders get it."""
    reference: str
    """What graders compare with."""
    answer: str
    """The answer in the reference: all of it, or what a worked solution marks as its answer."""
    solution: str | None = None

    @property
    def name(self) -> str:
        return str(self.prompt["prompt_id"])

    @property
    def number(self) -> Decimal | None:
        """The answer, if it is a number."""
        return number(self.answer)

    def item(self, text: str, finish_reason: str = "stop") -> RewardItem:
        """A completion of this prompt, to be graded."""
        return RewardItem(text, self.reference, self.prompt, finish_reason=finish_reason)

    def is_right(self, text: str) -> bool:
        """Whether a text is the answer: the same letters, or the same number."""
        value = self.number
        return text.strip().casefold() == self.answer.strip().casefold() or (value is not None and number(text) == value)


def row_of(prompt: Mapping[str, Any], worked: Mapping[str, str] | None = None) -> ProbeRow:
    """
    Args:
        prompt: a row of `schemas.Prompts`.
        worked: solutions that the answers were taken from, by the question.

    >>> row = row_of({"prompt_id": "p", "question": "9*2?", "answer": "9*2 is \\\\boxed{18}", "metadata": None})
    >>> row.answer, row.solution
    ('18', '9*2 is \\\\boxed{18}')
    """
    given = prompt_for_grader(dict(prompt))
    reference = str(prompt["answer"])
    answer = answer_in(reference)
    solution = (worked or {}).get(str(prompt["question"])) or (reference if answer != reference else None)
    if solution is None:
        columns = {str(name).lower(): value for name, value in given["metadata"].items()}
        found = (columns[name] for name in SOLUTIONS if isinstance(columns.get(name), str))
        solution = next((text for text in found if len(text) > len(answer)), None)
    return ProbeRow(given, reference, answer, solution)


def answer_in(reference: str) -> str:
    """The answer that a reference marks: its last box, its line behind ####, its tag. The reference itself, if it marks none."""
    if not any(mark in reference for mark in ("\\boxed", "\\fbox", "####", "<answer>")):
        return reference
    found = find(reference, finish_reason="stop", is_value=lambda _: True)
    return found.text if found.place in (BOX, MARKER, TAG) and found.text else reference


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """So many rows, evenly spread from the first to the last.

    >>> spread(range(10), 4)
    [0, 3, 6, 9]
    """
    if count >= len(rows):
        return list(rows)
    if count == 1:
        return [rows[0]]
    return [rows[round(place * (len(rows) - 1) / (count - 1))] for place in range(count)]
