"""The pool's end of one worker: start it, write items, read replies, end it."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from pipeline.common.lines import decode, encode, one_line
from pipeline.common.workers import worker_environment

STARTUP_SECONDS = 120.0
"""How long a worker may take to import its graders."""
EXIT_SECONDS = 5.0
"""How long a worker may take to end once it was told to."""
TAIL_BYTES = 2000
"""How much of what a worker printed is kept for error messages."""

_READ_BYTES = 1 << 16


class Closing(Exception):
    """The pool is being closed while a worker was waited for."""


class TimedOut(Exception):
    """No reply in time."""


class Ended(Exception):
    """The worker is gone, or no longer speaks the protocol."""


class GraderRefused(Exception):
    """The worker started, and a grader cannot be used as it is configured; the message says why."""


def _open_environment() -> dict[str, str]:
    """Variables of a worker that hides no device and leaves the number of threads to its grader."""
    closed = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {name: value for name, value in worker_environment().items() if name not in closed}


class WorkerProcess:
    """One worker, ready to grade once `start` returned. Used by one thread, which must outlive it.

    The thread matters: Linux tells a worker of its parent's end when the thread that started it ends.
    """

    def __init__(
        self,
        start_message: Mapping[str, Any],
        wake_fd: int,
        *,
        show_output: bool,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it.

        Args:
            start_message: see `pipeline.rewards.protocol`.
            wake_fd: readable once the pool closes.
            environment: more variables, for a grader that takes completions in batches; it sees the devices.
        """
        self.fresh = True
        """Whether no item has been graded in it."""
        self._wake_fd = wake_fd
        self._show_output = show_output
        self._outbox = memoryview(b"")
        self._partial = b""
        self._lines: deque[bytes] = deque()
        self._tail = b""
        self._eof = False
        self._memory_mib = start_message["memory_mib"]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pipeline.rewards.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd=start_message["directory"],
            env=worker_environment() if environment is None else {**_open_environment(), **environment},
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin = self._process.stdin.fileno()
        self._stdout = self._process.stdout.fileno()
        self._stderr = self._process.stderr.fileno()
        self._poll = select.poll()
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        for fd in (self._stdout, self._stderr, wake_fd):
            self._poll.register(fd, select.POLLIN)
        self.send(encode(start_message))

    def wait_until_ready(self, seconds: float | None = None) -> dict[str, Any]:
        """Wait for the worker's imports. Returns what it said when it was ready.

        Args:
            seconds: longest wait; default `STARTUP_SECONDS`.

        Raises:
            GraderRefused: a grader cannot be found, called or prepared.
            Ended, TimedOut, Closing: it did not come up.
        """
        reply = self.receive(time.monotonic() + (seconds or STARTUP_SECONDS))
        if "refused" in reply:
            raise GraderRefused(reply["refused"])
        return reply

    @property
    def alive(self) -> bool:
        return not self._eof and self._process.poll() is None

    def send(self, lines: bytes) -> None:
        """Queue items; they are written while replies are waited for, so that neither side waits for the other."""
        self._outbox = memoryview(bytes(self._outbox) + lines)
        self._write()

    def receive(self, deadline: float) -> dict[str, Any]:
        """The next reply.

        Args:
            deadline: a time of `time.monotonic()`.

        Raises:
            TimedOut: the deadline passed, and no reply had come by then.
            Ended: the worker's end of the pipe is closed, or it wrote something else.
            Closing: the pool woke us.
        """
        while not self._lines:
            if self._eof:
                raise Ended
            remaining = deadline - time.monotonic()
            self._turn(max(0.0, remaining))
            if remaining <= 0 and not self._lines and not self._eof:
                raise TimedOut
        try:
            reply = decode(self._lines.popleft())
        except (ValueError, RecursionError):
            raise Ended from None
        if not isinstance(reply, dict):
            raise Ended
        return reply

    def end(self) -> str:
        """End the worker and every process below it. Returns how it ended, in words, with what it printed last.

        A worker that is ending by itself is given a moment, so that the words are its own.
        """
        if self._eof:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(EXIT_SECONDS)
        told = self._process.poll() is None
        if told:
            self.kill()
        while self._drain():
            pass
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        lines = self._tail.decode("utf-8", "replace").strip().splitlines()
        printed = f"; it printed last: {one_line(lines[-1])[:200]}" if lines else ""
        if told:
            return "worker broke the connection and was stopped" + printed
        return self._status_in_words() + printed

    def kill(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _turn(self, seconds: float) -> None:
        """Wait until there is something to read or write, at most so long, and do it."""
        for fd, _ in self._poll.poll(min(seconds, 3600.0) * 1000):
            if fd == self._wake_fd:
                raise Closing
            if fd == self._stdin:
                self._write()
            elif fd == self._stdout:
                self._read()
            elif not self._drain():
                self._poll.unregister(fd)

    def _read(self) -> None:
        data = os.read(self._stdout, _READ_BYTES)
        self._eof = not data
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._lines.extend(lines)

    def _write(self) -> None:
        try:
            while self._outbox:
                self._outbox = self._outbox[os.write(self._stdin, self._outbox) :]
        except BlockingIOError:
            self._poll.register(self._stdin, select.POLLOUT)
            return
        except BrokenPipeError:  # the worker is gone; its end of the other pipe says so to the reader
            self._outbox = memoryview(b"")
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._stdin)

    def _drain(self) -> bool:
        """Read what the worker printed; False at its end, or when nothing is there."""
        try:
            data = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return False
        if self._show_output and data:
            os.write(2, data)
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        return bool(data)

    def _status_in_words(self) -> str:
        status = self._process.returncode
        if status >= 0:
            return f"worker ended with exit status {status}"
        names = {number.value: f" {number.name}" for number in signal.Signals}
        limit = f" (memory limit {self._memory_mib} MiB?)" if self._memory_mib else ""
        return f"worker ended with signal {-status}{names.get(-status, '')}{limit}"
