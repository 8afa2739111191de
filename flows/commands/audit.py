"""`rollbook audit` and `rollbook lineage`: what a directory is, whether it is whole, and where it comes from."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, TaskID

Format = Literal["text", "json", "prov", "openlineage"]
READING = "reading"
LOG_SECONDS = 10.0
"""Seconds between lines of progress without a terminal."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(audit)
    app.command()(lineage)


def audit(
    path: Annotated[
        str, typer.Argument(help="An artifact, a run directory or a store; a directory or s3://…", show_default=False)
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Also recompute: advantages, rewards, logprobs, evaluations, training steps.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines; writes the page only with --out.")] = False,
    out: Annotated[Path | None, typer.Option(help="The page to write. Default: audit.html in the working directory.")] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="With --deep: completions per artifact whose logprobs are recomputed; 0 for all.")
    ] = 64,
    steps: Annotated[int, typer.Option(min=0, help="With --deep: training steps that are taken again, per checkpoint.")] = 2,
) -> None:
    """Say whether an artifact, a run or a store is what it claims to be. Changes nothing, and runs none of its code.

    Exit status: 0 sound, 1 findings, 2 cannot tell.
    """
    from rich.console import Console
    from rich.text import Text

    from flows.commands.console import answer_console
    from pipeline.common.errors import StageFailed, UserError
    from pipeline.look.audit.audit import audit as look
    from pipeline.look.audit.results import as_json as as_json_of
    from pipeline.look.audit.terminal import summary

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    with _Progress(Console(stderr=True)) as progress, _quiet():
        try:
            found = look(path, deep=deep, samples=samples, steps=steps, on_progress=progress.tell)
        except StageFailed as error:  # the storage is out of reach, or there is no room for copies
            raise UserError(str(error)) from None
    if out is not None or not as_json:
        from pipeline.look.audit.page import write_page

        page = write_page(found, out or Path("audit.html"))
    if as_json:
        typer.echo(json.dumps(as_json_of(found), indent=2))
    else:
        console = answer_console()
        for part in summary(found):
            console.print(part, highlight=False, soft_wrap=isinstance(part, Text))  # a command stays one line
        console.print(f"page: {page}", highlight=False, markup=False, soft_wrap=True)
    raise typer.Exit(found.status)


def lineage(
    what: Annotated[
        str, typer.Argument(help="An artifact, a run directory, a store, or the first digits of an id.", show_default=False)
    ],
    where: Annotated[
        list[str] | None, typer.Option("--in", help="With an id: runs or stores to look in. Default: every run in runs/.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="text, JSON, W3C PROV-JSON, or OpenLineage events.")] = "text",
    everything: Annotated[bool, typer.Option("--all", help="Of a run: every artifact, not only its last checkpoint.")] = False,
) -> None:
    """Print where artifacts come from: what each was made from, by which stage and command.

    Of a run, the ancestry of its last checkpoint; --all, and formats for machines, have every artifact.
    """
    from pipeline.look.audit.exports import openlineage, prov
    from pipeline.look.audit.lineage import as_json, find, graph_of
    from pipeline.look.audit.scope import can_be, last_checkpoint
    from pipeline.look.audit.terminal import tree

    if what.startswith("s3:/") or (can_be(what, Path()) and Path(what).exists()):
        audited, shelf = _opened(what)
    else:
        shelf = _shelves(where)
        audited = (find(shelf, what),)
    last = shelf.get(last_checkpoint(Path(what)) or "") if form == "text" and not everything else None
    graph = graph_of((last,) if last else audited, shelf)
    if form == "text":
        from rich.text import Text

        from flows.commands.console import answer_console

        console = answer_console()
        for part in tree(graph, graph.leaves):
            console.print(part, highlight=False, soft_wrap=isinstance(part, Text))  # a command stays one line
        if last and (others := len(graph_of(audited, shelf).nodes) - len(graph.nodes)):
            console.print(f"{others} other artifacts of the run with --all", style="dim", highlight=False)
    else:
        write = {"json": as_json, "prov": prov, "openlineage": openlineage}[form]
        typer.echo(json.dumps(write(graph), indent=2))


def _opened(path: str) -> tuple[tuple[Any, ...], Any]:
    """The artifacts of a path, and all that can be looked up beside them."""
    from pipeline.look.audit.findings import Ledger
    from pipeline.look.audit.gather import gather
    from pipeline.look.audit.scope import scope_of

    found = gather(scope_of(path), Ledger())
    return found.audited, found.shelf


def _shelves(where: list[str] | None) -> Any:
    """Everything in some runs and stores."""
    from pipeline.common.errors import UserError
    from pipeline.look.audit.holdings import Shelf

    places = where or sorted(str(run.parent) for run in Path("runs").glob("*/run.json"))
    if not places:
        raise UserError("no such path, and no runs in runs/ to look for an id in. Name a run or a store with --in")
    return Shelf(held for place in places for held in _opened(place)[1].all)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What libraries print goes to standard error: standard output is the answer."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _amount() -> ProgressColumn:
    """The column of a bar that says how much is done: bytes with their speed, or artifacts."""
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Amount(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.description != READING:
                return Text(f"{task.completed:.0f} of {task.total or 0:.0f} artifacts")
            return Text(f"{task.completed / 1e6:,.0f} of {(task.total or 0) / 1e6:,.0f} MB  {(task.speed or 0) / 1e6:,.0f} MB/s")

    return Amount()


class _Progress:
    """Bytes and their speed while files are read; artifacts while figures are recomputed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told = self._started = time.monotonic()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Progress:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:24}"), BarColumn(bar_width=30), _amount(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def tell(self, what: str, done: int, total: int) -> None:
        """Bytes while files are read, artifacts while figures are recomputed."""
        if self._bar:
            if what not in self._tasks:
                for task in self._tasks.values():
                    self._bar.remove_task(task)
                self._tasks = {what: self._bar.add_task(what, total=total)}
            self._bar.update(self._tasks[what], completed=done)
        elif time.monotonic() - self._told > LOG_SECONDS:
            self._told = time.monotonic()
            speed = done / (self._told - self._started) / 1e6
            read = f"{done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed:,.0f} MB/s"
            said = read if what == READING else f"{done} of {total} artifacts"
            self._console.print(f"{what}: {said}", highlight=False, markup=False)
