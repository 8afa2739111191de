"""A stage in a process of its own: what it says, how it ends, and that nothing of it outlives its caller."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.common.errors import DataError, StageCrashed, StageFailed, UserError
from pipeline.run.process import Event, StageProcess

WORK = """
    import os, signal, subprocess, sys, time
    from pipeline.common.errors import DataError, StageFailed, UserError
    from pipeline.run.process import serve
"""


class Stages:
    """Writes modules that are stages, and starts them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "logs" / "stage.log"

    def write(self, body: str, head: str = "") -> str:
        """A module whose `work(spec, reporter)` has that body."""
        work = "def work(spec, reporter):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ")
        source = f"{textwrap.dedent(WORK)}\n{textwrap.dedent(head)}\n{work}\n\nserve(work)\n"
        (self.directory / "stage.py").write_text(source, encoding="utf-8")
        return "stage"

    def start(self, body: str, head: str = "", log: Path | None = None) -> StageProcess:
        return StageProcess(self.write(body, head), log or self.log, {"PYTHONPATH": str(self.directory)})

    def run(self, body: str, head: str = "", spec: Event | None = None, on_event: Callable[[Event], None] = print) -> Event:
        process = self.start(body, head)
        try:
            return process.run(spec or {}, self.log, on_event)
        finally:
            process.end()


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return Stages(tmp_path)


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process has ended, or does so in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def test_a_stage_answers_its_spec(stages: Stages) -> None:
    result = stages.run(
        "return {'double': [2 * x for x in spec['numbers']], 'text': spec['text']}", spec={"numbers": [1, 2], "text": "é\n"}
    )
    assert result == {"event": "result", "double": [2, 4], "text": "é\n"}


def test_progress_and_notes_arrive_in_order(stages: Stages) -> None:
    events: list[Event] = []
    body = """
        reporter.note("starting")
        for done in (1, 2):
            reporter.progress(done, 2, "files", tokens=10 * done)
        return {}
    """
    stages.run(body, on_event=events.append)
    assert events == [
        {"event": "note", "message": "starting"},
        {"event": "progress", "done": 1, "total": 2, "unit": "files", "tokens": 10},
        {"event": "progress", "done": 2, "total": 2, "unit": "files", "tokens": 20},
    ]


@pytest.mark.parametrize("kind", [UserError, DataError, StageFailed])
def test_an_error_that_is_an_answer_arrives_as_it_was_raised(stages: Stages, kind: type[UserError]) -> None:
    with pytest.raises(UserError) as told:
        stages.run(f"raise {kind.__name__}('part-00000.parquet, row 3: no')")
    assert type(told.value) is kind
    assert str(told.value) == "part-00000.parquet, row 3: no"


def test_a_crash_is_told_with_the_end_of_its_log(stages: Stages) -> None:
    with pytest.raises(StageFailed) as told:
        stages.run("""
            for line in range(100):
                print("line", line, file=sys.stderr)
            return {"x": spec["missing"]}
        """)
    message = str(told.value)
    assert message.startswith("stage ended with status 1. What it had finished is kept; the same command goes on from there.")
    assert f"Log: {stages.log}" in message
    assert message.endswith("  | KeyError: 'missing'")
    assert "  | line 99" in message
    assert len(message.splitlines()) <= 16


def test_the_log_of_an_earlier_run_is_kept_and_not_quoted(stages: Stages) -> None:
    with pytest.raises(StageFailed, match="first failure"):
        stages.run("raise KeyError('first failure')")
    with pytest.raises(StageFailed) as told:
        stages.run("raise KeyError('second failure')")
    assert "first failure" not in str(told.value)
    assert "first failure" in stages.log.read_text(encoding="utf-8")


