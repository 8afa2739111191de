"""`rollbook view`: completions in a browser on this machine."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer


def view(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Run directories, stores, or rollouts artifacts such as imports.", show_default=False
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where on this machine; 0: a free one.")] = 0,
) -> None:
    """Look through all completions in a browser: search, filter, sort, compare. For this machine alone; nothing is changed."""
    from pipeline.look.view.parts import parts_of
    from pipeline.look.view.pool import RowPool
    from pipeline.look.view.screens import Screens
    from pipeline.look.view.server import ViewServer

    pool = RowPool(parts_of(places))
    screens = Screens(pool, ", ".join(places))
    screens.prepare()
    with ViewServer(screens, port) as server, suppress(KeyboardInterrupt):
        typer.echo(server.url)
        typer.echo(f"rollbook: {pool.total:,} completions; Ctrl-C ends this", err=True)
        server.serve_forever()


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(view)
