"""Chat messages as strangers write them: with a role each, and a content, its parts, reasoning, or calls of tools."""

from __future__ import annotations

import json
from typing import Any

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which a message keeps what was thought before it."""
TEXTS = ("text", "reasoning")
"""Parts of a content that are texts."""

SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
"""Roles by what ShareGPT's form calls them, whose messages are {"from", "value"}."""


def chat(value: list[Any], column: str) -> list[dict[str, Any]]:
    """Chat messages with a role each, and a content, or a call of a tool instead.

    >>> chat([{"from": "human", "value": "1+1"}], "conversations")
    [{'role': 'user', 'content': '1+1'}]

    Raises:
        ValueError: something else.
    """
    return [_message(column, place, item) for place, item in enumerate(value)]


def reasoning_of(message: dict[str, Any]) -> str | None:
    """What a message says before its content, under whichever name."""
    return next((str(message[name]) for name in REASONING if message.get(name)), None)


def _message(column: str, place: int, item: Any) -> dict[str, Any]:
    """A chat message without the empty parts that a table gives every row."""
    if isinstance(item, dict) and "role" not in item and item.get("from") in SPEAKERS:
        item = {"role": SPEAKERS[item["from"]], "content": item.get("value")}
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        raise ValueError(f"column {column}: message {place} has no role")
    kept = {name: value for name, value in item.items() if value is not None}
    content = kept.get("content")
    if isinstance(content, list):
        if (other := next((kind for kind in map(_kind, content) if kind not in TEXTS), None)) is not None:
            raise ValueError(
                f"column {column}: the content of message {place} has a part of type {other!r}; texts alone are read"
            )
        content = _of_parts(kept, content)
    if kept.get("tool_calls"):
        kept["tool_calls"] = [_call(column, place, call) for call in kept["tool_calls"]]
        content = content or ""
    if content is None and reasoning_of(kept):
        content = ""
    if not isinstance(content, str):
        raise ValueError(f"column {column}: the content of message {place} is no text")
    return {**kept, "content": content}


def _kind(part: Any) -> str:
    """What a part of a content is: by its type, or by what it is where it has none."""
    kind = part.get("type") if isinstance(part, dict) else None
    return kind if isinstance(kind, str) else type(part).__name__


def _of_parts(kept: dict[str, Any], parts: list[Any]) -> str:
    """The text of content that comes in parts; reasoning among them is put beside it."""
    texts: dict[str, list[str]] = {name: [] for name in TEXTS}
    for part in parts:
        texts[part["type"]].append(str(part.get(part["type"]) or ""))
    if "".join(texts["reasoning"]):
        kept["reasoning_content"] = "".join(texts["reasoning"])
    return "".join(texts["text"])


def _call(column: str, place: int, call: Any) -> Any:
    """A tool's call as chat templates take it: its arguments are an object and stand below `function`."""
    if isinstance(call, str):
        try:
            call = json.loads(call)
        except ValueError as error:
            raise ValueError(f"column {column}: a tool's call in message {place} is not valid JSON: {error}") from None
    if not isinstance(call, dict):
        raise ValueError(f"column {column}: a tool's call in message {place} is no object")
    if "function" not in call and "name" in call:
        inner = {name: call[name] for name in ("name", "arguments") if name in call}
        call = {**{name: value for name, value in call.items() if name not in inner}, "type": "function", "function": inner}
    function = call.get("function")
    if isinstance(function, dict) and isinstance(function.get("arguments"), str):
        try:
            call = {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
        except ValueError:
            return call
    return call
