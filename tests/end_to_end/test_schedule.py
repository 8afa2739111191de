"""A real Prefect server fires a run on a one-minute cron; each firing goes on where the last one ended, until a rule stops it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long


def record(run: Path) -> dict[str, Any]:
    """run.json, or nothing before there is one."""
    file = run / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.timeout(900)
def test_a_schedule_continues_its_run_and_stops_it_when_it_collapses(
    rollbook: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(
        tmp_path / "tiny.yaml", run_dir=str(run), train={"epochs": 1}, evaluate={"samples": 1, "k": [1], "greedy": False}
    )
    command = ("schedule", config, "--cron", "* * * * *", "--port", free_port())
    steady = rollbook.start(*command)
    steady.until(lambda: len(record(run).get("iterations", ())) == 3 and record(run)["missing"] is None, timeout=420)
    os.kill(steady.process.pid, 2)
    assert steady.wait(60).status == 130
    assert not steady.left_over()
    done = record(run)
    assert done["config"]["iterations"] == 2
    assert done["stopped"] is None

    collapsing = rollbook.start(*command, "--set", "stop.min_entropy=100")
    collapsing.until(lambda: record(run).get("stopped"), timeout=240)
    os.kill(collapsing.process.pid, 2)
    collapsing.wait(60)
    assert record(run)["stopped"]["rule"] == "min_entropy"
    assert "below 100" in record(run)["stopped"]["why"]
    assert record(run)["best"]["kind"] == "checkpoint"
