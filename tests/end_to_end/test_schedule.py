"""A real Prefect server fires a run on a one-minute cron; each firing goes on where the last one ended, until a rule stops it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long


def record(run: Path) -> dict[str, Any]:
    """run.json, or nothing before there is one."""
    file = run / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


WORKED = (
    r"20\d\d-\d\d-\d\d \d\d:\d\d  at iteration [12], pass@1 .* %.*, [\d,]+ tokens, .* (s|min), "
    r".* more on disk \(.* in all.*\); next .* UTC"
)
"""The line of a firing that did an iteration."""


def interrupt(command: Any) -> None:
    """Ctrl-C: every process of the command's group has it, those of the firing too."""
    group = os.getpgid(command.process.pid)
    for pid in command.processes():
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == group:
                os.kill(pid, signal.SIGINT)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.timeout(1500)
def test_a_schedule_continues_its_run_and_stops_it_when_it_collapses(
    rollbook: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(
        tmp_path / "tiny.yaml", run_dir=str(run), train={"epochs": 1}, evaluate={"samples": 1, "k": [1], "greedy": False}
    )
    command = ("schedule", config, "--cron", "* * * * *", "--port", free_port())
    steady = rollbook.start(*command)
    steady.until(lambda: len(record(run).get("iterations", ())) == 3 and record(run)["missing"] is None, timeout=700)
    steady.until(lambda: "at iteration 2, pass@1" in steady.err, timeout=60)
    interrupt(steady)
    ended = steady.wait(60)
    assert ended.status == 130
    assert not steady.left_over()
    begin, endless, *firings, stopped = ended.err.splitlines()
    assert begin.startswith("tiny: fires at '* * * * *' (UTC), next 20") and endless.startswith("rollbook: no rule ends this run")
    assert stopped == "rollbook: stopped; the same command goes on from here"
    worked = [line for line in firings if "skipped: an earlier firing is still at work; next 20" not in line]
    assert all(re.fullmatch(WORKED, line) for line in worked) and len(worked) == 2, ended.err
    assert "prefect.runner" in (run / "logs" / "schedule.log").read_text(encoding="utf-8")
    done = record(run)
    assert done["config"]["iterations"] == 2
    assert done["stopped"] is None

    collapsing = rollbook.start(*command, "--set", "stop.min_entropy=100")
    collapsing.until(lambda: "the schedule is paused" in collapsing.err, timeout=400)
    interrupt(collapsing)
    collapsing.wait(60)
    assert record(run)["stopped"]["rule"] == "min_entropy"
    assert "below 100" in record(run)["stopped"]["why"]
    assert record(run)["best"]["kind"] == "checkpoint"


@pytest.mark.timeout(500)
def test_ctrl_c_while_a_firing_works_is_one_line(rollbook: Any, write_config: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "tiny.yaml", run_dir=str(run))
    working = rollbook.start("schedule", config, "--cron", "* * * * *", "--port", free_port(), "--set", "stop.patience=9")
    working.until(lambda: (run / "logs" / "generate-0.log").exists(), timeout=400)
    interrupt(working)
    ended = working.wait(60)
    assert ended.status == 130
    _, *between, stopped = ended.err.splitlines()
    assert stopped == "rollbook: stopped; the same command goes on from here"
    assert all("skipped: an earlier firing is still at work" in line for line in between), ended.err
    assert not working.left_over()
