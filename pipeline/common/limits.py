"""A limit of time for code of the user's that runs in this process."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pipeline.common.errors import UserError


@contextmanager
def within(seconds: float, late: str) -> Iterator[None]:
    """Refuse a block that takes longer. In the main thread alone: elsewhere no code can be interrupted.

    Raises:
        UserError: `late`, from within the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def refuse(number: int, frame: FrameType | None) -> None:
        raise UserError(late)

    before, since = signal.signal(signal.SIGALRM, refuse), time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - since), 0.001), interval)
