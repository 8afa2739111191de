"""judge: the score that a model behind an OpenAI-compatible server gives, such as vLLM's."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.common.commands import VLLM_SERVER
from pipeline.common.errors import UserError
from pipeline.common.lines import one_line
from pipeline.common.web import NoRedirects
from pipeline.rewards.graders.from_file import refuse_mistyped
from pipeline.rewards.graders.template import check_template, filled
from pipeline.rewards.graders.text import compile_pattern, last_captured, number
from pipeline.rewards.items import RewardItem, Score

WORK = ("url", "api_key_env", "timeout", "retries", "concurrency")
LONGEST_ANSWER = 4 << 20
"""Bytes of a server's answer that are read."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first retry; every further pause is twice as long, up to the longest."""
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""What may be answered otherwise next time."""
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")


def judge(
    *,
    url: str,
    model: str,
    template: str,
    pattern: str,
    values: Mapping[str, float] | None = None,
    divide_by: float = 1.0,
    system: str | None = None,
    api: Literal["chat", "completions"] = "chat",
    temperature: float = 0.0,
    seed: int | None = 0,
    max_tokens: int = 512,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 16,
) -> Judge:
    """A score read from a model's answer. The answer is kept in the table `remarks`.

    Servers batch what they are asked, and their sums with it, so the same question can get another answer even at
    temperature 0: an audit does not ask again.

    Args:
        url: the server's, up to and with its version: http://localhost:8000/v1.
        model: its name on the server.
        template: what the model is asked; {prompt}, {question}, {completion} and {answer} are replaced.
        pattern: regular expression; what its last match in the answer captures is the score.
        values: numbers that captured words stand for: {correct: 1, wrong: 0}.
        divide_by: what the captured number is divided by; 10 for marks out of ten.
        system: system message, with api: chat.
        api: chat uses the model's chat template; completions gives it the bare text.
        temperature: 0 is greedy.
        seed: of the server's generator; null sends none.
        max_tokens: longest answer.
        api_key_env: name of the environment variable that holds the key. The key is written nowhere.
        timeout: seconds that one answer may take.
        retries: further attempts after what may pass: no connection, no answer in time, 429 and server errors.
        concurrency: questions asked at once.
    """
    return Judge(
        url=url.rstrip("/"),
        body={"model": model, "temperature": temperature, "max_tokens": max_tokens} | ({} if seed is None else {"seed": seed}),
        ask=lambda item: _question(filled(template, item), system, api),
        path="/chat/completions" if api == "chat" else "/completions",
        score=lambda answer: _score(answer, pattern, values or {}, divide_by),
        key=_key(api_key_env),
        timeout=timeout,
        retries=retries,
        concurrency=concurrency,
    )


class _NoAnswer(Exception):
    """No answer; says why."""


class Judge:
    """See `judge`."""

    def __init__(
        self,
        *,
        url: str,
        body: dict[str, Any],
        ask: Callable[[RewardItem], dict[str, Any]],
        path: str,
        score: Callable[[str], float],
        key: str | None,
        timeout: float,
        retries: int,
        concurrency: int,
    ) -> None:
        self._url, self._body, self._ask, self._path, self._score = url, body, ask, path, score
        self._key, self._timeout, self._retries = key, timeout, retries
        self._opener = urllib.request.build_opener(NoRedirects)
        self._threads = ThreadPoolExecutor(concurrency)
        self.seconds_per_item: float | None = timeout * (retries + 1) + LONGEST_PAUSE * retries + 1
        self.notes: list[str] = []
        self._look()

    def grade(self, items: Sequence[RewardItem]) -> list[Score]:
        return list(self._threads.map(self._grade, items))

    def _grade(self, item: RewardItem) -> Score:
        try:
            answer = self._answer({**self._body, **self._ask(item)})
        except _NoAnswer as error:
            return Score(None, one_line(str(error)))
        try:
            return Score(self._score(answer), None, answer)
        except ValueError as error:
            return Score(None, one_line(f"{error}; the judge answered: {answer}"), answer)

    def _look(self) -> None:
        """Ask the server for its models.

        Raises:
            UserError: there is no server, it refuses the key, or does not have the model.
        """
        try:
            listed = self._sent(urllib.request.Request(f"{self._url}/models"))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UserError(
                    f"{self._url}: refuses access ({error.code}); name the variable of its key in api_key_env"
                ) from None
            return  # not every server lists its models
        except (OSError, HTTPException, ValueError) as error:
            raise UserError(
                f"{self._url}: no server answers ({_reason(error)}). Start one: {VLLM_SERVER} --model MODEL"
            ) from None
        names = [str(entry.get("id")) for entry in listed.get("data") or () if isinstance(entry, dict)]
        if names and self._body["model"] not in names:
            raise UserError(f"{self._url}: has no model {self._body['model']!r}; it has {', '.join(names)[:300]}")

    def _answer(self, body: dict[str, Any]) -> str:
        """The model's answer.

        Raises:
            _Refused: there is none, after every attempt that may help.
        """
        data = json.dumps(body).encode()
        attempts = self._retries + 1
        for attempt in range(attempts):
            request = urllib.request.Request(self._url + self._path, data, {"Content-Type": "application/json"})
            wait = _pause(attempt)
            try:
                return _text(self._sent(request))
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code} {self._said(error)}"
                if error.code not in PASSING:
                    raise _NoAnswer(why) from None
                wait = max(wait, _asked_pause(error))
            except (OSError, HTTPException, ValueError) as error:
                why = _reason(error)
            if attempt < attempts - 1:
                time.sleep(wait)
        raise _NoAnswer(f"no answer after {attempts} attempt{'s'[: attempts != 1]}: {why}")

    def _sent(self, request: urllib.request.Request) -> dict[str, Any]:
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        with self._opener.open(request, timeout=self._timeout) as response:
            data = response.read(LONGEST_ANSWER + 1)
        if len(data) > LONGEST_ANSWER:
            raise ValueError(f"an answer of more than {LONGEST_ANSWER >> 20} MiB")
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("an answer that is no JSON object")
        return value

    def _said(self, error: urllib.error.HTTPError) -> str:
        """What the server says of an error, as far as it comes; a key that it repeats is left out."""
        try:
            text = error.read(2000).decode("utf-8", "replace")
        except (OSError, HTTPException) as broken:
            text = f"{error.reason} ({_reason(broken)})"
        return text.replace(self._key, "***") if self._key else text


def check(
    *,
    url: str,
    template: str,
    pattern: str,
    values: Mapping[str, float] | None = None,
    divide_by: float = 1.0,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 16,
    **_: object,
) -> None:
    """Raise for what no server could be asked with. The server itself is looked at when grading starts."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"args.url: {url!r} is no address; expected http://host:port/v1")
    if parts.username or parts.password:
        raise UserError("args.url: holds a password, and would be written down. Use api_key_env")
    if parts.query or parts.fragment:
        raise UserError("args.url: holds a query or a fragment; expected http://host:port/v1, and the key in api_key_env")
    check_template("template", template)
    compile_pattern("args.pattern", pattern)
    refuse_mistyped(None, values)
    _key(api_key_env)
    if divide_by == 0:
        raise UserError("args.divide_by: 0, expected another number")
    for name, value, least in (("timeout", timeout, 0.001), ("retries", retries, 0), ("concurrency", concurrency, 1)):
        if value < least:
            raise UserError(f"args.{name}: {value}, expected at least {least}")


