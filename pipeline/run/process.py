"""Stages run in processes of their own: memory is surely returned, and a crash cannot take the caller down.

The caller writes a JSON line for every piece of work to the child's standard input and keeps it open; the child answers with
JSON lines on its standard output (events) and writes everything else to a log. A child that gave a result waits for more
work; after an error it ends. When the caller dies, the child sees its input end, and ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pipeline.common import errors
from pipeline.common.errors import StageCrashed, StageFailed, UserError, writing

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
STOP_SECONDS = 8.0
"""How long a child may take to end after it was asked to."""
FRESH_STATUS = 75
"""Exit status of a child that leaves its work to a fresh process (EX_TEMPFAIL)."""
POLL_MILLISECONDS = 500
"""How long a signal that comes just before a wait can go unseen."""


class NeedsFreshProcess(Exception):
    """Raised by a stage that cannot do this piece of work after what it did before: a fresh process can."""


class StageProcess:
    """A stage's process. It loads its libraries as soon as it starts, and works on one spec after another."""

    def __init__(self, module: str, log: Path, environment: Mapping[str, str]) -> None:
        """Start `python -m module`.

        Args:
            log: file that its output is appended to until it has a spec.
            environment: variables added to this process's own.
        """
        self.module = module
        self._early_log: tuple[Path, int] | None = (log, _touched(log))
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        threading.Thread(target=_end_group_with, args=(self._child,), daemon=True).start()

    def run(self, spec: Event, log: Path, on_event: OnEvent = lambda event: None) -> Event:
        """Give the process a spec and wait for its result. After an error of any kind the process is gone.

        Args:
            log: file that its output goes to from now on.
            on_event: called with every progress event.

        Raises:
            UserError: as the child raised it.
            StageFailed: the child crashed; the message holds the end of its log.
            NeedsFreshProcess: a fresh process must do this.
        """
        try:
            start = _touched(log)
            result = _converse(self._child, {"log": str(log), "spec": spec}, on_event)
            if result is None:
                code = self._child.wait()
                raise (StageCrashed if code < 0 else StageFailed)(self._crash(code, log, start))
        except BaseException:
            self.end()
            raise
        self._early_log = None
        return result

    @property
    def is_alive(self) -> bool:
        return self._child.poll() is None

    def _crash(self, code: int, log: Path, start: int) -> str:
        end = _end_of(log, start)
        if not end and self._early_log:  # it did not come as far as its spec
            log, start = self._early_log
            end = _end_of(log, start)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        memory = " (out of memory, perhaps)" if code == -signal.SIGKILL else ""
        return (
            f"{self.module} {how}{memory}. What it had finished is kept; the same command goes on from there. Log: {log}\n{end}"
        )

    def end(self) -> None:
        """Make sure that the process and its own children are gone."""
        _end(self._child)


def _touched(log: Path) -> int:
    """Make sure that a log is there. Returns its size.

    Raises:
        StageFailed: it cannot be written.
    """
    with writing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
        return log.stat().st_size


def _converse(child: subprocess.Popen[bytes], order: Event, on_event: OnEvent) -> Event | None:
    """Give the child its order and follow it to its result, which is returned; None if its output ends without one."""
    assert child.stdin and child.stdout
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(order).encode() + b"\n")
        child.stdin.flush()
    for line in _lines(child.stdout.fileno()):
        event = _event(line)
        if event is None:
            continue
        if event["event"] == "result":
            return event
        if event["event"] == "needs_fresh_process":
            raise NeedsFreshProcess(event["message"])
        if event["event"] == "error":
            child.wait()
            raise getattr(errors, event["kind"], StageFailed)(event["message"])
        on_event(event)
    return None


