"""`rollbook status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import AsJson


def status(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")], as_json: AsJson = False
) -> None:
    """Show how far a run is, and its figures per iteration."""
    from flows.commands.console import answer_console, print_closing
    from pipeline.look.report.terminal import iteration_table
    from pipeline.run.record import load_run
    from pipeline.run.status import status as status_of

    found = load_run(run_directory)
    if as_json:
        typer.echo(json.dumps(status_of(found), indent=2))
        return
    console = answer_console()
    console.print(iteration_table(found))
    print_closing(console, found)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(status)
