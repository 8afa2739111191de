"""`rollbook algorithms`: what there is, from the declarations alone."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from flows.commands.completion import algorithm_names

Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", help="A Python file of your own with algorithms; it is run. May be repeated.", show_default=False),
]


def algorithms(
    name: Annotated[
        str | None, typer.Argument(help="Show one in full.", show_default=False, autocompletion=algorithm_names)
    ] = None,
    plugins: Plugins = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """List the algorithms: formula, paper, settings and the columns they need."""
    from flows.commands.console import answer_console
    from pipeline.algorithms.describe import describe_all, describe_one, table

    files = plugins or ()
    if as_json:
        typer.echo(json.dumps([describe_one(name, files)] if name else describe_all(files), indent=2))
    elif name:
        for key, value in describe_one(name, files).items():
            typer.echo(f"{key:12} {value if not isinstance(value, dict | list) else json.dumps(value)}")
    else:
        answer_console().print(table(files))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(algorithms)