def environment(*, api_key_env: str | None = None, **_: object) -> tuple[str, ...]:
    """Variables that the judge's process is given."""
    return (*_PROXIES, *([api_key_env] if api_key_env else []))


def _key(name: str | None) -> str | None:
    if name is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,80}", name):
        raise UserError("args.api_key_env: expected the name of an environment variable, such as JUDGE_API_KEY, not the key")
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"args.api_key_env: the environment has no variable {name}. Set it to the server's key")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"args.api_key_env: {name} holds characters that no HTTP header can")
    return key


def _question(text: str, system: str | None, api: str) -> dict[str, Any]:
    if api == "completions":
        return {"prompt": text}
    head = [{"role": "system", "content": system}] if system else []
    return {"messages": [*head, {"role": "user", "content": text}]}


def _text(value: dict[str, Any]) -> str:
    """The answer in a server's reply.

    Raises:
        ValueError: there is none.
    """
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if not isinstance(text, str):
        raise ValueError(f"a reply without a text: {json.dumps(value)[:200]}")
    return text.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair, a table may not


def _score(answer: str, pattern: str, values: Mapping[str, float], divide_by: float) -> float:
    """
    Raises:
        ValueError: the answer holds no score.
    """
    found = last_captured(pattern, answer)
    if found is None:
        raise ValueError(f"no match of {pattern!r}")
    if found.strip() in values:
        return float(values[found.strip()]) / divide_by
    spelled = number(found)
    if spelled is None:
        raise ValueError(f"{found[:80]!r} is no number" + (f" and none of {', '.join(values)}" if values else ""))
    return float(spelled) / divide_by


def _pause(attempt: int) -> float:
    return float(min(FIRST_PAUSE * 2**attempt, LONGEST_PAUSE))


def _asked_pause(error: urllib.error.HTTPError) -> float:
    """Seconds that the server asks to wait."""
    try:
        return min(float(error.headers.get("Retry-After") or 0), LONGEST_PAUSE)
    except ValueError:
        return 0.0


def _reason(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split()) or type(error).__name__