def test_a_killed_stage_says_so(stages: Stages) -> None:
    with pytest.raises(
        StageFailed, match=r"stage was ended by SIGKILL \(out of memory, perhaps\)\. What it had finished is kept"
    ):
        stages.run("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(StageFailed, match=r"stage was ended by SIGSEGV\. "):
        stages.run("os.kill(os.getpid(), signal.SIGSEGV)")


def test_half_an_event_of_a_killed_stage_is_no_event(stages: Stages) -> None:
    with pytest.raises(StageFailed, match="stage was ended by SIGKILL"):
        stages.run("""
            os.write(reporter._file.fileno(), b'{"event": "result", "x')
            os.kill(os.getpid(), signal.SIGKILL)
        """)


def test_a_stage_that_leaves_without_a_result_has_failed(stages: Stages) -> None:
    with pytest.raises(StageFailed, match="stage ended with status 0"):
        stages.run("os._exit(0)")
    with pytest.raises(StageFailed, match="stage ended with status 3"):
        stages.run("sys.exit(3)")


def test_a_stage_that_cannot_be_imported_is_told_with_its_traceback(stages: Stages) -> None:
    """It was started early, so that its first words are in another log."""
    early = stages.directory / "warm-up.log"
    process = stages.start("return {}", head="import no_such_library", log=early)
    with pytest.raises(StageFailed) as told:
        process.run({}, stages.log)
    assert "No module named 'no_such_library'" in str(told.value)
    assert f"Log: {early}" in str(told.value)


def test_what_a_stage_prints_goes_to_its_log(stages: Stages) -> None:
    events: list[Event] = []
    body = """
        print("from Python")
        os.write(1, b"from C\\n")
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        print('{"event": "result", "fake": true}')
        reporter.note("real")
        return {"real": True}
    """
    result = stages.run(
        body, head="print('while importing')\nprint('{\"event\"')\nprint('[1]', flush=True)", on_event=events.append
    )
    assert result == {"event": "result", "real": True}
    assert events == [{"event": "note", "message": "real"}]
    log = stages.log.read_text(encoding="utf-8").splitlines()
    assert {"from Python", "from C", "from a child", '{"event": "result", "fake": true}'} <= set(log)


def test_a_stage_started_early_waits_for_its_spec(stages: Stages) -> None:
    process = stages.start("print('late', file=sys.stderr); return spec", log=stages.directory / "early.log")
    assert process.run({"a": 1}, stages.log) == {"event": "result", "a": 1}
    process.end()
    assert stages.log.read_text(encoding="utf-8") == "late\n"
    assert (stages.directory / "early.log").read_text(encoding="utf-8") == ""


def test_a_stage_does_one_piece_of_work_after_another_and_each_has_its_log(stages: Stages) -> None:
    process = stages.start(
        "print(spec['x']); seen.append(spec['x']); return {'seen': seen, 'pid': os.getpid()}", head="seen = []"
    )
    first, second = (process.run({"x": x}, stages.directory / f"{x}.log") for x in "ab")
    assert (first["seen"], second["seen"]) == (["a"], ["a", "b"])
    assert first["pid"] == second["pid"]
    assert [(stages.directory / f"{x}.log").read_text(encoding="utf-8") for x in "ab"] == ["a\n", "b\n"]
    assert process.is_alive
    process.end()
    assert not process.is_alive


def test_a_stage_that_failed_is_gone(stages: Stages) -> None:
    process = stages.start(
        "raise DataError('no') if spec else NeedsFreshProcess('not after that')",
        head="from pipeline.run.process import NeedsFreshProcess",
    )
    with pytest.raises(DataError, match="no"):
        process.run({"x": 1}, stages.log)
    assert not process.is_alive


def test_a_second_crash_is_told_with_its_own_log(stages: Stages) -> None:
    """Not with what was said before the first piece of work, however little the second one says."""
    early = stages.directory / "early.log"
    process = stages.start("os.kill(os.getpid(), signal.SIGKILL) if spec else None; return {}", log=early)
    early.write_text("early words", encoding="utf-8")
    process.run({}, stages.log)
    with pytest.raises(StageCrashed) as told:
        process.run({"x": 1}, stages.log)
    assert "early words" not in str(told.value)
    assert f"Log: {stages.log}" in str(told.value)


def test_a_stage_started_early_and_not_needed_is_gone(stages: Stages) -> None:
    process = stages.start("return {}")
    process.end()
    process.end()
    assert not process.is_alive


def test_an_error_of_the_caller_ends_the_stage(stages: Stages) -> None:
    process = stages.start("reporter.note(str(os.getpid())); time.sleep(60)")

    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        process.run({}, stages.log, interrupted)
    assert not process.is_alive
    assert time.monotonic() - began < 8


def test_what_a_killed_stage_had_started_ends_with_it(stages: Stages) -> None:
    """A child of its own that was forked holds the stage's end of the pipe open."""
    pids: list[int] = []
    body = """
        pid = os.fork()
        if pid == 0:
            time.sleep(60)
        reporter.note(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(StageFailed, match="SIGKILL"):
        stages.run(body, on_event=lambda event: pids.append(int(event["message"])))
    assert gone(pids[0])


CALLER = """
    import sys
    from pathlib import Path
    from pipeline.run.process import StageProcess

    directory = Path(sys.argv[1])
    stage = StageProcess("stage", directory / "stage.log", {"PYTHONPATH": str(directory)})
    print(stage._child.pid, flush=True)
    if sys.argv[2] != "early":
        spec = {"busy": sys.argv[2] == "busy"}
        stage.run(spec, directory / "stage.log", lambda event: print(event["message"], flush=True))
        print("done", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["busy", "early", "idle"])
def test_a_stage_dies_with_its_caller(stages: Stages, state: str) -> None:
    """The caller is killed, so that it cannot tell anyone."""
    stages.write("reporter.note('working'); time.sleep(60 if spec['busy'] else 0); return {}")
    command = [sys.executable, "-c", textwrap.dedent(CALLER), str(stages.directory), state]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        if state != "early":
            assert caller.stdout.readline() == "working\n"
        if state == "idle":
            assert caller.stdout.readline() == "done\n"
        caller.kill()
    assert gone(pid)


def test_a_log_that_cannot_be_written_is_named(stages: Stages) -> None:
    (stages.directory / "logs").write_text("a file where the directory should be", encoding="utf-8")
    with pytest.raises(StageFailed, match=r"stage\.log: cannot be written: File exists\. Mend that"):
        stages.start("return {}")
