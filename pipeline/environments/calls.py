"""Calls of tools in what a model wrote, by the form that its family writes them in.

    hermes    <tool_call>{"name": …, "arguments": {…}}</tool_call>, as often as it likes (Qwen, Hermes, SmolLM)
    json      the whole turn is {"name": …, "parameters": {…}}, several with a semicolon between (Llama 3)
    pythonic  [name(argument=1), …] (Llama 4, Olmo)

What a model wrote is read as data: JSON, or Python literals by their syntax tree.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MOST_CHARACTERS = 20_000
"""Of a turn's calls together."""
_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call, or why it is none."""

    name: str
    arguments: Mapping[str, Any]
    wrong: str | None = None


def calls_in(text: str, form: str) -> list[ToolCall]:
    """The calls of a turn, in their order; none if it only says something.

    >>> calls_in('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', "hermes")
    [ToolCall(name='add', arguments={'a': 1}, wrong=None)]
    >>> calls_in("[add(a=1, b=[2])]", "pythonic")[0].arguments
    {'a': 1, 'b': [2]}
    >>> calls_in("It is 7.", "json")
    []
    """
    found = FORMS[form](text)
    if found and len(text) > MOST_CHARACTERS:
        return [ToolCall("", {}, f"calls of more than {MOST_CHARACTERS:,} characters")]
    return found


def _hermes(text: str) -> list[ToolCall]:
    return [_from_json(found) for found in _HERMES.findall(text)]


def _json(text: str) -> list[ToolCall]:
    text = text.strip().removeprefix("<|python_tag|>").strip()
    if not text.startswith("{"):
        return []
    decoder, place = json.JSONDecoder(), 0
    calls: list[ToolCall] = []
    while place < len(text):
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return [*calls, ToolCall("", {}, "not JSON")]
        calls.append(_from_value(value))
        place = end + len(text[end:]) - len(text[end:].lstrip("; \n"))
    return calls


def _pythonic(text: str) -> list[ToolCall]:
    text = text.strip()
    if not text.startswith("["):
        return []
    try:
        tree = ast.parse(text[:MOST_CHARACTERS], mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [ToolCall("", {}, "not a list of calls")]
    if not isinstance(tree, ast.List) or not all(isinstance(one, ast.Call) for one in tree.elts):
        return []
    return [_from_tree(one) for one in tree.elts if isinstance(one, ast.Call)]


def _from_tree(call: ast.Call) -> ToolCall:
    if not isinstance(call.func, ast.Name) or call.args:
        return ToolCall("", {}, "a call is name(argument=value)")
    try:
        arguments = {str(one.arg): ast.literal_eval(one.value) for one in call.keywords if one.arg}
    except (ValueError, TypeError, RecursionError, MemoryError):
        return ToolCall(call.func.id, {}, "arguments that are no literals")
    return ToolCall(call.func.id, arguments)


def _from_json(text: str) -> ToolCall:
    try:
        return _from_value(json.loads(text))
    except (ValueError, RecursionError):
        return ToolCall("", {}, "not JSON")


def _from_value(value: Any) -> ToolCall:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ToolCall("", {}, 'expected {"name": …, "arguments": {…}}')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some write the arguments as JSON within JSON
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return ToolCall(value["name"], {}, "arguments that are not JSON")
    if not isinstance(arguments, dict):
        return ToolCall(value["name"], {}, "arguments that are no object")
    return ToolCall(value["name"], arguments)


FORMS: Mapping[str, Callable[[str], list[ToolCall]]] = {"hermes": _hermes, "json": _json, "pythonic": _pythonic}
