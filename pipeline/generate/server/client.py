"""Talks to vLLM servers over HTTP: tries again with growing pauses what may pass, and tells what will not from what may."""

from __future__ import annotations

import http.client
import json
import math
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from email.message import Message
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.web import NoRedirects
from pipeline.config.server import ServerConfig

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses of an answer that may be another one a little later."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
"""Seconds between tries: doubled each time, with a random half taken off so that many clients do not come back together."""
LONGEST_ANSWER = 256 << 20
"""Bytes."""
SHOWN = 300
"""Characters of a server's message that are repeated."""


class ServerRefused(Exception):
    """A server's final answer is that it will not do this."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status = status


class Unanswered(Exception):
    """No server gave an answer, however often it was asked; the message is the last failure."""


class Client:
    """Replicas of one server. Safe to use from many threads.

    Args:
        config: where they are, and how patient to be.
    """

    def __init__(self, config: ServerConfig) -> None:
        """
        Raises:
            UserError: the variable that holds the key is not set.
        """
        self.urls = config.url
        self._config = config
        self._key = _key_of(config)
        self._opener = urllib.request.build_opener(NoRedirects)
        self._closed = threading.Event()

    def close(self) -> None:
        """Let whoever waits for another try give up."""
        self._closed.set()

    def ask(self, urls: Sequence[str], path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """A server's answer.

        Args:
            urls: each try goes to the next of them.
            body: what is posted; without one the path is read.

        Raises:
            ServerRefused: the answer is final, and no.
            Unanswered: none of the tries came to an answer.
        """
        return self._persist(urls, path, None if body is None else json.dumps(body).encode())

    def is_well(self) -> bool:
        """Whether any of the servers says that it can work."""
        return any(self._healthy(url) for url in self.urls)

    def _healthy(self, url: str) -> bool:
        try:
            with self._open(url, "/health", None, seconds=5.0):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def _persist(self, urls: Sequence[str], path: str, body: bytes | None) -> dict[str, Any]:
        problem, pause = "", 0.0
        for number in range(self._config.attempts):
            if number and self._closed.wait(pause):
                break
            url = urls[number % len(urls)]
            pause = min(FIRST_PAUSE * 2**number, LONGEST_PAUSE) * random.uniform(0.5, 1.0)
            try:
                with self._open(url, path, body, self._config.timeout_seconds) as answer:
                    return _object(answer.read(LONGEST_ANSWER + 1))
            except urllib.error.HTTPError as error:
                said = self._hidden(_told(error))
                problem = f"{url}{path}: status {error.code}: {said}"
                if error.code not in PASSING:
                    raise ServerRefused(error.code, said) from None
                pause = max(pause, _asked_to_wait(error.headers))
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                problem = f"{url}{path}: {str(reason) or type(reason).__name__}"
        raise Unanswered(self._hidden(problem))

    def _open(self, url: str, path: str, body: bytes | None, seconds: float) -> Any:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return self._opener.open(urllib.request.Request(url + path, body, headers), timeout=seconds)

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _key_of(config: ServerConfig) -> str | None:
    if config.key_variable is None:
        return None
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise UserError(f"engine.server.key_variable: the environment has no {config.key_variable}. Export the servers' API key")
    if not key.isascii() or not key.isprintable():
        raise UserError(f"engine.server.key_variable: {config.key_variable} holds characters that no HTTP header can")
    return key


def _object(data: bytes) -> dict[str, Any]:
    """
    Raises:
        ValueError: not a JSON object of bearable size.
    """
    if len(data) > LONGEST_ANSWER:
        raise ValueError(f"an answer of more than {LONGEST_ANSWER:,} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("the answer is not JSON; is it a vLLM server?") from None
    if not isinstance(value, dict):
        raise ValueError("the answer is no JSON object; is it a vLLM server?")
    return value


def _told(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(1 << 16).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        text = ""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, RecursionError, AttributeError):
        pass
    return " ".join(text.split())[:SHOWN] or str(error.reason)


def _asked_to_wait(headers: Message) -> float:
    """Seconds that the server asks for, as far as they are bearable."""
    try:
        seconds = float(headers.get("Retry-After", "0"))
    except ValueError:  # a date
        return 0.0
    return min(max(seconds, 0.0), 2 * LONGEST_PAUSE) if math.isfinite(seconds) else 0.0
