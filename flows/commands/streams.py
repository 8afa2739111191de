"""Output whose reader may go away (`rollbook run | head -1`) or read slowly: neither ends the work."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TextIO

from typing_extensions import Buffer


class _Pipe(io.FileIO):
    """A file that throws away what nobody reads any more, and waits for a reader that is slow."""

    def write(self, data: Buffer, /) -> int:
        try:
            written = super().write(data)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes
        if written is None:  # a pipe that is full and does not block
            select.select([], [self.fileno()], [])
            return 0
        return written


def outlive_readers() -> None:
    """From now on, a closed pipe at standard output or standard error is no error, nor is having none."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:  # closed by the caller; any file opened next would take its number
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _outliving(sys.stdout)
    sys.stderr = _outliving(sys.stderr)


def _outliving(stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    try:
        handle = stream.fileno()
    except (OSError, AttributeError, ValueError):
        return stream
    stream.flush()
    file = io.BufferedWriter(_Pipe(handle, "w", closefd=False))
    unbuffered = stream is sys.stderr or stream.isatty()
    errors = "backslashreplace" if stream.errors == "strict" else stream.errors  # an old locale is no reason to end
    return io.TextIOWrapper(file, encoding=stream.encoding, errors=errors, line_buffering=unbuffered)
