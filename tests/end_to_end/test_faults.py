"""What a machine can do to a run: the same command, once the cause is gone, ends with the artifacts of the unbroken run.

Where the other kinds of fault are tested is listed in `MATRIX`; `test_the_fault_matrix_is_whole` looks them up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.run.record import load_run
from pipeline.store import Store

Ids = Callable[[Path], dict[str, str]]
TESTS = Path(__file__).resolve().parents[1]
MATRIX: dict[str, dict[str, str]] = {
    "end_to_end/test_faults.py": {
        "disk full while rollouts are written": "the_disk_fills_up_while",
        "disk full while resume points are written": "the_disk_fills_up_while",
        "disk full before a stage starts": "a_stage_that_will_not_fit_is_not_started",
        "read-only run directory": "a_read_only_run_directory_is_named",
        "standard output closed": "a_reader_that_goes_away_does_not_end_the_run",
        "standard error closed": "a_reader_that_goes_away_does_not_end_the_run",
        "object storage bad during a whole run": "a_run_in_a_bucket_that_is_lost_with_its_machine",
        "the machine lost, the bucket left": "a_run_in_a_bucket_that_is_lost_with_its_machine",
        "the vLLM process killed": "a_killed_engine_is_started_again",
        "a clock that jumps back during a run": "a_clock_that_jumps_back_changes_nothing",
        "two runs on one store": "of_two_runs_on_one_store_the_second_takes_over_from_the_killed_first",
    },
    "pipeline/store/test_writers.py": {
        "disk full while a table is written": "a_full_disk_is_named",
        "disk full while a text is written": "text_that_does_not_fit_on_the_disk_is_named",
        "too little room for a stage": "work_without_room_is_refused_before_it_starts",
        "a file larger than the limit": "a_file_above_the_limit_is_named",
        "read-only disk": "a_read_only_disk_is_named",
        "no permission to write": "a_place_without_permission_is_named",
        "no permission to read": "a_manifest_without_permission_is_named",
        "a file where a directory should be": "a_file_where_the_store_should_be_is_named",
        "two processes on one artifact": "of_two_processes_one_makes_the_artifact_and_the_other_finds_it",
    },
    "flows/test_streams.py": {
        "a pipe that is full": "a_full_pipe_is_waited_for",
        "standard output full": "output_that_cannot_be_written_is_an_error",
    },
    "pipeline/store/test_storage_faults.py": {
        "object storage that is slow": "storage_that_is_bad_at_times_is_asked_again",
        "object storage that breaks off": "storage_that_is_bad_at_times_is_asked_again",
        "object storage that times out": "storage_that_is_bad_at_times_is_asked_again",
        "object storage that answers 500 or 503": "storage_that_answers_with_errors_at_times_is_asked_again",
        "object storage that is away for a while": "storage_that_is_away_for_a_while_does_not_stop_the_work",
        "object storage that is gone": "storage_that_is_gone_is_named_and_what_is_finished_is_kept",
        "object storage whose answer is lost": "an_answer_that_is_lost_after_the_write_does_no_harm",
        "object storage that refuses": "access_denied_names_the_object_and_no_secret",
        "object storage without credentials": "no_credentials",
        "no such bucket": "no_such_bucket",
        "object storage without conditional writes": "storage_without_conditional_writes_is_refused",
        "a writer that sleeps longer than its lease": "a_writer_that_was_taken_for_dead_cannot_overwrite_its_successor",
        "a clock that jumps under a lease": "a_clock_that_jumps_takes_no_lease",
        "four processes on two machines on one artifact": "of_four_processes_on_two_machines_one_makes_the_artifact",
    },
    "end_to_end/test_kill.py": {
        "the training process killed": "a_crashed_stage_is_tried_once_more",
        "SIGTERM": "stopped_by_ctrl_c_and_by_sigterm",
        "Ctrl-C": "stopped_by_ctrl_c_and_by_sigterm",
        "Ctrl-C while libraries are loaded": "ctrl_c_while_libraries_are_loaded",
    },
    "pipeline/rewards/test_misbehaving_graders.py": {
        "a reward that hangs": "a_grader_that_hangs_is_killed_and_the_next_item_goes_on",
        "a reward that dies": "a_worker_that_dies_is_replaced",
        "a reward that leaks memory": "a_leak_costs_a_worker_but_no_result",
        "a reward that allocates too much": "one_allocation_too_large_is_an_error",
        "a reward that forks": "a_forked_copy_that_comes_back_is_not_heard",
        "a reward that leaves processes behind": "no_process_that_a_grader_starts_outlives_it",
    },
}
"""Every kind of fault, by file, and the test that provokes it."""


def test_the_fault_matrix_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    for file, faults in MATRIX.items():
        text = (TESTS / file).read_text(encoding="utf-8")
        assert [name for name in faults.values() if f"def test_{name}(" not in text] == []
    tests = {(file, name) for file, faults in MATRIX.items() for name in faults.values()}
    with capsys.disabled():
        print(f"\nfault matrix: {sum(map(len, MATRIX.values()))} kinds of fault, in {len(tests)} tests")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 48 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting a small disk needs root: {error}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, leave: int = 0) -> Path:
    """Write a file that leaves that many bytes free on the disk."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
        file.truncate(max(file.tell() - leave, 0))
    return ballast


