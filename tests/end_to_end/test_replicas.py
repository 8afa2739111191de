"""Two engines of the tiny model give the bytes of one, whatever becomes of either on the way."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Ids = Callable[[Path], dict[str, str]]


def engines_of(started: Any) -> list[int]:
    return [pid for pid, line in started.processes().items() if "-m pipeline.generate.engines" in line]


def test_two_engines_give_the_bytes_of_one(rollbook: Any, finished: Any, tmp_path: Path, ids: Ids) -> None:
    run = finished.without(tmp_path / "run", "generate")
    ended = rollbook(*finished.again(run), "--set", "engine.replicas=2")
    assert ended.status == 0, ended.err
    assert ids(run) == ids(finished.directory)


def test_one_of_two_engines_is_killed(rollbook: Any, finished: Any, tmp_path: Path, ids: Ids) -> None:
    """What is finished stays as it is, another engine takes its place, and nothing is left running."""
    run = finished.without(tmp_path / "run", "generate")
    started = rollbook.start(*finished.again(run), "--set", "engine.replicas=2")
    started.until(lambda: finished.unfinished(run, "rollouts/*/part-*.parquet"))
    kept = {path: path.stat().st_mtime_ns for path in finished.unfinished(run, "rollouts/*/part-*.parquet")}
    two = engines_of(started)
    assert len(two) == 2
    os.kill(two[1], signal.SIGKILL)
    ended = started.wait()
    assert ended.status == 0, ended.err
    assert "was ended by SIGKILL (out of memory, perhaps); another takes its place" in ended.err + ended.out
    assert ids(run) == ids(finished.directory)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert started.left_over() == {}
    shutil.rmtree(run)
