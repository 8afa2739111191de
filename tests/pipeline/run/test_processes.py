"""Processes that live on: one per stage, taken again, and replaced where they cannot go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.common.errors import DataError, StageCrashed
from pipeline.common.room import MemoryRoom
from pipeline.run import processes
from pipeline.run.process import Event
from pipeline.run.processes import Processes

STAGE = """
import os, signal
from pipeline.common.errors import DataError
from pipeline.run.process import NeedsFreshProcess, serve

before = []

def work(spec, reporter):
    if spec["do"] == "fail":
        raise DataError("no")
    if spec["do"] == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec["do"] == "change" and before:
        raise NeedsFreshProcess("worked before")
    before.append(spec["do"])
    return {"pid": os.getpid(), "before": before}

serve(work)
"""


class Stage:
    """A stage that remembers what it did."""

    def __init__(self, directory: Path) -> None:
        for name in ("remembering", "other"):
            (directory / f"{name}.py").write_text(STAGE, encoding="utf-8")
        self.free = 1 << 40
        room = lambda: MemoryRoom(free=self.free, of="available on this machine")  # noqa: E731
        self.processes = Processes({"PYTHONPATH": str(directory)}, room)
        self.log = directory / "stage.log"

    def __call__(self, do: str, module: str = "remembering") -> Event:
        return self.processes.run(module, {"do": do}, self.log, lambda event: None)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.processes.close()


def test_the_same_process_is_taken_again(stage: Stage) -> None:
    stage.processes.warm_up("remembering", stage.log)
    stage.processes.warm_up("remembering", stage.log)
    first, second = stage("a"), stage("b")
    assert first["pid"] == second["pid"]
    assert second["before"] == ["a", "b"]


def test_work_that_does_not_fit_is_done_by_a_fresh_process(stage: Stage) -> None:
    first, second, third = stage("a"), stage("change"), stage("b")
    assert first["pid"] != second["pid"] == third["pid"]
    assert third["before"] == ["change", "b"]


@pytest.mark.parametrize(("do", "kind"), [("fail", DataError), ("crash", StageCrashed)])
def test_after_an_error_the_next_process_is_a_fresh_one(stage: Stage, do: str, kind: type[Exception]) -> None:
    first = stage("a")
    with pytest.raises(kind):
        stage(do)
    assert stage("b")["before"] == ["b"]
    assert not Path(f"/proc/{first['pid']}").exists()


def test_a_process_that_was_killed_while_idle_is_replaced(stage: Stage) -> None:
    first = stage("a")
    os.kill(first["pid"], signal.SIGKILL)
    while stage.processes._idle["remembering"].is_alive:
        time.sleep(0.01)
    assert stage("b")["before"] == ["b"]


def test_closing_ends_idle_processes(stage: Stage) -> None:
    first = stage("a")
    stage.processes.close()
    assert not Path(f"/proc/{first['pid']}").exists()
    assert stage("b")["before"] == ["b"]


@pytest.fixture
def with_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages hold a model, on a CPU."""
    monkeypatch.setattr(processes, "ON_GPU", {"remembering", "other"})
    monkeypatch.setattr(processes, "has_gpu", lambda: False)


@pytest.mark.usefixtures("with_models")
def test_an_idle_stage_with_a_model_stays_where_memory_is_plenty(stage: Stage) -> None:
    first = stage("a")
    stage("b", "other")
    assert stage("c")["pid"] == first["pid"]


@pytest.mark.usefixtures("with_models")
def test_an_idle_stage_with_a_model_ends_where_memory_is_short(stage: Stage) -> None:
    first = stage("a")
    held = stage.processes._idle["remembering"].memory
    assert 1 << 20 < held < 1 << 30
    stage.free = 3 * held - 1
    assert stage("b")["pid"] == first["pid"]
    stage("c", "other")
    assert not Path(f"/proc/{first['pid']}").exists()
    assert stage("d")["before"] == ["d"]


@pytest.mark.usefixtures("with_models")
def test_a_stage_with_a_model_is_not_started_before_its_turn_where_memory_is_short(stage: Stage) -> None:
    stage.free = (6 << 30) - 1
    stage.processes.warm_up("remembering", stage.log)
    assert not stage.processes._idle
    stage.free = 6 << 30
    stage.processes.warm_up("remembering", stage.log)
    assert list(stage.processes._idle) == ["remembering"]
