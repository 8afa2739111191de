"""What the graders of text share: which part of a completion is the answer, and when two numbers are one."""

from __future__ import annotations

import re
from collections import deque
from decimal import Decimal
from typing import Literal

from pipeline.common.errors import UserError
from pipeline.rewards.items import Score

_NUMBER = re.compile(r"\$?([-+]?)\$?((?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)", re.ASCII)


def compile_pattern(name: str, pattern: str) -> re.Pattern[str]:
    """The compiled pattern.

    Raises:
        UserError: not a regular expression; the message names the arg and the position.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(f"{name}: {pattern!r} is not a regular expression: {error}") from None


def captured(match: re.Match[str]) -> str:
    """The first group that took part in the match; the whole match if none did.

    >>> captured(re.search(r"#### (.+)|answer: (.+)", "answer: 41"))
    '41'
    """
    return next((group for group in match.groups() if group is not None), match.group())


def last_captured(pattern: str, text: str) -> str | None:
    """What the last match of `pattern` captured; None without a match."""
    matches = deque(re.finditer(pattern, text), maxlen=1)
    return captured(matches[0]) if matches else None


def chosen(pattern: str, text: str, which: Literal["first", "last"]) -> tuple[str | None, str | None]:
    """What the first or the last match captured, None without one; and a remark, where there were several to choose from.

    >>> chosen("<a>(.)</a>", "<a>1</a> or <a>2</a>", "last")
    ('2', 'the last of 2 matches')
    """
    last, count = None, 0
    for match in re.finditer(pattern, text):
        last = match if which == "last" or count == 0 else last
        count += 1
    return (captured(last) if last else None), (f"the {which} of {count} matches" if count > 1 else None)


def remarked(score: float, remark: str | None) -> float | Score:
    """The score, with what is to be kept beside it."""
    return score if remark is None else Score(score, remark=remark)


def required(answer: str | None) -> str:
    """The answer. A prompt without one cannot be graded by comparison, and 0 would hide that.

    Raises:
        ValueError: there is none.
    """
    if answer is None:
        raise ValueError("the prompt has no answer to compare with")
    return answer


def number(text: str) -> Decimal | None:
    """The number that `text` spells, None if it spells none.

    Read are a sign, a dollar sign, commas between thousands, a decimal point and a period that ends the sentence.

    >>> number("$1,234.50."), number(" 7. "), number("1,23")
    (Decimal('1234.50'), Decimal('7'), None)
    """
    match = _NUMBER.fullmatch(text.strip().replace("\N{MINUS SIGN}", "-").removesuffix("."))
    return Decimal(match[1] + match[2].replace(",", "")) if match else None
