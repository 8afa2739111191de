"""Whatever ends a run in whatever stage: nothing is left running, nothing finished is lost, and the same command goes on.

Each test takes a finished run, removes what one stage made, has the command make it again, and ends it on the way. In the
end the store must hold the same artifacts as before, with the same ids.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.run.record import load_run

pytestmark = pytest.mark.slow

Ids = Callable[[Path], dict[str, str]]
ATTEMPTS = 5
"""A short stage can be over before it is killed; then it is tried again."""
OFTEN = 0.001
"""How often a short stage is looked at, seconds."""


@pytest.fixture
def without(finished: Any, tmp_path: Path) -> Callable[..., Path]:
    """without(*stages): a copy of the finished run that lacks what these stages of iteration 0 made."""
    return lambda *stages: finished.without(tmp_path / "run", *stages)


def kill_when(rollbook: Any, arguments: tuple[Any, ...], happened: Callable[[], Any], **pace: float) -> None:
    """SIGKILL for the command alone: its children must see to their own end."""
    started = rollbook.start(*arguments)
    started.until(happened, **pace)
    started.process.kill()
    ended = started.wait()
    assert ended.status == -signal.SIGKILL
    assert started.left_over() == {}


def goes_on(rollbook: Any, finished: Any, run: Path, ids: Ids) -> None:
    """The same command ends well, with the artifacts of the unbroken run."""
    ended = rollbook(*finished.again(run))
    assert ended.status == 0, ended.err
    assert ids(run) == ids(finished.directory)
    assert not list((run / "artifacts").rglob(".resume"))
    assert not list((run / "artifacts").rglob(".tmp-*"))


def test_killed_while_generating(rollbook: Any, finished: Any, without: Callable[..., Path], ids: Ids) -> None:
    run = without("generate")
    kill_when(rollbook, finished.again(run), lambda: finished.unfinished(run, "rollouts/*/part-*.parquet"))
    kept = {path: path.stat().st_mtime_ns for path in finished.unfinished(run, "rollouts/*/part-*.parquet")}
    assert 1 <= len(kept) < 4 + 8 + 8
    goes_on(rollbook, finished, run, ids)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.parametrize(("stage", "kind"), [("evaluate", "evaluation"), ("shape", "shaped")])
def test_killed_in_a_short_stage(
    rollbook: Any, finished: Any, without: Callable[..., Path], ids: Ids, stage: str, kind: str
) -> None:
    for _ in range(ATTEMPTS):
        run = without(stage)
        written = partial(finished.unfinished, run, f"{kind}/*/*.parquet")
        kill_when(rollbook, finished.again(run), written, pace=OFTEN)
        if written():
            break
    assert written()
    goes_on(rollbook, finished, run, ids)


def test_killed_while_training(rollbook: Any, finished: Any, without: Callable[..., Path], ids: Ids) -> None:
    run = without("train")
    kill_when(rollbook, finished.again(run), lambda: finished.unfinished(run, "checkpoint/*/.resume/step-00000002"))
    *_, point = finished.unfinished(run, "checkpoint/*/.resume/step-*")  # two, if the older one was just to be removed
    before = pl.read_parquet(point / "timing.parquet")
    assert 2 <= len(before) < 16
    goes_on(rollbook, finished, run, ids)
    checkpoint = load_run(run).iterations[0].checkpoint
    assert checkpoint
    after = pl.read_parquet(checkpoint.path / "timing.parquet")
    assert len(after) == 16
    assert after.head(len(before)).equals(before)


def test_a_crashed_stage_is_tried_once_more(rollbook: Any, finished: Any, without: Callable[..., Path], ids: Ids) -> None:
    run = without("train")

    def steps() -> list[Path]:
        return finished.unfinished(run, "checkpoint/*/.resume/step-*")

    def crash(started: Any, number: signal.Signals) -> None:
        """End the training process as soon as it has gone one step further."""
        before = steps()
        started.until(lambda: steps() > before)
        (child,) = (pid for pid, line in started.processes().items() if "pipeline.train" in line)
        os.kill(child, number)
        started.until(lambda: child not in started.processes())

    started = rollbook.start(*finished.again(run))
    crash(started, signal.SIGKILL)
    crash(started, signal.SIGKILL)
    twice = started.wait()
    assert twice.status == 1
    assert "Traceback" not in twice.err
    assert "pipeline.train was ended by SIGKILL (out of memory, perhaps)" in twice.err
    assert "the same command goes on from there" in twice.err

    started = rollbook.start(*finished.again(run))
    crash(started, signal.SIGSEGV)
    once = started.wait()
    assert once.status == 0, once.err
    assert ids(run) == ids(finished.directory)


def test_stopped_by_ctrl_c_and_by_sigterm(rollbook: Any, finished: Any, without: Callable[..., Path], ids: Ids) -> None:
    run = without("generate")

    def stop(number: signal.Signals, shards: int) -> Any:
        started = rollbook.start(*finished.again(run))
        started.until(lambda: len(finished.unfinished(run, "rollouts/*/part-*.parquet")) >= shards)
        started.process.send_signal(number)
        ended = started.wait(timeout=10)
        assert started.left_over() == {}
        return ended

    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        ended = stop(number, len(finished.unfinished(run, "rollouts/*/part-*.parquet")) + 1)
        assert ended.status == status
        assert ended.err.endswith("rollbook: stopped; the same command goes on from here\n")
        assert "Traceback" not in ended.err
    goes_on(rollbook, finished, run, ids)


def test_ctrl_c_while_libraries_are_loaded(rollbook: Any, finished: Any, without: Callable[..., Path]) -> None:
    run = without("generate")
    (run / "logs" / "generate-0.log").unlink()
    started = rollbook.start(*finished.again(run))
    started.until((run / "logs" / "generate-0.log").exists)
    started.process.send_signal(signal.SIGINT)
    ended = started.wait(timeout=10)
    assert (ended.status, "stopped; the same command goes on from here" in ended.err) == (130, True)
    assert started.left_over() == {}
