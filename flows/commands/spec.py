"""`rollbook spec`: what the train stage of an iteration is given, as a file, to be started by torchrun."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline.common.errors import StageFailed, UserError


def spec(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The file to write.", show_default=False)],
    iteration: Annotated[int, typer.Option("--iteration", "-i", min=0, help="Whose training.")] = 0,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a setting.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Do all that comes before a training, and write what that training is given: for torchrun, on several machines.

    `torchrun … -m pipeline.train FILE` then makes the checkpoint, and `rollbook run` finds it in the store and goes on.
    """
    from rich.console import Console

    from flows.answers import hands, working
    from flows.chain import chain
    from flows.commands.console import StageConsole
    from pipeline.config.load import load_config
    from pipeline.prepare.check import check_config
    from pipeline.run.answers import WritesDown
    from pipeline.store import Store

    settings = load_config(config, overrides or ())
    if iteration >= settings.iterations:
        raise UserError(f"--iteration {iteration}: this run has iterations={settings.iterations}")
    check_config(settings)
    with StageConsole(Console(stderr=True)) as console, hands() as processes:
        inner = working(settings, processes, console.tell)
        answers = WritesDown(inner, Store(settings.store_url), f"train {iteration}", out)
        found = chain(settings, answers, until=("train", iteration))
    if found.missing != f"train {iteration}":
        raise StageFailed(f"the checkpoint of iteration {iteration} is there already, so nothing is left to train")
    command = f"torchrun --nproc-per-node {settings.train.processes} -m pipeline.train {shlex.quote(str(out))}"
    typer.echo(json.dumps({"spec": str(out), "command": command}, indent=2) if as_json else command)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(spec)
