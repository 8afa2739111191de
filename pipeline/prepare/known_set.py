"""What is known of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BOXED = r"(?s).*\\boxed\{((?:[^{}]|\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\})*)\}"
"""What the last box of a solution in LaTeX holds, with braces in it up to three deep."""


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """A data set by its columns.

    >>> import re
    >>> re.search(BOXED, r"so \\boxed{1}, then \\boxed{\\frac{1}{x^{2}}}.")[1]
    '\\\\frac{1}{x^{2}}'
    """

    name: str
    """What its authors call it."""
    columns: tuple[str, ...]
    """By which it is known."""
    question: str
    answer: str
    answer_pattern: str | None = None
    begins: str = ""
    """How every question begins."""
    transcript: bool = False
    """The questions are texts of Human and Assistant turns."""
    reward: Literal["math", "own"] = "math"
    """What can grade answers: mathematics by its value; anything else only a function of the user's."""
    set_aside: bool = False
    """It has rows that are no prompts with an answer."""
    note: str = ""
    """What its user should know."""

    @property
    def said(self) -> str:
        """Its name, and what its user should know."""
        return f"{self.name}: {self.note}" if self.note else self.name
