"""The caller's end of a process of ours: JSON lines go in, events come out, and all else that it says goes to a log."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.common import errors
from pipeline.common.errors import StageCrashed, StageFailed, UserError, writing

Event = dict[str, Any]
STOP_SECONDS = 8.0
"""How long a child may take to end after it was asked to."""
POLL_MILLISECONDS = 500
"""How long a signal that comes just before a wait can go unseen."""


class Child:
    """`python -m module` in a session of its own. It and what it started are gone once it ends, or the caller does."""

    def __init__(self, module: str, log: Path, environment: Mapping[str, str]) -> None:
        """Start it.

        Args:
            log: file that its output is appended to until it is told another.
            environment: variables added to this process's own.
        """
        self.module = module
        self._log = self._early = log, _touched(log)
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        threading.Thread(target=_end_group_with, args=(self._child,), daemon=True).start()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def output(self) -> int:
        """The pipe that its events come through."""
        assert self._child.stdout
        return self._child.stdout.fileno()

    @property
    def is_alive(self) -> bool:
        return self._child.poll() is None

    def logs_to(self, log: Path) -> None:
        """Its words of an end are looked for in another log from now on; if there are none, where it began.

        Raises:
            StageFailed: it cannot be written.
        """
        self._log = log, _touched(log)

    def settled(self) -> None:
        """It came as far as its work: what it said before that explains no end."""
        self._early = self._log

    def tell(self, message: Event) -> None:
        """Give it a message. One that has ended is not told."""
        assert self._child.stdin
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(message).encode() + b"\n")
            self._child.stdin.flush()

    def events(self) -> Iterator[Event]:
        """What it says, as it comes, to its end."""
        for line in _lines(self.output):
            if (event := _event(line)) is not None:
                yield event

    def error(self, event: Event) -> UserError:
        """Its last word as the error that it raised. Waits for its end."""
        self._child.wait()
        kind: type[UserError] = getattr(errors, event["kind"], StageFailed)
        return kind(event["message"])

    def crash(self) -> StageFailed:
        """What to say of one that ended without a last word, with the end of its log. Waits for its end."""
        code = self._child.wait()
        ends = [(place[0], _end_of(*place)) for place in (self._log, self._early)]
        log, end = next((place for place in ends if place[1]), ends[0])
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        memory = " (out of memory, perhaps)" if code == -signal.SIGKILL else ""
        kind = StageCrashed if code < 0 else StageFailed
        return kind(
            f"{self.module} {how}{memory}. What it had finished is kept; the same command goes on from there. Log: {log}\n{end}"
        )

    def stop(self) -> None:
        """Make sure that the child and its own children are gone. What it said can still be read."""
        assert self._child.stdin
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.close()
        if self.is_alive:
            _signal_group(self._child, signal.SIGTERM)
            try:
                self._child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                _signal_group(self._child, signal.SIGKILL)
                self._child.wait()

    def end(self) -> None:
        """As `stop`, and nobody reads what it said."""
        self.stop()
        assert self._child.stdout
        self._child.stdout.close()


def _touched(log: Path) -> int:
    """Make sure that a log is there. Returns its size.

    Raises:
        StageFailed: it cannot be written.
    """
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        return log.stat().st_size


def _lines(pipe: int) -> Iterator[bytes]:
    """Lines of a pipe, to its end. Ctrl-C ends the wait: Polars has the kernel restart a read after SIGINT, but not a poll."""
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    rest = b""
    while True:
        while not ready.poll(POLL_MILLISECONDS):
            pass
        data = os.read(pipe, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    yield rest


def _event(line: bytes) -> Event | None:
    """An event; None for what is none: a library's print while it is imported, half a line of a child that was killed."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None


def _end_group_with(child: subprocess.Popen[bytes]) -> None:
    """Once the child has ended, end what it left running: it holds memory, and the pipe that the caller reads."""
    child.wait()
    _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _end_of(log: Path, start: int, lines: int = 15) -> str:
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])
