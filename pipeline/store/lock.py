"""One writer at a time. The lock names its holder and is released by the kernel when that process dies."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pipeline.common.errors import writing


def say(message: str) -> None:
    """Tell the user on standard error."""
    print(message, file=sys.stderr, flush=True)


class Lock:
    """An exclusive lock on a file. Waits while another process holds it, saying once who that is.

    Raises:
        StageFailed: the file cannot be made.
    """

    def __init__(self, path: Path, poll_seconds: float = 0.2, notify: Callable[[str], None] = say) -> None:
        self.path = path
        self.poll_seconds = poll_seconds
        self._notify = notify
        self._handle: int | None = None

    def __enter__(self) -> Lock:
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                try:
                    self._take()
                except BaseException:
                    self._release()
                    raise
                if self._is_there():
                    return self
                self._release()

    def _is_there(self) -> bool:
        """Whether the file was not removed (`rollbook gc`) while this process waited: another would lock a new one."""
        assert self._handle is not None
        try:
            return os.path.samestat(os.fstat(self._handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _take(self) -> None:
        assert self._handle is not None
        told = False
        while not self._taken():
            if not told:
                self._notify(f"waiting for {self.path.stem}, held by {self._holder()}")
                told = True
            time.sleep(self.poll_seconds)
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, holder.encode(), 0)

    def _taken(self) -> bool:
        assert self._handle is not None
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> str:
        assert self._handle is not None
        try:
            holder = json.loads(os.pread(self._handle, 4096, 0))
            return f"process {holder['pid']} on {holder['host']}"
        except (ValueError, KeyError):
            return "another process"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._release()

    def _release(self) -> None:
        assert self._handle is not None
        os.close(self._handle)
        self._handle = None


def is_held(path: Path) -> bool:
    """Whether a process holds the lock on a file; a file that is not there is held by none."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
