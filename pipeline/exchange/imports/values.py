"""Values out of a stranger's row. Each function says which column is not what it should be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from pipeline.common.spelled import spelled
from pipeline.sources.chats import chat, reasoning_of

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


def reference(value: Any) -> str | None:
    """A reference answer as text: a text, a number, or the only one in a list. None of others, which a text cannot hold."""
    if isinstance(value, list) and len(value) == 1:
        return reference(value[0])
    if is_missing(value) or isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return spelled(value)


def messages(row: Values, column: str) -> str | list[dict[str, Any]]:
    """A text, or chat messages with a role and a content each.

    Raises:
        ValueError: something else.
    """
    value = row.get(column)
    if isinstance(value, list):
        return chat(value, column)
    return needed_text(row, column)


def asked(found: str | list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A prompt without the answer that its messages may end with: what comes before the assistant's last turn."""
    return found[:-1] if isinstance(found, list) and found and found[-1]["role"] == "assistant" else found


def answer(row: Values, column: str) -> str | list[dict[str, Any]]:
    """A completion: a text, or the turns that it consists of.

    Raises:
        ValueError: something else.
    """
    found = messages(row, column)
    return found if isinstance(found, str) else as_answer(found, column)


def as_answer(turns: list[dict[str, Any]], column: str) -> str | list[dict[str, Any]]:
    """The text of the assistant's one message, or the turns as they are: with several, with reasoning, or a tool's call.

    Raises:
        ValueError: no turn is the assistant's.
    """
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError(f"column {column}: no message is the assistant's, so there is no answer")
    if len(turns) == 1 and not (turns[0].get("tool_calls") or reasoning_of(turns[0])):
        return str(turns[0]["content"])
    return turns


def json_value(row: Values, column: str) -> Any:
    """
    Raises:
        ValueError: no JSON text, nor a value that was one.
    """
    value = row.get(column)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"column {column}: not valid JSON: {error}") from None


def rest_of(row: Values, used: set[str]) -> Values:
    """The columns that were not used and hold something."""
    return {name: value for name, value in row.items() if name not in used and not is_missing(value)}


def _wrong(column: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"column {column}: expected {expected}, found {type(value).__name__} {value!r:.60}")
