"""`rollbook schedule` and `rollbook deploy`: a run that goes on by itself."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.common.errors import UserError

Config = Annotated[Path, typer.Argument(help="A run's YAML file. Its `iterations` are those of one firing.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set train.epochs=4", show_default=False)
]
MaxHours = Annotated[
    float | None, typer.Option(min=0.0, help="Start no further stage of a firing after this long; the next one goes on.")
]


def schedule(
    config: Config,
    cron: Annotated[str, typer.Option(help='When to fire, such as "0 2 * * *" (UTC).', show_default=False)],
    max_hours: MaxHours = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the Prefect server that is started with it.")] = 4200,
    overrides: Overrides = None,
) -> None:
    """Fire a run on a schedule, from this process, until it is stopped. Each firing goes on where the last one ended.

    A Prefect server with its UI is started beside it, unless PREFECT_API_URL names one.
    """
    from flows.server import LocalServer

    server = LocalServer(whole=True, port=port)
    try:
        _check_cron(cron)
        from flows.schedule import deployment_name, parameters_of, serve

        parameters_of(config, overrides or [], max_hours)
        server.wait()
        typer.echo(f"{deployment_name(config, overrides or [])}: fires at {cron!r}; Prefect's UI: {server.ui}", err=True)
        serve(config, cron, overrides or [], max_hours)
    finally:
        server.stop()


def deploy(
    config: Config,
    pool: Annotated[str, typer.Option(help="Prefect work pool whose workers will do the firings.", show_default=False)],
    cron: Annotated[str | None, typer.Option(help='When to fire, such as "0 2 * * *". Default: only when asked.')] = None,
    max_hours: MaxHours = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Register a run with a Prefect work pool of the server that PREFECT_API_URL names."""
    if cron is not None:
        _check_cron(cron)
    from flows.schedule import deploy as register

    with contextlib.redirect_stdout(sys.stderr):  # Prefect says there what it did
        name = register(config, pool, cron, overrides or [], max_hours)
    if as_json:
        typer.echo(json.dumps({"deployment": name, "pool": pool, "cron": cron}, indent=2))
        return
    typer.echo(f"registered {name}; start a worker with `prefect worker start --pool {pool}`,")
    typer.echo(f"and a firing by hand with `prefect deployment run '{name}'`")


def _check_cron(cron: str) -> None:
    """Refuse what Prefect would refuse later, in one line."""
    if len(cron.split()) != 5:
        raise UserError(f"--cron {cron!r}: expected five fields (minute hour day month weekday), such as '0 2 * * *'")
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron)
    except ValidationError as error:
        raise UserError(f"--cron {cron!r}: {error.errors()[0]['msg']}") from None


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(schedule)
    app.command()(deploy)
