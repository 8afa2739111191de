"""What a pool and a worker say to each other: one JSON value a line, over two pipes.

    pool → worker   {"components": [{"grader", "args"}], "directory", "memory_mib"}     once
    worker → pool   {"ready": true, "notes"} or {"refused": why}                        once
    pool → worker   [completion, answer, prompt, finish_reason]                         for each item
    worker → pool   {"score": number} or {"error": why}, either with "remark"           for each component, in order;
                    a score null says that the component does not apply to the item

A grader that takes many completions at once has a worker of its own ("batches" in the first message):

    worker → pool   {"ready": true, "notes", "seconds_per_item"} or {"refused": why}    once
    pool → worker   [[completion, answer, prompt, group_id, sample_index], …]           for each batch
    worker → pool   {"scores": [[score, error, remark], …]}                             for each batch

A reply with "retire" ends the worker: "processes" after an item's last reply, because it left processes behind, and
"memory" in place of the item's remaining replies.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

MESSAGE_CHARACTERS = 400
"""Longest error text; it keeps a reply within what a pipe takes in one write."""


REMARK_CHARACTERS = 400
"""Longest remark of a grader that takes one completion at a time, for the same reason."""


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
