"""Ways to write an answer down: those that models and graders agree on, and those that a grader's own pattern waits for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from re import _constants, _parser  # type: ignore[attr-defined]  # Python's own parser of patterns, which re does not name
from typing import Any, Protocol

from pipeline.common.errors import UserError

PATTERNS = ("pattern", "extract")
"""Args of graders that hold regular expressions over completions."""
ANSWER = "{answer}"


@dataclass(frozen=True, slots=True)
class Dress:
    """What is written around an answer."""

    name: str
    before: str = ""
    after: str = ""

    def around(self, answer: str) -> str:
        return self.before + answer + self.after

    @property
    def is_plain(self) -> bool:
        return not self.before and not self.after


PLAIN = Dress("as it is")
BOX = Dress("boxed", "\\boxed{", "}")
TAG = Dress("in an answer tag", "<answer>", "</answer>")
PHRASE = Dress("announced", "The answer is ", ".")
MARKER = Dress("behind ####", "#### ")
USUAL = (BOX, TAG, PHRASE, MARKER, PLAIN)


class HasArgs(Protocol):
    """What is read of a `RewardComponent`."""

    @property
    def args(self) -> dict[str, Any]: ...


def dresses_of(components: Sequence[HasArgs], given: Iterable[str] = ()) -> tuple[Dress, ...]:
    """All that answers are written in: what the user gave, what patterns of the graders wait for, the usual ones.

    Args:
        given: texts with {answer} in them.

    Raises:
        UserError: one has no {answer} in it.
    """
    found = []
    for text in given:
        before, middle, after = text.partition(ANSWER)
        if not middle:
            raise UserError(f"{text!r}: has no {ANSWER} in it, where the answer goes")
        found.append(Dress(f"as {text}", before, after))
    for component in components:
        for name in PATTERNS:
            pattern = component.args.get(name)
            made = dress_of(pattern) if isinstance(pattern, str) else None
            found += [made] if made is not None else []
    usual = {(dress.before, dress.after): dress for dress in USUAL}
    unique = {key: usual.get(key, dress) for dress in (*found, *USUAL) if (key := (dress.before, dress.after))}
    return tuple(unique.values())


def dress_of(pattern: str) -> Dress | None:
    """The shortest text around an answer that a pattern waits for; None if that is nothing, or cannot be told.

    The answer stands for the pattern's first group or, without one, for its last `.*` or `.+`.

    >>> dress_of("A:(-?[0-9]+)$"), dress_of("<answer>(.*?)</answer>").around("18")
    (Dress(name='as A:{answer}', before='A:', after=''), '<answer>18</answer>')
    >>> dress_of("(?s)^<think>.*</think>\\\\s*<answer>.*</answer>$").around("18")
    '<think></think> <answer>18</answer>'
    """
    try:
        parsed = _parser.parse(pattern)
    except (re.error, RecursionError, OverflowError):
        return None
    text = _Text()
    text.add(parsed)
    place = text.group if text.group is not None else text.anything
    if place is None:
        return None
    before, after = "".join(text.parts[:place]), "".join(text.parts[place:])
    return Dress(f"as {before}{ANSWER}{after}", before, after) if before or after else None


_CATEGORIES = {
    _constants.CATEGORY_DIGIT: "1",
    _constants.CATEGORY_NOT_DIGIT: "x",
    _constants.CATEGORY_SPACE: " ",
    _constants.CATEGORY_NOT_SPACE: "x",
    _constants.CATEGORY_WORD: "x",
    _constants.CATEGORY_NOT_WORD: " ",
}
_REPEATS = (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT)


@dataclass(slots=True)
class _Text:
    """A shortest text that a parsed pattern matches, and where in it an answer goes."""

    parts: list[str] = field(default_factory=list)
    group: int | None = None
    """Parts before the first group."""
    anything: int | None = None
    """Parts before the last repeated dot."""

    def add(self, pattern: Any) -> None:
        for kind, value in pattern:
            if kind is _constants.LITERAL:
                self.parts.append(chr(value))
            elif kind is _constants.SUBPATTERN:
                self._add_group(value[0], value[-1])
            elif kind in _REPEATS:
                self._add_repeat(value[0], value[2])
            elif kind is _constants.BRANCH:
                self.add(value[1][0])
            elif kind in (_constants.ASSERT, _constants.ATOMIC_GROUP):
                self.add(value[1] if kind is _constants.ASSERT else value)
            elif kind in (_constants.ANY, _constants.NOT_LITERAL):
                self.parts.append("x" if value != ord("x") else "y")
            elif kind is _constants.IN:
                self.parts.append(_one_of(value))

    def _add_group(self, number: int | None, inner: Any) -> None:
        if number is not None and self.group is None:
            self.group = len(self.parts)  # the answer stands for it
        else:
            self.add(inner)

    def _add_repeat(self, least: int, inner: Any) -> None:
        if len(inner) == 1 and inner[0][0] is _constants.ANY:
            self.anything = len(self.parts)
            return
        if least == 0 and not _holds_group(inner) and not _is_space(inner):
            return
        for _ in range(min(max(least, 1), 100)):
            self.add(inner)


def _holds_group(pattern: Any) -> bool:
    return any(kind is _constants.SUBPATTERN and value[0] is not None for kind, value in pattern)


def _is_space(pattern: Any) -> bool:
    return list(pattern) == [(_constants.IN, [(_constants.CATEGORY, _constants.CATEGORY_SPACE)])]


def _one_of(choices: Sequence[tuple[Any, Any]]) -> str:
    """A character of a set."""
    kind, value = choices[0]
    if kind is _constants.NEGATE:
        taken = {chr(code) for other, code in choices if other is _constants.LITERAL}
        return next(letter for letter in "x1 y" if letter not in taken)
    if kind is _constants.CATEGORY:
        return _CATEGORIES.get(value, "x")
    return chr(value[0] if kind is _constants.RANGE else value)
