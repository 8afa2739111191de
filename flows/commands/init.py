"""`rollbook init`: a config for the user's own model, data and reward, after a few questions."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from flows.commands.completion import algorithm_names
from pipeline.common.errors import UserError

if TYPE_CHECKING:
    from pipeline.prepare.data import Questions
    from pipeline.prepare.interview import Needed, Result

CONFIG, REWARD = "run.yaml", "reward.py"
ANY_ALGORITHM = "grpo"
"""Answers the question for one where a recipe decides it."""
SHOWN_ROWS, SHOWN_CHARACTERS = 3, 60
Value = TypeVar("Value")


def init(
    directory: Annotated[Path, typer.Argument(help="Where the config is written. Default: here.", show_default=False)] = Path(
        "."
    ),
    model: Annotated[str | None, typer.Option(help="A Hugging Face model directory, or a hub name.", show_default=False)] = None,
    data: Annotated[
        str | None, typer.Option(help="Questions and answers: .jsonl, .json, .parquet, .csv or .tsv.", show_default=False)
    ] = None,
    heldout: Annotated[
        str | None, typer.Option(help="A second such file to judge by. Default: a tenth of the first.", show_default=False)
    ] = None,
    question: Annotated[str | None, typer.Option(help="Column of the questions.", show_default=False)] = None,
    answer: Annotated[str | None, typer.Option(help="Column of the answers.", show_default=False)] = None,
    answer_pattern: Annotated[
        str | None, typer.Option(help="Regular expression for the answer within a worked solution.", show_default=False)
    ] = None,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat template.", show_default=False)
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Text given to the model, such as 'Q: {question} A:'.", show_default=False)
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="exact, math, regex, own (writes reward.py), or your module:function.", show_default=False)
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="With --reward regex: what finds the answer.", show_default=False)] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(help="One of those that `rollbook algorithms` lists.", show_default=False, autocompletion=algorithm_names),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A paper's method, such as topr, with its settings: docs/recipes.md lists them.", show_default=False),
    ] = None,
    size: Annotated[str | None, typer.Option(help="cpu or gpu: sizes for a first run.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option(help="The run's name. Default: the directory's.", show_default=False)] = None,
    set_aside: Annotated[bool, typer.Option("--set-aside", help="Go on without rows that do not fit.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: take the defaults.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there (never reward.py).")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines; ask nothing.")] = False,
) -> None:
    """Write a commented config for your own model, data and reward, and check it.

    Asks for what no option says, if there is a terminal.
    """
    from pipeline.prepare.interview import Wishes, interview
    from pipeline.prepare.recipes import recipe_text, with_recipe

    if recipe and algorithm:
        raise UserError(f"--algorithm {algorithm}: the recipe {recipe} says which algorithm; leave one of them out")
    method = recipe_text(recipe) if recipe else None
    _refuse_existing(directory, [CONFIG], force)
    wishes = Wishes(
        directory=directory,
        model=model,
        data=data,
        heldout=heldout,
        question=question,
        answer=answer,
        answer_pattern=answer_pattern,
        chat=chat,
        template=template,
        reward=reward,
        pattern=pattern,
        algorithm=algorithm or (ANY_ALGORITHM if recipe else None),
        size=size,
        name=name,
        set_aside=set_aside,
    )
    result = interview(wishes, _Asker(talks=sys.stdin.isatty() and not (yes or as_json)))
    text = result.draft.text()
    written = _write(directory, result, with_recipe(text, method) if method else text, force)
    _conclude(directory, result, written, as_json)


class _Asker:
    """Asks on the terminal, again after an answer that cannot be."""

    def __init__(self, *, talks: bool) -> None:
        self._talks = talks

    def __call__(self, given: str | None, option: str, question: str, default: str | None, read: Callable[[str], Value]) -> Value:
        if given is not None or not self._talks:
            if given is None and default is None:
                raise UserError(f"{option}: needed, and there is nobody to ask ({question})")
            return read(given if given is not None else str(default))
        while True:
            shown = None if default is None else default.replace("\n", "\\n")
            try:
                answer = typer.prompt(question, default=shown, err=True)
            except typer.Abort:
                typer.echo(err=True)
                raise UserError("stopped; nothing is written") from None
            try:
                return read(default if answer == shown and default is not None else answer)
            except UserError as error:
                typer.echo(f"  {error}", err=True)

    def require(self, *needed: Needed) -> None:
        missing = [each for each in needed if each.given is None]
        if missing and not self._talks:
            options = " ".join(f"{each.option} …" for each in missing)
            listed = "; ".join(f"{each.option} ({each.what})" for each in missing)
            raise UserError(f"needed, and there is nobody to ask: {listed}. Add {options}")

    def show(self, questions: Questions) -> None:
        if not self._talks:
            return
        from rich.console import Console
        from rich.table import Table

        from pipeline.common.text import visible

        table = Table(*(visible(column) for column in questions.columns), title=f"{len(questions.rows):,} rows", box=None)
        for row in questions.rows[:SHOWN_ROWS]:
            texts = (" ".join(visible(str(row.get(column, ""))).split()) for column in questions.columns)
            table.add_row(*(text[:SHOWN_CHARACTERS] + "…" * (len(text) > SHOWN_CHARACTERS) for text in texts))
        Console(stderr=True, markup=False).print(table)


def _refuse_existing(directory: Path, names: list[str], force: bool) -> None:
    there = [str(directory / name) for name in names if (directory / name).exists()]
    if there and not force:
        raise UserError(f"{', '.join(there)}: already there. Choose another directory, or replace with --force")


def _write(directory: Path, result: Result, config: str, force: bool) -> list[Path]:
    """Write the config and what it names; an own reward that is there stays as it is."""
    from pipeline.prepare.data import write_rows
    from pipeline.prepare.draft import OWN, REWARD_FILE
    from pipeline.store.files import whole_file

    _refuse_existing(directory, list(result.files), force)
    for name, rows in result.files.items():
        write_rows(directory / name, rows)
    texts = {CONFIG: config}
    if result.draft.reward == "own" and result.draft.own == OWN and not (directory / REWARD).exists():
        texts[REWARD] = REWARD_FILE
    for name, text in texts.items():
        with whole_file(directory / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return [directory / name for name in (*result.files, *texts)]


def _conclude(directory: Path, result: Result, written: list[Path], as_json: bool) -> None:
    """Check what was written as `rollbook check` does, and say what comes next."""
    from pipeline.common.near import did_you_mean
    from pipeline.common.text import visible
    from pipeline.config.load import load_config
    from pipeline.prepare.check import check_config

    lines, problem = [], None
    with contextlib.chdir(directory):
        try:
            config = load_config(CONFIG)
            lines = check_config(config) if result.model.files else []
        except UserError as error:
            problem = error
    change = [] if directory.resolve() == Path.cwd() else [f"cd {shlex.quote(str(directory))}"]
    following = [*change, f"rollbook {'run' if lines else 'check'} {CONFIG}"]
    if as_json:
        found = {
            "written": [str(path) for path in written],
            "check": lines,
            "problem": problem and str(problem),
            "next": following,
        }
        typer.echo(json.dumps(found, indent=2))
    else:
        for path in written:
            typer.echo(f"wrote      {path}")
        if not result.model.files:
            near = did_you_mean(result.model.path)
            typer.echo(f"model      {result.model.path}: no directory here, so taken for a hub name; `check` fetches it{near}")
        for line in lines[:-1]:
            typer.echo(line)
        if problem is None:
            typer.echo(f"\nLook at {directory / CONFIG}, then:\n")
            typer.echo("\n".join(f"    {visible(line)}" for line in following))
    if problem is not None:
        raise UserError(f"{directory / CONFIG} is written, but is not sound yet: {problem}")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(init)
