"""Tools: plain Python functions of the user's, as chat templates are told of them."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.common.own_code import own_function

A_TOOL = "a tool is a function of your own"
BUILTINS: Mapping[str, str] = {"calculator": "pipeline.environments.calculator:calculator"}
"""Tools that are built in, by their names."""
_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", list: "array", type(None): "null"}


def tool_named(name: str) -> Callable[..., Any]:
    """A tool's function: built in, or 'package.module:function'.

    Raises:
        UserError: there is none.
    """
    return own_function(BUILTINS.get(name, name), A_TOOL)


def schemas_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """JSON schemas of tools, as the `tools` argument of chat templates has them.

    Raises:
        UserError: a tool without a docstring or without type hints, or two of one name; names it.
    """
    schemas = []
    for name in names:
        try:
            schemas.append(schema_of(tool_named(name)))
        except UserError as error:
            raise UserError(f"environment.tools: {name}: {error}") from None
    called = [schema["function"]["name"] for schema in schemas]
    if twice := next((name for name in called if called.count(name) > 1), None):
        raise UserError(f"environment.tools: two tools are called {twice}; models know them by that name")
    return schemas


def schema_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function with type hints and a docstring whose `Args:` say what each argument is.

    >>> def add(a: int, b: int = 0) -> int:
    ...     '''Add two numbers.
    ...
    ...     Args:
    ...         a: The first one.
    ...     '''
    >>> schema_of(add)["function"]["parameters"]["properties"]["a"]
    {'type': 'integer', 'description': 'The first one.'}

    Raises:
        UserError: it has no docstring, or an argument without a type that JSON knows.
    """
    said, described = _docstring(function)
    try:
        hints = typing.get_type_hints(function)
    except Exception as error:  # annotations may name what is not importable here
        raise UserError(f"its type hints cannot be read: {error}") from None
    parameters = inspect.signature(function).parameters.values()
    if starred := next((p for p in parameters if p.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)), None):
        raise UserError(f"takes {starred}; expected arguments with names and types of their own")
    if bare := next((p.name for p in parameters if p.name not in hints), None):
        raise UserError(f"its argument {bare} has no type hint; models are told the types of arguments")
    properties = {
        p.name: {**_kind(hints[p.name], p.name), **({"description": described[p.name]} if p.name in described else {})}
        for p in parameters
    }
    required = [p.name for p in parameters if p.default is Parameter.empty]
    told = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": function.__name__, "description": said, "parameters": told}}


def _docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a function says of itself, and of its arguments."""
    text = inspect.getdoc(function)
    if not text:
        raise UserError("has no docstring; models are told what it says")
    said, _, rest = text.partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    found = re.findall(r"^ +(\w+)(?: \([^)]*\))?:((?:.*)(?:\n {5,}.*)*)", section, re.MULTILINE)
    return " ".join(re.split(r"\n(?:Returns|Raises):", said)[0].split()), {name: " ".join(about.split()) for name, about in found}


def _kind(hint: Any, name: str) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {**_kind(type(inner[0]), name), "enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(one, name) for one in inner if one is not type(None)]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": _kind(inner[0], name)}
    if (origin or hint) not in _KINDS:
        raise UserError(f"its argument {name} is of type {hint}; expected str, int, float, bool, list, dict or a Literal")
    return {"type": _KINDS[origin or hint]}
