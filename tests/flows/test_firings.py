"""What a schedule says: a line for each firing, what it grew by, and that no rule ends it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelled, Completed, Crashed, Failed, State

from flows.firings import INTERRUPTED, Clock, Watch, endless, firing_line
from pipeline.config.keep import KeepConfig
from pipeline.config.run import RunConfig
from pipeline.config.stop import StopConfig
from pipeline.run.deed import deed_of, disk_line, spared
from pipeline.run.state import Iteration, Run
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.removed import Removal

NIGHTLY = Clock("0 2 * * *", "Europe/Berlin")
PLANNED = datetime(2026, 12, 1, 1, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Completed(message="at iteration 4, pass@1 45.0 %"), "at iteration 4, pass@1 45.0 %; next 2026-12-02 02:00 CET"),
        (
            Cancelled(message="Deployment concurrency limit reached."),
            "skipped: an earlier firing is still at work; next 2026-12-02 02:00 CET",
        ),
        (Cancelled(), "cancelled: by hand; next 2026-12-02 02:00 CET"),
        (
            Completed(name="Missed", message="planned for 2026-12-01, and the next firing is due"),
            "skipped: planned for 2026-12-01, and the next firing is due; next 2026-12-02 02:00 CET",
        ),
        (Failed(message="no room\n  | log"), "failed: no room; next 2026-12-02 02:00 CET"),
        (Crashed(message="status code: -9"), "crashed: status code: -9; next 2026-12-02 02:00 CET"),
        (
            Failed(name="Stopped", message="stopped after iteration 3: entropy \x1b[31mfell"),
            "stopped after iteration 3: entropy ‹U+001B›[31mfell; the schedule is paused, and nothing fires until it is resumed",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, State) else None,
)
def test_a_firing_is_one_line_that_says_how_it_ended_and_when_the_next_one_comes(state: Any, said: str) -> None:
    assert firing_line(PLANNED, state, NIGHTLY, PLANNED) == f"2026-12-01 02:00  {said}"


def test_the_next_firing_is_one_that_is_still_to_come() -> None:
    state, two_days_on = Completed(message="done"), datetime(2026, 12, 3, 7, 0, tzinfo=UTC)
    assert firing_line(PLANNED, state, NIGHTLY, two_days_on).endswith("next 2026-12-04 02:00 CET")
    early = PLANNED.replace(hour=0, minute=59)  # cancelled before its time: it does not come again
    assert firing_line(PLANNED, state, NIGHTLY, early).endswith("next 2026-12-02 02:00 CET")


def test_a_firing_is_told_once_and_one_that_crashed_to_whoever_is_to_be_told() -> None:
    lines: list[str] = []
    crashes: list[str] = []
    watch = Watch("run", NIGHTLY, lines.append, crashes.append)
    for state in (Crashed(message="status code: -9"), Failed(message="no room"), Crashed(message=f"was {INTERRUPTED}.")):
        run = FlowRun(id=uuid4(), flow_id=uuid4(), expected_start_time=PLANNED, state=state)
        watch.hear([run])
        watch.hear([run])
    assert [line.split(";")[0] for line in lines] == [
        "2026-12-01 02:00  crashed: status code: -9",
        "2026-12-01 02:00  failed: no room",
    ]
    assert crashes == ["status code: -9"]


def test_firings_that_nobody_was_there_for_are_one_line() -> None:
    lines: list[str] = []
    watch = Watch("run", NIGHTLY, lines.append, pytest.fail)
    late = Cancelled(message="Deployment concurrency limit reached.")
    nights = [PLANNED.replace(year=2020, day=day) for day in (3, 1, 2)]
    runs = [FlowRun(id=uuid4(), flow_id=uuid4(), expected_start_time=night, state=late) for night in nights]
    watch.hear(runs)
    watch.hear(runs)
    assert lines == ["2020-12-01 02:00 to 2020-12-03 02:00  skipped: 3 firings were missed while no schedule was served"]


def test_a_schedule_that_no_rule_ends_says_so() -> None:
    assert "other than rewards that teach nothing" in (endless(StopConfig()) or "")
    assert "rewards" not in (endless(StopConfig(no_signal=None)) or "rewards")
    assert endless(StopConfig(patience=3)) is None


def checkpoint(store: Store, number: int) -> Artifact:
    with store.work(Request("checkpoint", "train/1", {"number": number})) as work:
        if not isinstance(work, Work):
            return work
        (work.path / "model.safetensors").write_bytes(b"w" * 1000)
        return work.finish({"iteration": number})


@pytest.fixture
def make_run(make_config: Callable[..., RunConfig], make_artifact: Callable[..., Artifact], store: Store) -> Callable[[int], Run]:
    """make_run(2): a run with checkpoints 0 to 2, the first of them the best."""

    def make(last: int) -> Run:
        policies = [checkpoint(store, number) for number in range(last + 1)]
        run = Run(make_config())
        for number, policy in enumerate(policies):
            value = 0.5 if number == 0 else 0.25
            evaluation = make_artifact("evaluation", number=number, pass_at={"1": {"value": value, "low": 0.2, "high": 0.6}})
            run.iterations.append(Iteration(number, policy, evaluation=evaluation))
        return run

    return make


def test_what_a_firing_did_is_told_with_what_it_takes_on_the_disk(make_run: Callable[[int], Run]) -> None:
    """Checkpoints 1 and 2 are neither the base model nor the best (both are 0) nor the newest; each has 1 kB of weights."""
    one, three = make_run(1), make_run(3)
    said = deed_of(one, three, 252.0)
    assert said.startswith("at iteration 3, pass@1 25.0 % [20.0, 60.0], 0 tokens, 4 min 12 s, 2.")
    assert said.endswith(" in all, of which keep: {last: 1, best: true} would spare 2.0 kB)")
    three.config = three.config.model_copy(update={"keep": KeepConfig(last=2)})
    assert spared(three) == 0  # somebody chose


def test_weights_that_retention_removed_are_not_on_the_disk(make_run: Callable[[int], Run]) -> None:
    before, after = make_run(3), make_run(3)
    checkpoint = after.iterations[1].policy
    names = ["model.safetensors"]
    now = disk_line(before, after)
    with Store(checkpoint.path.parents[1]).backend.locked("checkpoint", checkpoint.path.name) as place:
        place.remove(Removal.now(names, "keep: best"))
    assert now.startswith("0 bytes more on disk (4.") and disk_line(before, after).startswith("0 bytes more on disk (3.")


def test_what_prefect_and_firings_print_goes_to_a_file_and_our_lines_do_not(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from flows.aside import aside\n"
        "with aside(Path(sys.argv[1])) as say:\n"
        "    print('theirs'); os.system('echo a child >&2'); say('ours')\n"
        "print('after')"
    )
    log = tmp_path / "logs" / "schedule.log"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run([sys.executable, "-c", script, str(log)], capture_output=True, text=True, env=environment, check=True)
    assert (ended.stdout, ended.stderr) == ("after\n", "ours\n")
    assert sorted(log.read_text(encoding="utf-8").split("\n")) == ["", "a child", "theirs"]
