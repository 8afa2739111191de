"""What others take of the machine, told apart from what this process and those below it take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.common import other_work
from pipeline.common.other_work import OtherWork, busy_seconds, tree_seconds

TICK = os.sysconf("SC_CLK_TCK")


def process(proc: Path, pid: int, parent: int, seconds: float) -> None:
    """A process that worked that long, half of it in children that ended, with a name that is hard to read."""
    half = int(seconds * TICK / 2)
    (proc / str(pid)).mkdir(exist_ok=True)
    times = f"{half} 0 {half} 0"
    (proc / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 0 0 0 0 0 0 0 0 0 {times} 20 0\n", encoding="ascii")


def machine(proc: Path, busy: float) -> None:
    """A machine that worked that long, and was idle longer."""
    (proc / "stat").write_text(f"cpu  {int(busy * TICK)} 0 0 999999 7 0 0 0 0 0\ncpu0 1 1 1\n", encoding="ascii")


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(other_work, "PROC", tmp_path)
    return tmp_path


def test_others_are_what_the_machine_did_less_this_process_and_all_below_it(proc: Path) -> None:
    me = os.getpid()
    for pid, parent, seconds in ((me, 1, 4.0), (7, me, 2.0), (8, 7, 0.0), (9, 1, 50.0)):
        process(proc, pid, parent, seconds)
    machine(proc, 100.0)
    watch = OtherWork()
    watch._begun -= 10
    for pid, parent, seconds in ((me, 1, 5.0), (7, me, 4.0), (8, 7, 2.0), (9, 1, 65.0)):
        process(proc, pid, parent, seconds)
    machine(proc, 120.0)
    assert watch.cores() == 1.5  # of 20 seconds in 10 this tree took 1 + 2 + 2


def test_where_the_system_does_not_say_it_is_not_known(proc: Path) -> None:
    assert busy_seconds() is None
    assert OtherWork().cores() is None


def test_a_child_that_was_waited_for_still_counts() -> None:
    before = tree_seconds(os.getpid())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    assert tree_seconds(os.getpid()) - before >= 0.2
