"""A model behind an OpenAI-compatible server, such as vLLM's: one question, one answer, asked again where that may help."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.common.commands import VLLM_SERVER
from pipeline.common.errors import UserError
from pipeline.common.web import NoRedirects

LONGEST_ANSWER = 4 << 20
"""Bytes of a server's answer that are read."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the first retry; every further pause is twice as long, up to the longest."""
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""What may be answered otherwise next time."""
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables that a process which asks a server is given."""
Api = Literal["chat", "completions"]


class NoAnswer(Exception):
    """No answer; says why."""


class ChatServer:
    """A model on a server. Safe to use from many threads."""

    def __init__(self, *, url: str, body: dict[str, Any], api: Api, key: str | None, timeout: float, retries: int) -> None:
        """
        Args:
            url: up to and with its version: http://localhost:8000/v1.
            body: what every request has: model, temperature, max_tokens, seed.
            api: chat uses the model's chat template; completions gives it the bare text.
            key: sent with every request, and shown nowhere.
            timeout: seconds that one answer may take.
            retries: further attempts after what may pass.
        """
        self._url, self._body, self._api = url.rstrip("/"), body, api
        self._key, self._timeout, self._retries = key, timeout, retries
        self._opener = urllib.request.build_opener(NoRedirects)

    @property
    def longest_seconds(self) -> float:
        """That one answer may take, with all attempts."""
        return self._timeout * (self._retries + 1) + LONGEST_PAUSE * self._retries + 1

    def look(self) -> None:
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

    def answer(self, text: str, system: str | None = None) -> str:
        """The model's answer to a text.

        Args:
            system: system message, with api chat.

        Raises:
            NoAnswer: there is none, after every attempt that may help.
        """
        data = json.dumps({**self._body, **_question(text, system, self._api)}).encode()
        path = "/chat/completions" if self._api == "chat" else "/completions"
        attempts = self._retries + 1
        for attempt in range(attempts):
            request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"})
            wait = _pause(attempt)
            try:
                return _text(self._sent(request))
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code} {self._said(error)}"
                if error.code not in PASSING:
                    raise NoAnswer(why) from None
                wait = max(wait, _asked_pause(error))
            except (OSError, HTTPException, ValueError) as error:
                why = _reason(error)
            if attempt < attempts - 1:
                time.sleep(wait)
        raise NoAnswer(f"no answer after {attempts} attempt{'s'[: attempts != 1]}: {why}")

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


def check_server(
    url: str,
    *,
    api_key_env: str | None = None,
    timeout: float = 60.0,
    retries: int = 4,
    concurrency: int = 16,
    where: str = "args.",
) -> None:
    """Raise for what no server could be asked with. The server itself is looked at by `ChatServer.look`.

    Args:
        where: what the settings' names begin with.
    """
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        sound = False
    if not sound:
        raise UserError(f"{where}url: {url!r} is no address; expected http://host:port/v1")
    if parts.username or parts.password:
        raise UserError(f"{where}url: holds a password, and would be written down. Use api_key_env")
    if parts.query or parts.fragment:
        raise UserError(f"{where}url: holds a query or a fragment; expected http://host:port/v1, and the key in api_key_env")
    key_of(api_key_env, where)
    for name, value, least in (("timeout", timeout, 0.001), ("retries", retries, 0), ("concurrency", concurrency, 1)):
        if value < least:
            raise UserError(f"{where}{name}: {value}, expected at least {least}")


def key_of(name: str | None, where: str = "args.") -> str | None:
    """The key in a variable of the environment; None where none is named.

    Raises:
        UserError: no name of a variable, or one that holds no key.
    """
    if name is None:
        return None
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,80}", name):
        raise UserError(f"{where}api_key_env: expected the name of an environment variable, such as JUDGE_API_KEY, not the key")
    key = os.environ.get(name, "").strip()
    if not key:
        raise UserError(f"{where}api_key_env: the environment has no variable {name}. Set it to the server's key")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"{where}api_key_env: {name} holds characters that no HTTP header can")
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
