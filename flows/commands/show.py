"""`rollbook show`: what is meant by a path and its options, and printing it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import typer
from rich.console import RenderableType

from flows.commands.console import answer_console
from pipeline.common.errors import UserError
from pipeline.common.text import json_safe
from pipeline.look.show import show
from pipeline.look.show.completions import COMPLETIONS, SETS, Selection, answers_of, select
from pipeline.look.show.query import Query
from pipeline.look.show.reading import head
from pipeline.look.show.subject import Subject, find_subject
from pipeline.look.show.tokens import By
from pipeline.store import Artifact
from schemas import TABLES


@dataclass(frozen=True)
class Wanted:
    """What was asked for."""

    query: Query
    sets: tuple[str, ...]
    """Of a run: rollouts, sampled, greedy, revised."""
    shaped: str | None
    table: str | None
    full: bool
    by: By
    as_json: bool

    def of_completions(self) -> list[str]:
        """Options that only completions have."""
        query = self.query
        options = {"prompt": query.prompt, "contains": query.contains, "reward": query.reward, "status": query.status}
        return [
            f"--{name}"
            for name, value in {**options, "sort": query.sort, "of": self.sets, "shaped": self.shaped}.items()
            if value
        ]


def show_place(path: str, wanted: Wanted) -> None:
    """Print what lies at a path.

    Raises:
        UserError: nothing is there, or the options do not fit it.
    """
    if unknown := [name for name in wanted.sets if name not in SETS]:
        raise UserError(f"--of {unknown[0]}: expected one of {', '.join(SETS)}")
    if wanted.table is not None and wanted.table not in TABLES:
        raise UserError(f"--table {wanted.table}: expected one of {', '.join(TABLES)}")
    place = find_subject(path)
    asked = wanted.of_completions()
    if wanted.table is not None or not _has_completions(place, bool(asked or wanted.query.iterations)):
        if asked:
            raise UserError(
                f"{path}: {', '.join(asked)}: for completions only; there is {wanted.table or place.only().kind} to show"
            )
        _show_tables(place, wanted)
    elif len(wanted.query.iterations) > 1 and wanted.query.prompt is not None and not wanted.as_json:
        _show_sides(place, wanted)
    elif place.run is not None and not (asked or wanted.query.iterations or wanted.full or wanted.as_json):
        _show_opening(place, wanted)
    else:
        found = _select(place, wanted, wanted.query)
        if wanted.as_json:
            _print_json({"matched": found.matched, "of": found.there, "rows": list(map(show.completion_json, found.shown))})
        else:
            print_parts(show.in_full(found, wanted.by) if wanted.full else show.selection_list(found))


def _has_completions(place: Subject, asked: bool) -> bool:
    """Whether completions are what is meant: of a store only if something was asked of them."""
    if place.what == "store":
        return asked
    return place.what == "run" or place.only().kind in COMPLETIONS


def _select(place: Subject, wanted: Wanted, query: Query) -> Selection:
    """Completions of the sets that were asked for; a prompt that was not trained on is a held-out one."""
    shaped = find_subject(wanted.shaped).only() if wanted.shaped else None
    found = select(answers_of(place, wanted.sets, shaped), query)
    if not found.shown and not wanted.sets and query.prompt is not None and place.run is not None:
        return select(answers_of(place, ("sampled", "greedy"), shaped), query)
    return found


def _show_opening(place: Subject, wanted: Wanted) -> None:
    """A run's newest training rollouts, best and worst."""
    assert place.run is not None
    newest = max((s.iteration for s in place.run.iterations if s.answers and s.answers.rollouts), default=0)
    half = replace(wanted.query, iterations=(newest,), rows=-(-wanted.query.rows // 2), one_each=True)
    best, worst = (_select(place, wanted, replace(half, sort=order)) for order in ("-reward", "reward"))
    print_parts(show.opening(best, worst) if best.shown else show.selection_list(best))


def _show_sides(place: Subject, wanted: Wanted) -> None:
    if len(wanted.query.iterations) != 2:
        raise UserError("--iteration: name two to see them side by side")
    one, other = (_select(place, wanted, replace(wanted.query, iterations=(number,))) for number in wanted.query.iterations)
    print_parts(show.side_by_side(one, other, wanted.by))


def _show_tables(place: Subject, wanted: Wanted) -> None:
    if wanted.table is None and place.what == "store":
        if wanted.as_json:
            _print_json([{"url": use.artifact.url, "kind": use.artifact.kind, "id": use.artifact.id} for use in place.uses])
        else:
            print_parts(show.artifact_list(place.uses))
        return
    iterations = wanted.query.iterations
    uses = [use for use in place.uses if not iterations or use.iteration in iterations]
    found = [part for artifact in {use.artifact.id: use.artifact for use in uses}.values() for part in _tables(artifact, wanted)]
    if not found:
        raise UserError(f"{place.url}: no {wanted.table or 'table'} there")
    if wanted.as_json:
        _print_json(found)


def _tables(artifact: Artifact, wanted: Wanted) -> list[dict[str, Any]]:
    """An artifact's tables, printed unless they are wanted as JSON; its files, if it has no tables."""
    found: list[dict[str, Any]] = []
    names = list(dict.fromkeys(file.table.split("/")[0] for file in artifact.files if file.table))
    for name in [name for name in names if wanted.table in (None, name)]:
        frame, there = head(artifact, name, wanted.query.rows)
        found.append({"artifact": artifact.url, "table": name, "of": there, "rows": list(show.json_rows(frame))})
        if not wanted.as_json:
            print_parts(
                show.artifact_head(artifact), "", show.plain_table(frame), f"{len(frame)} of {there:,} rows of {name}", ""
            )
    if not names and wanted.table is None:
        found.append({"artifact": artifact.url, "table": None, "files": [file.path for file in artifact.files]})
        if not wanted.as_json:
            print_parts(show.artifact_head(artifact), *(f"{file.bytes:>14,}  {file.path}" for file in artifact.files))
    return found


def print_parts(*parts: RenderableType) -> None:
    """Print without markup; to a file or a program in long lines."""
    console = answer_console(highlight=False, markup=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))


def _print_json(value: Any) -> None:
    """Pure ASCII: what strangers wrote reaches no terminal as it is."""
    typer.echo(json.dumps(json_safe(value), indent=2))
