"""`tools`: plain Python functions that a chat model may call. A turn without a call ends the episode."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.environments.calls import ToolCall, calls_in
from pipeline.rewards.arguments import fits, parameters_of
from pipeline.sources.tools import schemas_of, tool_named


class Tools:
    """Environment of one episode: calls the tools that the policy names, and says what they returned.

    What goes wrong is said to the policy, and the episode goes on: an unknown tool, arguments that are malformed, missing or of
    another type, an exception, too many calls in a turn.
    """

    reads_special_tokens = True
    """Some families write calls with special tokens."""

    def __init__(
        self,
        tools: Sequence[str],
        form: Literal["hermes", "json", "pythonic"] = "hermes",
        most_calls: int = 8,
        answer: str | None = None,
    ) -> None:
        """
        Args:
            tools: their names.
            form: how the model writes calls.
            most_calls: of one turn; further ones are answered with an error.
            answer: regular expression of an answer. A turn without a call in which it is not found is void, as is an empty one.
        """
        if not tools:
            raise UserError("environment.tools: names no tool")
        self._form, self._most = form, most_calls
        try:
            self._answer_in = re.compile(answer) if answer is not None else None
        except re.error as error:
            raise UserError(f"environment.args.answer: {answer!r} is no regular expression: {error}") from None
        names = [schema["function"]["name"] for schema in schemas_of(tools)]
        self._functions = {name: tool_named(tool) for name, tool in zip(names, tools, strict=True)}

    def start(self, prompt: Mapping[str, Any], seed: int) -> None:
        return None

    def step(self, action: str) -> tuple[Any, None, bool, dict[str, Any]]:
        calls = calls_in(action, self._form)
        said = [self._answer(call) for call in calls[: self._most]]
        said += [_wrong(call.name, f"more than {self._most} calls in a turn") for call in calls[self._most :][:1]]
        void = not calls and not (self._answer_in.search(action) if self._answer_in else action.strip())
        return said, None, not calls, {"void": void}

    def _answer(self, call: ToolCall) -> dict[str, Any]:
        if call.wrong is not None:
            return _wrong(call.name, call.wrong)
        function = self._functions.get(call.name)
        if function is None:
            return _wrong(call.name, f"no such tool; there are {', '.join(self._functions)}")
        if (why := _misfit(parameters_of(function), call.arguments)) is not None:
            return _wrong(call.name, why)
        try:
            value = function(**call.arguments)
        except MemoryError:
            raise
        except Exception as error:
            return _wrong(call.name, f"{type(error).__name__}: {error}"[:500])
        return {"role": "tool", "name": call.name, "content": _text(value)}


def _misfit(parameters: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """Why arguments are not those of a function."""
    if unknown := [name for name in arguments if name not in parameters]:
        return f"no such argument: {unknown[0]}; it takes {', '.join(parameters)}"
    if missing := [name for name, (_, required) in parameters.items() if required and name not in arguments]:
        return f"missing argument: {missing[0]}"
    if other := [name for name, value in arguments.items() if not fits(value, parameters[name][0])]:
        return f"argument {other[0]} is of another type than it takes"
    return None


def _wrong(name: str, why: str) -> dict[str, Any]:
    return {"role": "tool", "name": name or None, "content": f"Error: {why}", "error": True}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
