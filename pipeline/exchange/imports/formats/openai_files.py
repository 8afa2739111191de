"""Requests to an OpenAI-compatible server and what it answered.

A line is {"request": {...}, "response": {...}}, as proxies log them; or, as batch files have them, requests {"custom_id",
"url", "body"} and then results {"custom_id", "response": {"body"}}, in files of their own. Bodies are those of
/v1/chat/completions or /v1/completions. Files of requests are read first. vLLM adds prompt_token_ids and token_ids
(return_token_ids), or writes tokens as token_id:<id> (return_tokens_as_token_ids); without them the text is tokenized again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pipeline.exchange.imports.format import FAULTS, LONGEST_CONTENT, Format, Options, reason
from pipeline.exchange.imports.known import Known, Misfit, SourceRow
from pipeline.exchange.imports.read import read_rows
from pipeline.exchange.imports.values import (
    Values,
    integer,
    is_missing,
    messages,
    number,
    numbers,
    rest_of,
    text,
    token_ids,
    truths,
)
from pipeline.sources.chats import chat, reasoning_of

ID_MARK = "token_id:"
ROW = {"request", "response", "custom_id"}


class OpenAI(Format):
    """As many completions a line as the response has choices."""

    name = "openai"
    title = "requests and responses of an OpenAI-compatible server"
    signatures = (("request", "response"), ("custom_id", "response"), ("custom_id", "body"))
    fields = {
        "request.messages, request.prompt": "prompt_text",
        "response.choices": "one completion each",
        "response.model": "policy_id",
        "request.temperature, top_p, top_k, min_p": "the same",
        "choice.token_ids, response.prompt_token_ids": "completion_token_ids, prompt_token_ids",
        "choice.logprobs": "behavior_logprobs",
    }
    engine = "OpenAI-compatible server"
    remembers = True

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._requests: dict[str, Values] = {}

    @classmethod
    def ordered(cls, files: Sequence[Path]) -> Sequence[Path]:
        """A batch's requests before its results, however they are named."""
        return sorted(files, key=lambda file: not _is_request(next(read_rows([file]), None))) if len(files) > 1 else files

    def known(self, row: SourceRow) -> Iterable[Known | Misfit]:
        values = row.values
        if not is_missing(values.get("error")):
            raise ValueError(f"column error: the request failed: {_failure(values['error'])}")
        if values.get("response") is None and "body" in values:
            self._requests[str(values.get("custom_id"))] = _object(values, "body")
            return
        request, response = self._request(values), _response(values)
        choices = response.get("choices")
        if not choices and isinstance(response.get("output"), list):
            raise ValueError(
                "column response: of /v1/responses. What is read are bodies of /v1/chat/completions and /v1/completions"
            )
        if not isinstance(choices, list) or not choices:
            raise ValueError("column response: has no choices")
        rest = rest_of(values, ROW)
        rest |= {"request": rest_of(request, USED), "response": rest_of(response, {"choices", "model", "prompt_token_ids"})}
        asked = _asked(request, response)
        for at, choice in enumerate(choices):
            try:
                yield _known(row, asked, choice, rest)
            except FAULTS as error:
                place = f"{row.place}, choice {at}" if len(choices) > 1 else row.place
                yield Misfit(place, reason(error), json.dumps(choice, default=str)[:LONGEST_CONTENT])

    def _request(self, values: Values) -> Values:
        if "request" in values:
            request = _object(values, "request")
            return _object(request, "body") if isinstance(request.get("body"), dict) else request
        found = self._requests.get(str(values.get("custom_id")))
        if found is None:
            raise ValueError(
                f"column custom_id: no request {values.get('custom_id')!r} among those named. Name the requests' file too"
            )
        return found


def _is_request(row: SourceRow | Misfit | None) -> bool:
    return isinstance(row, SourceRow) and "body" in row.values and row.values.get("response") is None


USED = {"messages", "prompt", "temperature", "top_p", "top_k", "min_p"}