def _lines(pipe: int) -> Iterator[bytes]:
    """Lines of a pipe, to its end. Ctrl-C ends the wait: Polars has the kernel restart a read after SIGINT, but not a poll."""
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    rest = b""
    while True:
        while not ready.poll(POLL_MILLISECONDS):
            pass
        data = os.read(pipe, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
    yield rest


def _event(line: bytes) -> Event | None:
    """An event; None for what is none: a library's print while it is imported, half a line of a child that was killed."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "event" in value else None


def _end_group_with(child: subprocess.Popen[bytes]) -> None:
    """Once the child has ended, end what it left running: it holds memory, and the pipe that the caller reads."""
    child.wait()
    _signal_group(child, signal.SIGKILL)


def _signal_group(child: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Close the pipes and make sure that the child and its own children are gone."""
    for pipe in (child.stdin, child.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    if child.poll() is None:
        _signal_group(child, signal.SIGTERM)
        try:
            child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(child, signal.SIGKILL)
            child.wait()


def _end_of(log: Path, start: int, lines: int = 15) -> str:
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])


class Reporter:
    """The child's way to tell the caller what it is doing."""

    def __init__(self, handle: int) -> None:
        self._file = os.fdopen(handle, "w", buffering=1, encoding="utf-8")

    def send(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        self.send("progress", done=done, total=total, unit=unit, **fields)

    def note(self, message: str) -> None:
        """A sentence that the user should see."""
        self.send("note", message=message)


def each(stage: Callable[[Event, Reporter], Event]) -> Callable[[Event, Reporter], Event]:
    """A stage that makes one artifact of one spec, as one that makes those of several jobs."""

    def work(spec: Event, reporter: Reporter) -> Event:
        common = {name: value for name, value in spec.items() if name != "jobs"}
        return {"artifacts": [stage({**common, **job}, reporter)["artifact"] for job in spec["jobs"]]}

    return work


def serve(work: Callable[[Event, Reporter], Event], preload: Sequence[str] = ()) -> NoReturn:
    """The child's main: do the work of one spec after another, report each result, and exit after an error or at the end.

    A spec names the store and jobs, each with its request; the result names the artifacts' paths in the order of the jobs.

    With the path of a spec as the command line's argument, do that one's.

    Args:
        preload: modules to import while the first spec is still to come.
    """
    if len(sys.argv) > 1:
        _serve_file(Path(sys.argv[1]), work)
    reporter = Reporter(os.dup(1))
    os.dup2(2, 1)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    for name in preload:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        order = json.loads(line)
        _log_to(order["log"])
        try:
            result = work(order["spec"], reporter)
        except NeedsFreshProcess as reason:
            reporter.send("needs_fresh_process", message=str(reason))
            _exit(FRESH_STATUS)
        except UserError as error:
            reporter.send("error", kind=type(error).__name__, message=str(error))
            _exit(error.exit_code)
        except Exception as error:
            answer = errors.as_answer(error)
            if answer is None:
                raise
            traceback.print_exc()
            reporter.send("error", kind=type(answer).__name__, message=str(answer))
            _exit(answer.exit_code)
        sys.stdout.flush()
        sys.stderr.flush()
        reporter.send("result", **result)
    _exit(0)


def _serve_file(path: Path, work: Callable[[Event, Reporter], Event]) -> NoReturn:
    """`python -m pipeline.train SPEC.json`: do the work of a spec, started by hand or by torchrun.

    Events go to standard output, those of the first rank only; an error goes to standard error.
    """
    leads = os.environ.get("RANK", "0") == "0"
    reporter = Reporter(os.dup(1) if leads else os.open(os.devnull, os.O_WRONLY))
    os.dup2(2, 1)
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        print(f"{path}: not a readable spec: {error}", file=sys.stderr)
        _exit(UserError.exit_code)
    try:
        reporter.send("result", **work(spec, reporter))
    except UserError as error:
        print(error, file=sys.stderr)
        _exit(error.exit_code)
    _exit(0)


def _exit(code: int) -> NoReturn:
    """End at once, whatever threads libraries have started."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _log_to(path: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _end_with_caller() -> None:
    """Standard input ends when the caller does. Files are whole or absent at any moment, so ending at once is safe."""
    caller = select.poll()
    caller.register(0, 0)  # its end alone is waited for: what the caller writes is read elsewhere
    caller.poll()
    os.killpg(os.getpgid(0), signal.SIGKILL)
