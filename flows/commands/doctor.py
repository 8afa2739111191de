"""`rollbook doctor`: what is installed, which device, and what would go wrong."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pipeline.prepare.doctor import Diagnosis

MARKS = {"ok": ("✓", "green"), "note": ("·", "dim"), "warning": ("!", "yellow"), "error": ("✗", "red")}


def doctor(
    config: Annotated[Path | None, typer.Argument(help="Also check this run.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Say what is installed, which engine and device there are, and what would go wrong (then the exit status is 1)."""
    from pipeline.config.load import load_config
    from pipeline.prepare import doctor as looking

    settings = load_config(config) if config else None
    findings = list(looking.examine(settings.directory if settings else Path("runs")))
    if settings:
        from pipeline.common.errors import UserError
        from pipeline.prepare.check import check_config, named

        try:
            for what, found in named(check_config(settings)):
                findings.append(looking.Diagnosis("warning" if what == "warning" else "ok", what, found))
        except UserError as error:
            findings.append(looking.Diagnosis("error", "config", str(error)))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings)
    raise typer.Exit(1 if any(finding.level == "error" for finding in findings) else 0)


def _print(findings: list[Diagnosis]) -> None:
    from rich.text import Text

    from flows.commands.console import answer_console

    console = answer_console()
    for finding in findings:
        mark, color = MARKS[finding.level]
        line = Text.assemble((f"{mark} ", color), (f"{finding.what:14} ", "bold"), finding.found)
        if finding.remedy:
            line.append(f"  ({finding.remedy})", "dim" if finding.level == "note" else color)
        console.print(line, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)