def _asked(request: Values, response: Values) -> dict[str, Any]:
    """What all choices of a response have in common."""
    prompt, ids = _prompt(request)
    top_k = integer(request, "top_k")
    return {
        "prompt": prompt,
        "prompt_tokens": token_ids(response, "prompt_token_ids") or ids,
        "temperature": number(request, "temperature"),
        "top_p": number(request, "top_p"),
        "top_k": None if top_k is None else max(top_k, 0),
        "min_p": number(request, "min_p"),
        "policy": text(response, "model") or text(request, "model"),
    }


def _known(row: SourceRow, asked: dict[str, Any], choice: Any, rest: Values) -> Known:
    if not isinstance(choice, dict):
        raise ValueError("column response: a choice that is no object")
    ids = token_ids(choice, "token_ids")
    said = _said(choice, ids)
    logprobs, texts = _logprobs(choice)
    if ids is None and texts and all(token.startswith(ID_MARK) for token in texts):
        ids = [int(token.removeprefix(ID_MARK)) for token in texts]
    own = token_ids(choice, "prompt_token_ids")
    return Known(
        row=row,
        **(asked | ({"prompt_tokens": own} if own else {})),
        completion=said,
        completion_tokens=ids,
        logprobs=logprobs,
        logprob_texts=None if ids is not None else texts,
        action_mask=None if ids is None else truths(choice, "action_mask"),
        finish_reason=text(choice, "finish_reason"),
        rest=rest | {"choice": rest_of(choice, {"message", "text", "logprobs", "token_ids", "action_mask", "finish_reason"})},
    )


def _response(values: Values) -> Values:
    response = _object(values, "response")
    if response.get("status_code", 200) != 200:
        body = response.get("body")
        error = body.get("error") if isinstance(body, dict) else None
        raise ValueError(f"column response: an error: {_failure(error or body or response)}")
    return _object(response, "body") if isinstance(response.get("body"), dict) else response


def _prompt(request: Values) -> tuple[Any, list[int] | None]:
    """The prompt as text or messages, or as token ids."""
    if "messages" in request:
        return messages(request, "messages"), None
    prompt = request.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(item, int) for item in prompt):
        return None, token_ids(request, "prompt")
    if isinstance(prompt, list):
        raise ValueError("column request: several prompts in one request; log one request a prompt")
    return text(request, "prompt"), None


def _said(choice: Values, ids: list[int] | None) -> Any:
    """A choice's text, or its message where its reasoning stands apart, which then is written by the chat template."""
    message = choice.get("message")
    if not isinstance(message, dict):
        found = text(choice, "text")
        if found is None:
            raise ValueError("column response: a choice without a message or a text")
        return found
    if message.get("tool_calls") or message.get("function_call"):
        raise ValueError("column response: the answer calls a tool, and is no text")
    if message.get("refusal"):
        raise ValueError(f"column response: the model refused: {message['refusal']!r:.200}")
    content = text(message, "content")
    if ids is None and reasoning_of(message):
        return chat([{"role": "assistant", **message, "content": content or ""}], "response")
    if ids is None and content is None:
        raise ValueError("column response: a message without content")
    return content or ""


def _failure(error: Any) -> str:
    """What an error says, shortly."""
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if isinstance(error, dict) and error.get("message"):
        return " ".join(str(error[name]) for name in ("code", "message") if error.get(name))[:300]
    return str(error)[:300]


def _logprobs(choice: Values) -> tuple[list[float] | None, list[str] | None]:
    """Logprobs, and the texts of their tokens: of a chat one object a token, of a completion two lists."""
    found = choice.get("logprobs")
    if not isinstance(found, dict):
        return None, None
    if isinstance(found.get("content"), list):
        tokens = found["content"]
        found = {"token_logprobs": [t.get("logprob") for t in tokens], "tokens": [t.get("token") for t in tokens]}
    texts = found.get("tokens")
    return numbers(found, "token_logprobs"), [str(item) for item in texts] if isinstance(texts, list) else None


def _object(values: Values, name: str) -> Values:
    value = values.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"column {name}: expected an object, found {type(value).__name__}")
    return value


FORMAT = OpenAI
