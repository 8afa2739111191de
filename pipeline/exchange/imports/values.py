"""Values out of a stranger's row. Each function says which column is not what it should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pipeline.common.spelled import spelled

Values = dict[str, Any]
LARGEST_ID = 2**31 - 1


def is_missing(value: Any) -> bool:
    """null, or NaN, which is what pandas writes for null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def text(row: Values, column: str) -> str | None:
    """
    Raises:
        ValueError: neither text nor a number.
    """
    value = row.get(column)
    if is_missing(value):
        return None
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return spelled(value)
    raise _wrong(column, "text", value)


def needed_text(row: Values, column: str) -> str:
    """
    Raises:
        ValueError: no text, or null.
    """
    found = text(row, column)
    if found is None:
        raise ValueError(f"column {column}: is null or missing, expected text")
    return found


def number(row: Values, column: str) -> float | None:
    """A finite number; true and false are 1 and 0.

    Raises:
        ValueError: something else.
    """
    value = row.get(column)
    if is_missing(value):
        return None
    if not isinstance(value, int | float):
        raise _wrong(column, "a number", value)
    if not math.isfinite(value):
        raise ValueError(f"column {column}: is {value}, expected a finite number")
    return float(value)


def integer(row: Values, column: str) -> int | None:
    """
    Raises:
        ValueError: no whole number.
    """
    value = number(row, column)
    if value is None:
        return None
    if value != int(value):
        raise _wrong(column, "a whole number", row[column])
    return int(row[column])


def token_ids(row: Values, column: str) -> list[int] | None:
    """
    Raises:
        ValueError: no list of token ids.
    """

    def fits(item: Any) -> bool:
        return isinstance(item, int) and not isinstance(item, bool) and 0 <= item <= LARGEST_ID

    return _list(row, column, "token id", fits)


def numbers(row: Values, column: str) -> list[float] | None:
    """
    Raises:
        ValueError: no list of finite numbers.
    """

    def fits(item: Any) -> bool:
        return isinstance(item, int | float) and not isinstance(item, bool) and math.isfinite(item)

    found = _list(row, column, "finite number", fits)
    return None if found is None else [float(item) for item in found]


def _list(row: Values, column: str, what: str, fits: Callable[[Any], bool]) -> list[Any] | None:
    value = row.get(column)
    if is_missing(value):
        return None
    if not isinstance(value, list):
        raise _wrong(column, f"a list of {what}s", value)
    for place, item in enumerate(value):
        if not fits(item):
            raise ValueError(f"column {column}: value {place} is {item!r:.40}, expected a {what}")
    return value


def truths(row: Values, column: str) -> list[bool] | None:
    """A list of true and false, or of 1 and 0.

    Raises:
        ValueError: something else.
    """
    value = row.get(column)
    if is_missing(value):
        return None
    if not isinstance(value, list) or any(item not in (0, 1) for item in value):
        raise _wrong(column, "a list of true and false", value)
    return [bool(item) for item in value]


def messages(row: Values, column: str) -> str | list[dict[str, Any]]:
    """A text, or chat messages with a role and a content each.

    Raises:
        ValueError: something else.
    """
    value = row.get(column)
    if isinstance(value, list):
        return [_message(column, place, item) for place, item in enumerate(value)]
    return needed_text(row, column)


def answer_text(row: Values, column: str) -> str:
    """A completion: a text, or the single message of an assistant.

    Raises:
        ValueError: something else, such as several messages: a completion with a tool's words in it has no text of its own.
    """
    found = messages(row, column)
    if isinstance(found, str):
        return found
    if len(found) != 1 or found[0].get("tool_calls"):
        raise ValueError(f"column {column}: {len(found)} messages or a tool's call, expected the assistant's one message of text")
    return str(found[0]["content"])


def rest_of(row: Values, used: set[str]) -> Values:
    """The columns that were not used and hold something."""
    return {name: value for name, value in row.items() if name not in used and not is_missing(value)}


def _message(column: str, place: int, item: Any) -> dict[str, Any]:
    """A chat message without the empty parts that a table gives every row."""
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise ValueError(f"column {column}: message {place} has no role")
    kept = {name: value for name, value in item.items() if value is not None}
    content = kept.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        kept["content"] = content = "".join(str(part.get("text") or "") for part in content)
    if not isinstance(content, str):
        raise ValueError(f"column {column}: the content of message {place} is no text")
    return kept


def _wrong(column: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"column {column}: expected {expected}, found {type(value).__name__} {value!r:.60}")
