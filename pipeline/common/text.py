"""Figures as text, and text from models made harmless to look at."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

ABSENT = "–"
LONGEST_CODE = 200
"""Characters of a value in a code span."""


def number(value: float | None, digits: int = 3) -> str:
    """Three significant digits, or a dash if there is no finite value.

    >>> number(0.012345), number(None), number(1234.5)
    ('0.0123', '–', '1,234')
    """
    if value is None or not math.isfinite(value):
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """
    >>> percent(0.4567)
    '45.7 %'
    """
    return ABSENT if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def interval(value: float | None, low: float | None, high: float | None) -> str:
    """A share with its interval, in percent.

    >>> interval(0.4567, 0.4, 0.512)
    '45.7 % [40.0, 51.2]'
    """
    if value is None or low is None or high is None:
        return percent(value)
    return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def count(value: int | None) -> str:
    """
    >>> count(1234567)
    '1,234,567'
    """
    return ABSENT if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """
    >>> duration(0.53), duration(59.96), duration(252), duration(7380)
    ('0.5 s', '1 min 00 s', '4 min 12 s', '2 h 03 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return f"{round(seconds) // 60} min {round(seconds) % 60:02d} s"
    return f"{round(seconds / 60) // 60} h {round(seconds / 60) % 60:02d} min"


def json_safe(value: Any) -> Any:
    """The same value with null in place of every NaN and infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return value


class _Visible(dict[int, str]):
    """For `str.translate`: what each code point is shown as."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
        if char in "\n\t":
            shown = char
        elif noncharacter or category in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            shown = f"‹U+{code:04X}›"
        else:
            shown = char
        self[code] = shown
        return shown


_VISIBLE = _Visible()


def visible(text: str) -> str:
    r"""Controls, escapes, bidi marks and invisible characters by their numbers; newlines and tabs stay.

    >>> visible("a\x1b[31m\x00"), visible("\u202ecod.exe")
    ('a‹U+001B›[31m‹U+0000›', '‹U+202E›cod.exe')
    """
    return text.translate(_VISIBLE)


def code(value: object) -> str:
    """A value as it is, in a code span: what strangers wrote is no markup.

    >>> code("a`b|c")
    '`a b c`'
    """
    text = re.sub(r"[`|\s\x00-\x1f]+", " ", str(value)).strip()[:LONGEST_CODE]
    return f"`{text or ' '}`"
