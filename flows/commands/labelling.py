"""`rollbook label`: people compare two stored completions at a time, in the terminal or in a browser."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from pipeline.regrade.pairs import LabelFile, ShownPair

KEYS = "1 the first is better · 2 the second · = as good as each other · s skip · q stop"


def label(
    rollouts: Annotated[str, typer.Argument(help="A rollouts artifact, from whatever run or import.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="File of labels (.jsonl). One that is there is gone on with.")],
    pairs: Annotated[int | None, typer.Option("--pairs", "-n", min=1, help="Labels to give. Default: one of each group.")] = None,
    annotator: Annotated[str, typer.Option("--annotator", help="Whose labels they are.")] = "",
    seed: Annotated[int, typer.Option(help="Decides which pairs there are, and their order.")] = 0,
    page: Annotated[bool, typer.Option("--page", help="In a browser on this machine, not in the terminal.")] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="With --page: where on this machine; 0: a free one.")] = 0,
) -> None:
    """Compare pairs of completions by hand, a key for each. Every label is on the disk before the next pair is shown.

    The same command goes on after the last label. The file is one of preferences: `rollbook import FILE --format preference`.
    """
    from flows.commands.console import answer_console
    from pipeline.regrade.pairs import LabelFile, pairs_of
    from pipeline.regrade.plan import rollouts_at

    artifact = rollouts_at(rollouts)
    labels = LabelFile(out, artifact, annotator)
    shown = list(pairs_of(artifact, seed))
    wanted = min(pairs or len(shown), len(shown))
    console = answer_console()
    if page:
        _serve(shown, labels, wanted, port)
    else:
        _ask_all(console, [pair for pair in shown if not labels.has(pair)], labels, wanted)
    console.print(f"{len(labels)} of {wanted} pairs are labelled in {out}", markup=False, highlight=False, soft_wrap=True)


def _serve(shown: list[ShownPair], labels: LabelFile, wanted: int, port: int) -> None:
    """Have pairs compared on a page, until Ctrl-C."""
    from pipeline.look.view.labelling import LabelPages
    from pipeline.look.view.server import FormServer

    with FormServer(LabelPages(shown, labels, wanted), port) as server, suppress(KeyboardInterrupt):
        typer.echo(server.url)
        typer.echo("rollbook: every label is written at once; Ctrl-C ends this", err=True)
        server.serve_forever()


def _ask_all(console: Console, shown: list[ShownPair], labels: LabelFile, wanted: int) -> None:
    """Show pairs until there are as many labels as wanted, the pairs end, or the annotator stops."""
    verdicts = {"1": "first", "2": "second", "=": "equal"}
    for pair in shown:
        if len(labels) >= wanted:
            return
        _show(console, pair, f"{len(labels) + 1} of {wanted}")
        while (key := _key()) not in (*verdicts, "s", "q", ""):
            console.print(KEYS, style="dim", markup=False, highlight=False)
        if key in ("q", ""):
            return
        if key in verdicts:
            labels.add(pair, verdicts[key])  # type: ignore[arg-type]


def _show(console: Console, pair: ShownPair, place: str) -> None:
    from rich.panel import Panel
    from rich.text import Text

    from pipeline.common.text import visible

    console.rule(place, style="dim")
    console.print(Text(visible(pair.prompt)))
    for number, text in (("1", pair.first), ("2", pair.second)):
        console.print(Panel(Text(visible(text)), title=number, title_align="left"))
    console.print(KEYS, style="dim", markup=False, highlight=False)


def _key() -> str:
    """One key of a terminal; of anything else one line, and nothing at its end."""
    if sys.stdin.isatty():
        import click

        return click.getchar().lower()
    line = sys.stdin.readline()
    return line.strip().lower() or ("s" if line else "")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(label)
