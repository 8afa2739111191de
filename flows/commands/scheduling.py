"""`rollbook schedule` and `rollbook deploy`: a run that goes on by itself."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="A run's YAML file. Its `iterations` are those of one firing.", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a setting: --set train.epochs=4", show_default=False)
]
MaxHours = Annotated[
    float | None, typer.Option(min=0.0, help="Start no further stage of a firing after this long; the next one goes on.")
]


TimeZone = Annotated[str, typer.Option(help="Zone that the cron line is in, such as Europe/Berlin.")]


def schedule(
    config: Config,
    cron: Annotated[str, typer.Option(help='When to fire, such as "0 2 * * *".', show_default=False)],
    timezone: TimeZone = "UTC",
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
        told = _when(cron, timezone)
        from flows.firings import endless
        from flows.schedule import Firings, free_slot, parameters_of, serve

        firings = Firings(cron, timezone, max_hours)
        settings, parameters = parameters_of(config, overrides or [], firings)
        server.wait()
        typer.echo(f"{settings.name}: {told}; Prefect's UI: {server.ui}", err=True)
        if warning := endless(settings.stop):
            typer.echo(f"rollbook: {warning}", err=True)
        if server.is_own:
            free_slot(settings.name, settings.directory)
        serve(settings, parameters, firings)
    finally:
        server.stop()


def deploy(
    config: Config,
    pool: Annotated[str, typer.Option(help="Prefect work pool whose workers will do the firings.", show_default=False)],
    cron: Annotated[str | None, typer.Option(help='When to fire, such as "0 2 * * *". Default: only when asked.')] = None,
    timezone: TimeZone = "UTC",
    max_hours: MaxHours = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Register a run with a Prefect work pool of the server that PREFECT_API_URL names."""
    told = _when(cron, timezone) if cron is not None else ""
    from flows.schedule import Firings
    from flows.schedule import deploy as register

    with contextlib.redirect_stdout(sys.stderr):  # Prefect says there what it did
        name = register(config, pool, overrides or [], Firings(cron, timezone, max_hours))
    if as_json:
        typer.echo(json.dumps({"deployment": name, "pool": pool, "cron": cron, "timezone": timezone}, indent=2))
        return
    if told:
        typer.echo(f"{name}: {told}", err=True)
    typer.echo(f"registered {name}; start a worker with `prefect worker start --pool {pool}`,")
    typer.echo(f"and a firing by hand with `prefect deployment run '{name}'`")


def _when(cron: str, timezone: str) -> str:
    """When a schedule fires, in words; where clocks will move a firing, that is said on standard error.

    Raises:
        UserError: it is no cron line, there is no such zone, or it never fires.
    """
    from flows.times import first_firing, shifted_firing

    first = first_firing(cron, timezone)
    if moved := shifted_firing(cron, timezone, first):
        typer.echo(
            f"rollbook: clocks of {timezone} change on {moved:%Y-%m-%d}, and {cron!r} fires at {moved:%H:%M} then. Hours outside "
            "01 to 03 are not touched, nor is UTC",
            err=True,
        )
    return f"fires at {cron!r} ({timezone}), next {first:%Y-%m-%d %H:%M %Z}"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(schedule)
    app.command()(deploy)
