"""`rollbook check`."""

from __future__ import annotations

import json

import typer

from flows.commands.algorithms import Plugins
from flows.commands.options import AsJson, Config, Overrides


def check(config: Config, overrides: Overrides = None, plugins: Plugins = None, as_json: AsJson = False) -> None:
    """Say whether a config is sound: settings, algorithm, graders, model files and prompts.

    Graders are asked about a few answers, in a process of their own; nothing else is started.
    """
    from pipeline.config.load import load_config, with_plugins
    from pipeline.prepare.check import check_config, named

    lines = check_config(with_plugins(load_config(config, overrides or ()), plugins or ()))
    if as_json:
        found = [{"what": what, "found": text} for what, text in named(lines)]
        typer.echo(json.dumps({"ok": True, "found": found}, indent=2))
        return
    for line in lines:
        typer.echo(line)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(check)
