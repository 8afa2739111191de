"""`rollbook probe`: what a run's graders give to answers that should earn nothing, and to right ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.algorithms import Plugins
from flows.commands.options import AsJson, Config, Overrides

if TYPE_CHECKING:
    from pipeline.rewards.probing.probe import Probed, Surprise, Tally

COLORS = {"EARNS": "bold red", "a few earn": "yellow", "in part": "yellow", "not taken": "yellow", "not asked": "dim"}
WIDE = 120
"""Characters of a line from which on examples have a column; in narrower ones they follow the table."""
SHOWN = 48
"""Characters of an answer that the table shows."""


def probe(
    config: Config,
    overrides: Overrides = None,
    plugins: Plugins = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Training prompts that are asked about.")] = 64,
    written: Annotated[
        list[str] | None,
        typer.Option("--written", help="One more way to write an answer down: 'Final: {answer}'.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Ask a run's graders about answers that should earn nothing, and about right ones (exit status 1 if something is off).

    What should earn nothing: nothing at all, the question, the answer's neighbors, many answers in one, half of a solution,
    one text for all questions. What should earn everything: the right answer, however it is written down.
    """
    from pipeline.config.load import load_config, with_plugins
    from pipeline.prepare.probing import probe_run

    settings = with_plugins(load_config(config, overrides or ()), plugins or ())
    found = probe_run(settings, rows=rows, written=written or ())
    if as_json:
        typer.echo(json.dumps({"ok": not found.problems, **asdict(found)}, indent=2))
    else:
        _print(found)
    raise typer.Exit(1 if found.problems else 0)


def _print(found: Probed) -> None:
    from flows.commands.console import answer_console
    from pipeline.common.text import visible

    console = answer_console()
    for column, why in found.skipped.items():
        console.print(f"{column}: {why}", markup=False, highlight=False, soft_wrap=True)
    for title, should_earn in (("Answers that should earn nothing", "nothing"), ("Right answers, as written", "everything")):
        tallies = [tally for tally in found.tallies if tally.should_earn == should_earn]
        if found.unearned == found.rows:
            continue
        console.print(_table(title, tallies, found.components, examples=console.width >= WIDE))
        for tally in tallies if console.width < WIDE else ():
            if tally.example is not None:
                console.print(f"{tally.kind}: {_example(tally.example)}", markup=False, highlight=False, soft_wrap=True)
    lines = [f"{found.rows} prompts; where nothing else is said, answers are written {found.written}"]
    if found.unearned:
        lines = [
            f"{found.unearned} of {found.rows} prompts are left out: their right answer earns nothing, however it is written"
        ]
    lines += [f"note:      {note}" for note in found.notes]
    lines += [f"problem:   {problem}" for problem in found.problems] or ["ok"]
    for line in lines:
        console.print(visible(line), markup=False, highlight=False, soft_wrap=True)


def _table(title: str, tallies: list[Tally], components: list[str], *, examples: bool) -> object:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from pipeline.common.text import number, percent

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("answers", no_wrap=True)
    parts = components if len(components) > 1 else []
    failed = any(tally.failed for tally in tallies)
    for name in ("asked", "earned", "share", "mean", *parts, *(["failed"] if failed else [])):
        table.add_column(name.removeprefix("reward_"), justify="right")
    table.add_column("verdict", no_wrap=True)
    if examples:
        table.add_column("example")
    for tally in tallies:
        figures = [str(tally.asked), str(tally.earned), percent(tally.share)] if tally.asked else ["", "", ""]
        figures += [number(tally.means[name]) if tally.asked else "" for name in ("reward", *parts)]
        figures += [str(tally.failed or "")] if failed else []
        verdict = Text(tally.verdict, COLORS.get(tally.verdict, ""))
        table.add_row(tally.kind, *figures, verdict, *([Text(_example(tally.example))] if examples else []))
    return table


def _example(surprise: Surprise | None) -> str:
    """An answer, what it earned, and the right one."""
    from pipeline.common.text import visible

    if surprise is None:
        return ""
    earned = "no reward" if surprise.reward is None else f"earned {surprise.reward:g}"
    why = f" ({surprise.why[:SHOWN]})" if surprise.why else ""
    return visible(f"{_short(surprise.text)} for {_short(surprise.answer)} {earned}{why}")


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(probe)