def goes_on(rollbook: Any, finished: Any, run: Path, ids: Ids) -> None:
    """The same command ends well, with the artifacts of the unbroken run."""
    ended = rollbook(*finished.again(run))
    assert ended.status == 0, ended.err
    assert ids(run) == ids(finished.directory)
    assert not list((run / "artifacts").rglob(".resume"))
    assert not list((run / "artifacts").rglob(".tmp-*"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("stage", "begun"), [("generate", "rollouts/*/part-*.parquet"), ("train", "checkpoint/*/.resume/step-00000002")]
)
def test_the_disk_fills_up_while(rollbook: Any, finished: Any, disk: Path, ids: Ids, stage: str, begun: str) -> None:
    run = finished.without(disk / "run", stage)
    started = rollbook.start(*finished.again(run))
    started.until(lambda: finished.unfinished(run, begun))
    started.process.send_signal(signal.SIGSTOP)  # what it writes meanwhile comes from its children
    ballast = fill(disk)
    started.process.send_signal(signal.SIGCONT)
    ended = started.wait()
    assert ended.status == 1, ended.err
    assert "No space left on device" in ended.err
    assert "run the same command again" in ended.err
    assert "Traceback" not in ended.err
    assert started.left_over() == {}
    kept = {path: path.read_bytes() for path in finished.unfinished(run, "rollouts/*/part-*.parquet")}
    assert all(len(pl.read_parquet(path)) for path in kept), "what is there is whole"
    ballast.unlink()
    goes_on(rollbook, finished, run, ids)
    assert all(path.read_bytes() == content for path, content in kept.items())


@pytest.mark.long
def test_a_stage_that_will_not_fit_is_not_started(rollbook: Any, finished: Any, disk: Path, ids: Ids) -> None:
    """Training a model of 1 M parameters takes a checkpoint of 4 MB, and twice 12 MB of resume points."""
    run = finished.without(disk / "run", "train")
    ballast = fill(disk, leave=12 << 20)
    ended = rollbook(*finished.again(run))
    assert ended.status == 1, ended.err
    assert "free on its disk, but training with its resume points will take about 3" in ended.err
    assert "Make room there, or set `store` to a place that has it, and run the same command again." in ended.err
    assert not finished.unfinished(run, "checkpoint/*/.resume/step-*")
    ballast.unlink()
    goes_on(rollbook, finished, run, ids)


@pytest.mark.long
def test_a_read_only_run_directory_is_named(rollbook: Any, finished: Any, disk: Path, ids: Ids) -> None:
    run = finished.without(disk / "run", "shape")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = rollbook(*finished.again(run))
    assert ended.status == 2, ended.err
    assert "artifacts: cannot be written: Read-only file system. Mend that, or name another place in `store`" in ended.err
    assert "Traceback" not in ended.err
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    goes_on(rollbook, finished, run, ids)


@pytest.mark.long
@pytest.mark.parametrize("streams", ["| head -1", "2>&1 | head -1", ">&- 2>&-"])
def test_a_reader_that_goes_away_does_not_end_the_run(
    rollbook: Any, finished: Any, tmp_path: Path, ids: Ids, streams: str
) -> None:
    run = finished.without(tmp_path / "run", "evaluate")
    (run / "report.html").unlink()
    words = " ".join(str(word) for word in (rollbook.program, *finished.again(run)))
    shell = ["bash", "-c", f"{words} {streams}; exit ${{PIPESTATUS[0]}}"]
    ended = subprocess.run(shell, env=rollbook.environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert "Error" not in ended.stderr
    assert ids(run) == ids(finished.directory)
    assert (run / "report.html").exists()


@pytest.mark.long
def test_a_killed_engine_is_started_again(rollbook: Any, finished: Any, tmp_path: Path, ids: Ids) -> None:
    run = finished.without(tmp_path / "run", "generate")
    started = rollbook.start(*finished.again(run))
    started.until(lambda: finished.unfinished(run, "rollouts/*/part-*.parquet"))
    kept = {path: path.stat().st_mtime_ns for path in finished.unfinished(run, "rollouts/*/part-*.parquet")}
    (engine,) = (pid for pid, line in started.processes().items() if "-m pipeline.generate.engines" in line)
    os.kill(engine, signal.SIGKILL)
    ended = started.wait()
    assert ended.status == 0, ended.err
    assert ids(run) == ids(finished.directory)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


CLOCK = """
import os, time
real, start = time.time, {start}
time.time = lambda: real() - (86_400 if real() > start + 6 else 0)
time.time_ns = lambda: int(time.time() * 1e9)
"""


@pytest.mark.long
def test_a_clock_that_jumps_back_changes_nothing(rollbook: Any, finished: Any, tmp_path: Path, ids: Ids) -> None:
    """Every process of the run sees its clock go back a day, six seconds after the start; what lies there is from the future."""
    run = finished.without(tmp_path / "run", "evaluate", "shape", "train")
    future = time.time() + 7 * 86_400
    for path in run.rglob("*"):
        os.utime(path, (future, future))
    (tmp_path / "clock").mkdir()
    (tmp_path / "clock" / "sitecustomize.py").write_text(CLOCK.format(start=time.time()), encoding="utf-8")
    before = (run / "report.html").read_bytes()
    ended = rollbook(*finished.again(run), PYTHONPATH=str(tmp_path / "clock"))
    assert ended.status == 0, ended.err
    assert ids(run) == ids(finished.directory)
    assert (run / "report.html").read_bytes() != before, "the page is that of this run, though the old one was younger"


def signal_all(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


@pytest.mark.long
def test_of_two_runs_on_one_store_the_second_takes_over_from_the_killed_first(
    rollbook: Any, finished: Any, tmp_path: Path, ids: Ids
) -> None:
    first, second = finished.without(tmp_path / "first", "generate"), tmp_path / "second"
    store = f"store={first / 'artifacts'}"
    one = rollbook.start(*finished.again(first), "--set", store)
    one.until(lambda: finished.unfinished(first, "rollouts/*/part-*.parquet"))
    held = list(one.processes())
    signal_all(held, signal.SIGSTOP)
    other = rollbook.start(*finished.again(second), "--set", store)
    other.until(lambda: "waiting for rollouts-" in other.err)
    kept = {path: path.stat().st_mtime_ns for path in finished.unfinished(first, "rollouts/*/part-*.parquet")}
    one.process.kill()
    signal_all(held, signal.SIGCONT)
    one.wait()
    ended = other.wait()
    assert ended.status == 0, ended.err
    assert ids(first) == ids(finished.directory), "both runs' artifacts, each once"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert load_run(second).missing is None


@pytest.mark.long
def test_a_run_in_a_bucket_that_is_lost_with_its_machine(
    rollbook: Any, finished: Any, bucket: Any, tmp_path: Path, ids: Ids
) -> None:
    """Killed while it generates; another machine, without a file of the first, goes on. Every ninth request breaks off."""
    seen = [0]

    def fault(method: str, path: str) -> float | None:
        seen[0] += 1
        return None if seen[0] % 9 == 0 else 0.0

    bucket.server.fault = fault
    arguments = (*finished.again(tmp_path / "run"), "--set", f"store={bucket.url}")
    environment = {**bucket.environment, "ROLLBOOK_CACHE": str(tmp_path / "first")}
    started = rollbook.start(*arguments, **environment)
    started.until(lambda: any("rollouts/" in path and method == "PUT" for method, path in bucket.server.requests))
    started.process.kill()
    started.wait()
    assert started.left_over() == {}
    environment["ROLLBOOK_CACHE"] = str(tmp_path / "second")
    ended = rollbook(*arguments, **environment)
    bucket.server.fault = lambda method, path: 0.0
    assert ended.status == 0, ended.err
    there = {artifact.url.removeprefix(bucket.url + "/"): artifact.id for artifact in Store(bucket.url).artifacts()}
    assert there == ids(finished.directory)
    written = [path for method, path in bucket.server.requests if method == "PUT" and "/rollouts/" in path]
    status = rollbook("status", tmp_path / "run", "--json", **environment)
    assert bucket.url in status.out
    assert written
    for words in (("report", tmp_path / "run"), ("check", finished.config, "--set", f"store={bucket.url}")):
        assert rollbook(*words, **{**environment, "ROLLBOOK_CACHE": str(tmp_path / "third")}).status == 0
