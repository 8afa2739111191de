"""`rollbook track`: a run's figures in a dashboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def track(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    to: Annotated[str, typer.Option(help="tensorboard, wandb or mlflow.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where trackers that write files do. Default: trackers in the run.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Send a run's figures, as far as it is, to a tracker. Sending again replaces what was sent."""
    from pipeline.look.trackers.tracker import send
    from pipeline.run.record import directory_of, load_run

    said = send(load_run(run_directory), to, out or directory_of(run_directory) / "trackers")
    typer.echo(json.dumps({"to": to, "sent": said}, indent=2) if as_json else said)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(track)
