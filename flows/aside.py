"""What libraries print goes elsewhere for a while, and what we say does not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.run.process import log_to


@contextmanager
def aside(log: Path) -> Iterator[Callable[[str], None]]:
    """Have all that this process and those that it starts print go to a file. Yields what still prints to standard error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handles = [os.dup(1), os.dup(2)]

    def say(line: str) -> None:
        os.write(handles[1], f"{line}\n".encode(errors="replace"))

    try:
        log_to(str(log))
        yield say
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, handle in enumerate(handles, start=1):
            os.dup2(handle, number)
            os.close(handle)
