"""`rollbook report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.options import AsJson
from pipeline.common.errors import UserError


def report(
    run_directories: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories; several are compared.")],
    out: Annotated[
        Path | None, typer.Option(help="The file to write. Default: report.html in the run directory, or runs.html here.")
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown for a pull request instead.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write one self-contained HTML page with a run's curves, rollouts, settings and lineage, or one that compares runs."""
    from pipeline.look.report.markdown import markdown
    from pipeline.look.report.page import write_report
    from pipeline.look.report.runs import labels_of, write_runs
    from pipeline.run.record import directory_of, load_run
    from pipeline.store.files import write_text

    runs = [load_run(directory) for directory in run_directories]
    if as_markdown and as_json:
        raise UserError("--markdown and --json: choose one")
    if as_markdown:
        text = "\n".join(markdown(run) for run in runs)
        typer.echo(text, nl=False) if out is None else write_text(out, text)
    elif len(runs) > 1:
        labels = labels_of(run_directories, runs)
        _say_page(write_runs(dict(zip(labels, runs, strict=True)), out or Path("runs.html")), runs, as_json)
    else:
        _say_page(write_report(runs[0], out or directory_of(run_directories[0]) / "report.html"), runs, as_json)


def _say_page(page: Path, runs: list[Any], as_json: bool) -> None:
    if as_json:
        from pipeline.run.status import status as status_of

        typer.echo(json.dumps({"page": str(page), "runs": [status_of(run) for run in runs]}, indent=2))
    else:
        typer.echo(str(page))


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(report)
