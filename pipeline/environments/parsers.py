"""Calls of tools as vLLM's own parsers read them, by the family of the model.

A parser is loaded once, in the process that episodes are forked from. It reads text alone: what it makes of a call is checked as
any other (`pipeline.environments.tools`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.environments.calls import MOST_CHARACTERS, ToolCall

AUTO = "auto"
"""The parser is that of the model's chat template."""
MARKS: Mapping[str, str] = {
    "<function=": "qwen3_coder",
    "<arg_key>": "glm45",
    "<minimax:tool_call>": "minimax_m2",
    "<seed:tool_call>": "seed_oss",
    "<|tool_calls_section_begin|>": "kimi_k2",
    "<|tool_call_start|>": "lfm2",
    "<start_function_call>": "functiongemma",
    "<function_calls>": "olmo3",
    "[TOOL_CALLS]": "mistral",
    "<|python_tag|>": "llama3_json",
    "<tool_call>": "hermes",
}
"""What a chat template writes calls with, and the parser that reads them: the first that is found."""

Parser = Callable[[str], list[ToolCall]]


def parser_of(template: str | None) -> str:
    """The parser of a chat template.

    >>> parser_of("... <tool_call>{{ call | tojson }}</tool_call>")
    'hermes'

    Raises:
        UserError: none of the known families writes calls as it does.
    """
    for mark, name in MARKS.items():
        if template and mark in template:
            return name
    raise UserError(
        "environment.args.parser: auto: the model's chat template writes calls in no known way; expected one of "
        f"{', '.join(MARKS)}. Name a parser of vLLM's, or give args.form instead"
    )


def loaded(name: str, model: str, schemas: Sequence[Mapping[str, Any]]) -> Parser:
    """A parser of vLLM's.

    Args:
        name: as vLLM calls it (`--tool-call-parser`), or auto.
        model: directory of the model, for its tokenizer.
        schemas: of the tools.

    Raises:
        UserError: there is no such parser, vLLM is not installed, or the model's tokenizer is not one that it reads.
    """
    try:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager
    except ImportError as error:
        raise UserError(
            f"environment.args.parser: {name} is a parser of vLLM's, which cannot be imported here ({error}). Install it, or use "
            "args.form: hermes, json or pythonic"
        ) from None
    from pipeline.sources.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(model), trust_remote_code=False)
    if name == AUTO:
        name = parser_of(tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None)
    known = sorted({*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers})
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UserError(f"environment.args.parser: vLLM has no parser {name}; {hint}")
    asked = {"messages": [{"role": "user", "content": "?"}], "model": "", "tools": list(schemas)}
    request = ChatCompletionRequest.model_validate(asked)
    told: Any = request.tools
    made = ToolParserManager.get_tool_parser(name)
    mark = next((mark for mark, of in MARKS.items() if of == name), None)
    try:
        made(tokenizer, told)
    except Exception as error:
        raise UserError(f"environment.args.parser: {name} does not go with this model's tokenizer: {error}") from None

    def parse(text: str) -> list[ToolCall]:
        if len(text) > MOST_CHARACTERS and mark is not None and mark in text:
            return [ToolCall("", {}, f"calls of more than {MOST_CHARACTERS:,} characters")]
        try:
            found = made(tokenizer, told).extract_tool_calls(text, request)
        except Exception as error:
            return [ToolCall("", {}, f"{type(error).__name__} of the parser {name}")]
        calls = [_call(one.function.name, one.function.arguments) for one in found.tool_calls] if found.tools_called else []
        if not calls and mark is not None and mark in text:
            return [ToolCall("", {}, f"no call that the parser {name} can read")]
        return calls

    return parse


def _call(name: str, arguments: str | None) -> ToolCall:
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return ToolCall(name, {}, "arguments that are not JSON")
    return ToolCall(name, read) if isinstance(read, dict) else ToolCall(name, {}, "arguments that are no object")
