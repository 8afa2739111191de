"""A message when a run stops, fails or ends: to an address, and to a command. One that cannot be delivered ends nothing."""

from __future__ import annotations

import base64
import http.client
import json
import os
import shlex
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pipeline.common.errors import as_answer
from pipeline.common.text import percent, visible
from pipeline.common.web import NoRedirects
from pipeline.config.run import RunConfig
from pipeline.config.tell import VARIABLE, TellConfig
from pipeline.run.state import Run
from pipeline.run.stopping import best_of, pass_at_1

Occasion = Literal["stopped", "failed", "finished"]
Warn = Callable[[str], None]
"""Told why a message could not be delivered."""
LONGEST = 2000
"""Characters of a reason."""


class _Undeliverable(Exception):
    """Why a message could not be delivered. It holds no address."""


@contextmanager
def telling_of_failure(config: RunConfig, warn: Warn) -> Iterator[None]:
    """Tell whoever is to be told where the work inside fails. Ctrl-C and SIGTERM are no failures."""
    try:
        yield
    except Exception as error:
        why = str(as_answer(error) or error) or type(error).__name__
        tell(config, message(config, "failed", f"failed: {why}"), warn)
        raise


def tell_of_end(run: Run, warn: Warn) -> None:
    """Tell whoever is to be told that a rule stopped the run, or that it is complete. Says nothing of one that goes on."""
    if run.stopped is not None:
        why = f"stopped after iteration {run.stopped.iteration}: {run.stopped.why}"
        tell(run.config, message(run.config, "stopped", why, run), warn)
    elif run.missing is None:
        tell(run.config, message(run.config, "finished", "finished", run), warn)


def message(config: RunConfig, occasion: Occasion, why: str, run: Run | None = None) -> dict[str, Any]:
    """What is told: a text for people, and its parts for machines."""
    last = next((step for step in reversed(run.iterations) if step.evaluation), None) if run else None
    best = best_of(run) if run else None
    figures = [
        *([f"pass@1 {percent(pass_at_1(last))} (iteration {last.iteration})"] if last else []),
        *([f"best {percent(pass_at_1(best))} (iteration {best.iteration})"] if best and best is not last else []),
    ]
    why = visible(why)[:LONGEST]
    return {
        "text": "\n".join([f"rollbook, {config.name}: {why}", *([", ".join(figures)] if figures else []), _place(config)]),
        "event": occasion,
        "run": config.name,
        "why": why,
        "rule": run.stopped.rule if run and run.stopped else None,
        "iteration": last.iteration if last else None,
        "pass_at_1": pass_at_1(last) if last else None,
        "directory": str(config.directory.absolute()),
        "host": socket.gethostname(),
    }


def _place(config: RunConfig) -> str:
    return f"{socket.gethostname()}: {config.directory.absolute()}"


def tell(config: RunConfig, told: dict[str, Any], warn: Warn) -> None:
    """Deliver a message, where the run's settings ask for messages on such an occasion."""
    settings = config.tell
    if told["event"] not in settings.on:
        return
    for name, given, deliver in (("url", settings.url, _post), ("command", settings.command, _give)):
        if given is None:
            continue
        try:
            deliver(settings, told)
        except _Undeliverable as reason:
            warn(f"tell.{name}: the message was not delivered: {reason}")


def _post(settings: TellConfig, told: dict[str, Any]) -> None:
    url, headers = _without_password(_filled(settings.url or ""))
    body = told if settings.payload == "full" else {settings.payload: told["text"]}
    opener = urllib.request.build_opener(NoRedirects)
    try:
        request = urllib.request.Request(
            url, json.dumps(body).encode(), {"Content-Type": "application/json", "User-Agent": "rollbook", **headers}
        )
        opener.open(request, timeout=settings.timeout_seconds).close()
    except urllib.error.HTTPError as error:
        error.close()
        raise _Undeliverable(f"the answer was {error.code} {http.client.responses.get(error.code, '')}".rstrip()) from None
    except TimeoutError:
        raise _Undeliverable(f"no answer within {settings.timeout_seconds:g} s") from None
    except urllib.error.URLError as error:
        reason = error.reason if isinstance(error.reason, OSError) else None
        raise _Undeliverable(reason.strerror or type(reason).__name__ if reason else "no connection") from None
    except (OSError, ValueError, http.client.HTTPException) as error:  # their words may hold the address
        raise _Undeliverable(type(error).__name__) from None


def _filled(url: str) -> str:
    """An address with its variables' values.

    Raises:
        _Undeliverable: the environment lacks one, or it holds no address.
    """
    for name in VARIABLE.findall(url):
        if not os.environ.get(name):
            raise _Undeliverable(f"the environment has no variable {name}")
    url = VARIABLE.sub(lambda found: os.environ[found[1]].strip(), url)
    if not url.startswith(("http://", "https://")):
        raise _Undeliverable("what its variables hold is no address that begins with https:// or http://")
    return url


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """An address without user and password, and the header that takes their place."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _Undeliverable("what its variables hold is no address") from None
    if parts.username is None:
        return url, {}
    both = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urlunsplit(bare), {"Authorization": f"Basic {base64.b64encode(both).decode()}"}


def _give(settings: TellConfig, told: dict[str, Any]) -> None:
    command = shlex.split(settings.command or "")
    try:
        ended = subprocess.run(
            command, input=told["text"] + "\n", text=True, capture_output=True, timeout=settings.timeout_seconds, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise _Undeliverable(f"{command[0]} did not end within {settings.timeout_seconds:g} s") from None
    except OSError as error:
        raise _Undeliverable(f"{command[0]}: {error.strerror}") from None
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [""])[-1][:200]
        raise _Undeliverable(f"{command[0]} ended with status {ended.returncode}" + (f": {visible(last)}" if last else ""))
