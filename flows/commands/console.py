"""Progress on the terminal: bars where there is one, log lines where there is none."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from pipeline.common.text import visible
from pipeline.look.report.terminal import closing_lines
from pipeline.run.process import Event
from pipeline.run.state import Run

LOG_SECONDS = 10.0
"""Seconds between progress lines of one stage without a terminal."""
START_SECONDS = 1.0
"""A start that takes longer is told apart."""
FILE_WIDTH = 160
"""Characters of a line where the output goes to a file or a program, and nothing says how wide the terminal is."""


def answer_console(**settings: Any) -> Console:
    """Standard output for answers: as wide as the terminal, also where it goes through a pager; long lines where there is none.

    COLUMNS wins.
    """
    console = Console(**settings)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        console.width = os.get_terminal_size(2).columns if os.isatty(2) else FILE_WIDTH
    return console


def print_closing(console: Console, run: Run) -> None:
    """The lines that follow a run's table: what went wrong in red, what is off in yellow."""
    wrong = run.stopped is not None and not run.stopped.healthy
    styles = {"stopped:": "bold red" if wrong else "", "warning:": "yellow"}
    for line in closing_lines(run):
        console.print(line, style=styles.get(line.split(maxsplit=1)[0]), highlight=False, soft_wrap=True, markup=False)


class StageConsole:
    """Shows what stages do. A context manager; `tell` is a run's `on_stage`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._started: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._ready: dict[str, float] = {}
        self._progress: Progress | None = None
        if console.is_terminal:
            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:14}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}", style="cyan"),
                TimeElapsedColumn(),
                console=console,
                transient=True,
            )

    def __enter__(self) -> StageConsole:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress:
            self._progress.stop()

    def tell(self, stage: str, event: Event) -> None:
        match event["event"]:
            case "started":
                self._start(stage)
            case "ready":
                self._ready[stage] = time.monotonic()
            case "progress":
                self._advance(stage, event)
            case "note":
                self._console.print(f"[dim]{stage}:[/dim] {escape(visible(event['message']))}", highlight=False)
            case "found":
                self._console.print(f"[green]✓[/green] {stage:16} [dim]already there[/dim]", highlight=False)
            case "finished":
                self._finish(stage, event.get("seconds"))
            case "failed":
                self._fail(stage, visible(event["message"]))

    def _start(self, stage: str) -> None:
        self._started[stage] = self._told[stage] = time.monotonic()
        self._ready.pop(stage, None)
        if self._progress:
            if stage in self._bars:  # its first attempt crashed
                self._progress.remove_task(self._bars[stage])
            self._bars[stage] = self._progress.add_task(stage, total=None, speed="starting")

    def _advance(self, stage: str, event: Event) -> None:
        speed = f"{event['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in event else ""
        if of_each := event.get("replicas"):
            speed += f" ({' + '.join(f'{one:,.0f}' for one in of_each)})"
        if self._progress and stage in self._bars:
            self._progress.update(self._bars[stage], completed=event["done"], total=event["total"], speed=speed)
        elif time.monotonic() - self._told.get(stage, 0.0) > LOG_SECONDS:
            self._told[stage] = time.monotonic()
            self._console.print(f"{stage}: {event['done']} of {event['total']} {event['unit']} {speed}", highlight=False)

    def _finish(self, stage: str, working: float | None) -> None:
        """Say how long a stage worked, as the table does, and apart from it how long its process and engine took to start.

        What artifacts say of their time has the engine's start in it.
        """
        if self._progress and stage in self._bars:
            self._progress.remove_task(self._bars.pop(stage))
        seconds = time.monotonic() - self._started.get(stage, time.monotonic())
        starting = 0.0 if working is None else seconds - working
        apart = f", after {starting:.1f} s to start" if starting >= START_SECONDS else ""
        within = self._ready.get(stage, 0.0) - self._started.get(stage, 0.0) - starting
        if working is not None and within >= START_SECONDS:
            apart += f"; {within:.1f} s of them the engine's start"
        self._console.print(f"[green]✓[/green] {stage:16} [dim]{working or seconds:6.1f} s{apart}[/dim]", highlight=False)

    def _fail(self, stage: str, message: str) -> None:
        if self._progress and stage in self._bars:
            self._progress.remove_task(self._bars.pop(stage))
        self._console.print(Text.assemble(("✗", "red"), f" {stage:16} ", (message, "dim")))
