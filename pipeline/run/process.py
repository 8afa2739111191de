"""Stages run in processes of their own: memory is surely returned, and a crash cannot take the caller down.

The caller writes a JSON line for every piece of work to the child's standard input and keeps it open; the child answers with
JSON lines on its standard output (events) and writes everything else to a log. A child that gave a result waits for more
work; after an error it ends. When the caller dies, the child sees its input end, and ends.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pipeline.common import errors
from pipeline.common.errors import UserError
from pipeline.common.linux import anonymous_memory
from pipeline.run.child import Child
from pipeline.run.child import Event as Event

OnEvent = Callable[[Event], None]
FRESH_STATUS = 75
"""Exit status of a child that leaves its work to a fresh process (EX_TEMPFAIL)."""


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
        self._child = Child(module, log, environment)

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
            self._child.logs_to(log)
            self._child.tell({"log": str(log), "spec": spec})
            result = self._converse(on_event)
        except BaseException:
            self.end()
            raise
        self._child.settled()
        return result

    def _converse(self, on_event: OnEvent) -> Event:
        """Follow the child to its result, which is returned."""
        for event in self._child.events():
            if event["event"] == "result":
                return event
            if event["event"] == "needs_fresh_process":
                raise NeedsFreshProcess(event["message"])
            if event["event"] == "error":
                raise self._child.error(event)
            on_event(event)
        raise self._child.crash()

    @property
    def is_alive(self) -> bool:
        return self._child.is_alive

    @property
    def memory(self) -> int:
        """Bytes that come free when it ends."""
        return anonymous_memory(self._child.pid)

    def end(self) -> None:
        """Make sure that the process and its own children are gone."""
        self._child.end()


class Reporter:
    """The child's way to tell the caller what it is doing."""

    def __init__(self, handle: int) -> None:
        self._file = os.fdopen(handle, "w", buffering=1, encoding="utf-8")

    def send(self, event: str, **fields: Any) -> None:
        self._file.write(json.dumps({"event": event, **fields}) + "\n")

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        self.send("progress", done=done, total=total, unit=unit, **fields)

    def ready(self) -> None:
        """An engine has started: the time until now was no work."""
        self.send("ready")

    def note(self, message: str) -> None:
        """A sentence that the user should see."""
        self.send("note", message=message)


def each(stage: Callable[[Event, Reporter], Event]) -> Callable[[Event, Reporter], Event]:
    """A stage that makes one artifact of one spec, as one that makes those of several jobs."""

    def work(spec: Event, reporter: Reporter) -> Event:
        common = {name: value for name, value in spec.items() if name != "jobs"}
        return {"artifacts": [stage({**common, **job}, reporter)["artifact"] for job in spec["jobs"]]}

    return work


def serve(
    work: Callable[[Event, Reporter], Event], preload: Sequence[str] = (), begin: Callable[[], None] = lambda: None
) -> NoReturn:
    """The child's main: do the work of one spec after another, report each result, and exit after an error or at the end.

    A spec names the store and jobs, each with its request; the result names the artifacts' paths in the order of the jobs.

    With the path of a spec as the command line's argument, do that one's.

    Args:
        preload: modules to import while the first spec is still to come.
        begin: called before that.
    """
    if len(sys.argv) > 1:
        _serve_file(Path(sys.argv[1]), work)
    reporter = as_child()
    begin()
    for name in preload:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        order = json.loads(line)
        log_to(order["log"])
        with answering(reporter):
            result = work(order["spec"], reporter)
        sys.stdout.flush()
        sys.stderr.flush()
        reporter.send("result", **result)
    _exit(0)


def as_child() -> Reporter:
    """Have standard output for events alone, what is printed go to the log, and this process end with its caller."""
    reporter = Reporter(os.dup(1))
    os.dup2(2, 1)
    threading.Thread(target=_end_with_caller, daemon=True).start()
    return reporter


@contextmanager
def answering(reporter: Reporter) -> Iterator[None]:
    """Tell the caller of an error that is an answer, and end this process with it."""
    try:
        yield
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


def log_to(path: str) -> None:
    """Have what this process prints go to a file, after what is there."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def own_log() -> Path:
    """The file that what this process prints goes to; the null device if it is none."""
    try:
        found = Path(os.readlink("/proc/self/fd/2"))
    except OSError:
        return Path(os.devnull)
    return found if found.is_file() else Path(os.devnull)


def _end_with_caller() -> None:
    """Standard input ends when the caller does. Files are whole or absent at any moment, so ending at once is safe."""
    caller = select.poll()
    caller.register(0, 0)  # its end alone is waited for: what the caller writes is read elsewhere
    caller.poll()
    os.killpg(os.getpgid(0), signal.SIGKILL)
