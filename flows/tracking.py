"""`rollbook track`: a run's figures in a dashboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def track(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    to: Annotated[str, typer.Option(help="tensorboard, wandb or mlflow.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where trackers that write files do. Default: trackers in the run.")] = None,
) -> None:
    """Send a run's figures, as far as it is, to a tracker. Sending again replaces what was sent."""
    from pipeline.run import load_run
    from pipeline.trackers.tracker import send

    typer.echo(send(load_run(run_directory), to, out or run_directory / "trackers"))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(track)
