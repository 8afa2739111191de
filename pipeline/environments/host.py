"""The other end of environments: hands episodes to processes, waits for what they say, and ends those that take too long."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from pipeline.common.errors import StageFailed, UserError
from pipeline.common.lines import decode, encode
from pipeline.common.workers import worker_environment
from pipeline.environments.protocol import MOST_CHARACTERS, Observation
from pipeline.environments.serve import PACKET

if TYPE_CHECKING:
    from pipeline.config.environment import EnvironmentConfig

START_SECONDS = 300.0
"""How long loading an environment may take."""
LONGEST_LINE = 8 * MOST_CHARACTERS
"""Bytes of an observation as a worker says it."""
_READ_BYTES = 1 << 18

Key: TypeAlias = tuple[int, int, int]
"""Of an episode: job, group and sample."""


@dataclass(eq=False)
class _Seat:
    """A process, and the episode that it plays."""

    pid: int
    channel: socket.socket
    key: Key | None = None
    deadline: float = float("inf")
    """When it must have answered; of `time.monotonic()`."""
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    """Bytes of `parts`."""
    outbox: bytes = b""
    retired: bool = False
    """It left processes behind, so no other episode is played in it."""


class Host:
    """Plays episodes: a context manager. A thread of its own talks to their processes.

    Args:
        config: the environment, and its limits.
        on_answer: called from that thread after each answer is put into `answers`.
        model: directory of the policy, for environments that read its calls.
    """

    def __init__(
        self, config: EnvironmentConfig, on_answer: Callable[[], None] = lambda: None, model: Path | None = None
    ) -> None:
        self._config, self.on_answer, self._model = config, on_answer, model
        self.answers: SimpleQueue[tuple[Key, Observation]] = SimpleQueue()
        """What environments said to each start and each step."""
        self.reads_special_tokens = False
        """Whether special tokens are part of the actions that it is given."""
        self._orders: SimpleQueue[tuple[str, Key, bytes]] = SimpleQueue()
        self._seats: dict[Key, _Seat] = {}
        self._idle: deque[_Seat] = deque()
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="environments", daemon=True)

    def __enter__(self) -> Host:
        """Load the environment.

        Raises:
            UserError: it cannot be found or made.
            StageFailed: its process ends, or is not ready in time.
        """
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._server = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.environments.serve", str(os.getpid())],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            env=worker_environment(),
            start_new_session=True,
        )
        theirs.close()
        told = {"name": self._config.name, "args": self._config.given, "memory_mib": self._config.memory_mib}
        told["model"] = None if self._model is None else str(self._model)
        try:
            self._control.settimeout(START_SECONDS)
            self._control.send(encode({**told, "directory": os.getcwd()}))
            said = decode(self._control.recv(PACKET) or b"{}")
        except (OSError, ValueError) as error:
            self._close()
            raise StageFailed(f"environment: {self._config.name} was not ready within {START_SECONDS:g} s: {error}") from None
        if "refused" in said or "ready" not in said:
            self._close()
            raise UserError(f"environment: {said.get('refused', 'its process ended while it was loaded')}")
        self.reads_special_tokens = bool(said["special"])
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._order("close", (0, 0, 0))
        self._thread.join()
        self._close()

    def start(self, key: Key, prompt: Mapping[str, Any], seed: int) -> None:
        """Begin an episode. What it says comes with `answers`."""
        self._order("say", key, encode({"prompt": prompt, "seed": seed}))

    def step(self, key: Key, action: str) -> None:
        """Give an episode what the policy said."""
        self._order("say", key, encode({"action": action}))

    def end(self, key: Key) -> None:
        """An episode is over; its process may play another."""
        self._order("end", key)

    def refuse_dead(self) -> None:
        """
        Raises:
            StageFailed: processes can no longer be had.
        """
        if self._error is not None:
            raise StageFailed(f"environment: {type(self._error).__name__}: {self._error}") from self._error

    def _order(self, what: str, key: Key, line: bytes = b"") -> None:
        self._orders.put((what, key, line))
        with contextlib.suppress(OSError):
            self._wake.send(b"x")

    def _close(self) -> None:
        self._control.close()
        self._server.terminate()
        self._server.wait()
        for end in (self._wake, self._woken):
            end.close()

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._error = error
            self.on_answer()

    def _turn(self) -> bool:
        """Take orders and hear what was said, or wait for either. False when the host closes."""
        nearest = min((seat.deadline for seat in self._seats.values()), default=float("inf"))
        wait = None if nearest == float("inf") else max(nearest - time.monotonic(), 0.0)
        for ready, events in self._selector.select(wait):
            seat = ready.data
            if seat is None:
                with contextlib.suppress(BlockingIOError):
                    while self._woken.recv(4096):
                        pass
                continue
            if events & selectors.EVENT_WRITE:
                self._write(seat)
            if events & selectors.EVENT_READ and seat.pid:
                self._read(seat)
        now = time.monotonic()
        for seat in [seat for seat in self._seats.values() if seat.deadline < now]:
            self._fail(seat, f"no answer within {self._config.timeout_seconds:g} s")
        with contextlib.suppress(Empty):
            while True:
                what, key, line = self._orders.get_nowait()
                if what == "close":
                    return False
                self._obey(what, key, line)
        return True

    def _obey(self, what: str, key: Key, line: bytes) -> None:
        seat = self._seats.get(key)
        if what == "end":
            if seat is not None:
                self._release(seat)
            return
        if seat is None:
            seat = self._seats[key] = self._idle.popleft() if self._idle else self._seat()
            seat.key = key
        seat.deadline = time.monotonic() + self._config.timeout_seconds
        seat.outbox += line
        self._write(seat)

    def _asked(self, message: Mapping[str, Any], handed: list[int]) -> dict[str, Any]:
        socket.send_fds(self._control, [encode(message)], handed)
        reply: dict[str, Any] = decode(self._control.recv(PACKET))
        return reply

    def _seat(self) -> _Seat:
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._asked({"fork": True}, [theirs.fileno()])["pid"]
        ours.setblocking(False)
        seat = _Seat(pid, ours)
        self._selector.register(ours, selectors.EVENT_READ, seat)
        return seat

    def _release(self, seat: _Seat) -> None:
        assert seat.key is not None
        del self._seats[seat.key]
        if seat.retired or seat.deadline != float("inf"):
            self._end(seat)
        else:
            seat.key = None
            self._idle.append(seat)

    def _end(self, seat: _Seat, *, gone: bool = False) -> str:
        """End a process, or what it left if it is gone. Returns how it ended, in words."""
        self._selector.unregister(seat.channel)
        seat.channel.close()
        pid, seat.pid = seat.pid, 0
        how: str = self._asked({"end": pid, "gone": gone}, [])["ended"]
        return how

    def _fail(self, seat: _Seat, why: str) -> None:
        """End a process that cannot go on, and tell whose episode it was."""
        self._end(seat)
        if seat.key is None:
            self._idle.remove(seat)
            return
        del self._seats[seat.key]
        self._tell(seat.key, Observation(error=why))

    def _tell(self, key: Key, said: Observation) -> None:
        self.answers.put((key, said))
        self.on_answer()

    def _write(self, seat: _Seat) -> None:
        try:
            while seat.outbox:
                seat.outbox = seat.outbox[seat.channel.send(seat.outbox) :]
        except BlockingIOError:
            self._selector.modify(seat.channel, selectors.EVENT_READ | selectors.EVENT_WRITE, seat)
            return
        except OSError:  # it is gone; its end says so to the reader
            seat.outbox = b""
        self._selector.modify(seat.channel, selectors.EVENT_READ, seat)

    def _read(self, seat: _Seat) -> None:
        try:
            data = seat.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost(seat)
            return
        seat.parts.append(data)
        seat.size += len(data)
        if seat.size > LONGEST_LINE:
            self._fail(seat, f"it said more than {LONGEST_LINE:,} bytes at once")
        elif data.endswith(b"\n"):
            line, seat.parts, seat.size = b"".join(seat.parts), [], 0
            self._hear(seat, line)

    def _lost(self, seat: _Seat) -> None:
        """Its process is gone."""
        how = self._end(seat, gone=True)
        if seat.key is None:
            self._idle.remove(seat)
            return
        del self._seats[seat.key]
        self._tell(seat.key, Observation(error=how))

    def _hear(self, seat: _Seat, line: bytes) -> None:
        try:
            reply = decode(line)
            said = Observation.from_json(reply)
        except (ValueError, TypeError, KeyError, RecursionError):
            self._fail(seat, "its process broke the connection")
            return
        seat.retired = seat.retired or bool(reply.get("left")) or said.error is not None
        seat.deadline = float("inf")
        if seat.key is not None:
            self._tell(seat.key, said)
