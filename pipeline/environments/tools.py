"""`tools`: plain Python functions that a chat model may call. A turn without a call ends the episode."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pipeline.common.errors import UserError
from pipeline.environments.calls import ToolCall, calls_in
from pipeline.environments.parsers import Parser, loaded
from pipeline.rewards.arguments import fits, parameters_of
from pipeline.sources.tools import schemas_of, tool_named


class Tools:
    """Environment of one episode: calls the tools that the policy names, and says what they returned.

    What goes wrong is said to the policy, and the episode goes on: an unknown tool, arguments that are malformed, missing or of
    another type, an exception, too many calls in a turn.
    """

    deterministic = True
    """As far as its tools are."""
    _parsers: ClassVar[dict[str, Parser]] = {}
    """Those that are loaded."""
    reads_special_tokens = True
    """Some families write calls with special tokens."""

    def __init__(
        self,
        tools: Sequence[str],
        form: Literal["hermes", "json", "pythonic"] = "hermes",
        most_calls: int = 8,
        answer: str | None = None,
        parser: str | None = None,
    ) -> None:
        """
        Args:
            tools: their names.
            form: how the model writes calls.
            most_calls: of one turn; further ones are answered with an error.
            parser: of vLLM's, in place of `form`: the name of one (hermes, llama3_json, …), or auto, by the chat template.
            answer: regular expression of an answer. A turn without a call in which it is not found is void, as is an empty one.
        """
        if not tools:
            raise UserError("environment.tools: names no tool")
        self._most = most_calls
        self._calls_in = partial(calls_in, form=form) if parser is None else self._parsers[parser]
        try:
            self._answer_in = re.compile(answer) if answer is not None else None
        except re.error as error:
            raise UserError(f"environment.args.answer: {answer!r} is no regular expression: {error}") from None
        names = [schema["function"]["name"] for schema in schemas_of(tools)]
        self._functions = {name: tool_named(tool) for name, tool in zip(names, tools, strict=True)}

    @classmethod
    def prepare(cls, model: str | None, tools: Sequence[str], parser: str | None = None, **_: Any) -> None:
        """Load the parser, once for all episodes.

        Args:
            model: directory of the model whose calls are read.
        """
        if parser is not None and model is not None:
            os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
            logging.disable(logging.CRITICAL)  # parsers log what models wrote
            cls._parsers[parser] = loaded(parser, model, schemas_of(tools))

    def start(self, prompt: Mapping[str, Any], seed: int) -> None:
        return None

    def step(self, action: str) -> tuple[Any, None, bool, dict[str, Any]]:
        calls = self._calls_in(action)
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
