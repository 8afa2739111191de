"""A limit of time for code in this process: it ends a wait, and leaves alarms of others as they were."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from pipeline.common.errors import UserError
from pipeline.common.limits import within


def test_what_takes_longer_is_refused_and_what_does_not_is_let_be() -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match="too late"), within(0.05, "too late"):
        time.sleep(30)
    assert time.monotonic() - started < 10
    with within(30, "too late"):
        pass
    time.sleep(0.06)


def test_an_alarm_of_somebody_else_goes_on() -> None:
    before, _ = signal.getitimer(signal.ITIMER_REAL)
    handler = signal.getsignal(signal.SIGALRM)
    signal.setitimer(signal.ITIMER_REAL, 500)
    try:
        with within(30, "too late"):
            assert signal.getitimer(signal.ITIMER_REAL)[0] <= 30
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
        assert signal.getsignal(signal.SIGALRM) is handler
    finally:
        signal.setitimer(signal.ITIMER_REAL, before)


def test_other_threads_have_no_limit() -> None:
    ended: list[str] = []

    def wait() -> None:
        with within(0.01, "too late"):
            time.sleep(0.05)
        ended.append("well")

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert ended == ["well"]
