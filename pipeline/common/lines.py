"""What processes say to one another: one JSON value a line."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MESSAGE_CHARACTERS = 400
"""Longest error text; it keeps a reply within what a pipe takes in one write."""


def encode(value: Any) -> bytes:
    """One line. Any Python text survives, lone surrogates and NUL included.

    Dates become ISO text, decimals text, NumPy values lists and numbers.

    Raises:
        TypeError: a value that has no JSON form.
        ValueError: a value that holds itself.
    """
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass") + b"\n"


def decode(line: bytes) -> Any:
    return json.loads(line.decode("utf-8", "surrogatepass"))


def one_line(text: str) -> str:
    """`text` fit for a log, a table and a terminal: one line, printable, not too long."""
    words = " ".join(text[: 4 * MESSAGE_CHARACTERS].split())
    if not words.isprintable():
        words = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return words if len(words) <= MESSAGE_CHARACTERS else words[: MESSAGE_CHARACTERS - 1] + "…"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, datetime.timedelta)):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__} has no JSON form")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_plain)
