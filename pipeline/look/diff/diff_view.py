"""Differences in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pipeline.common.differences import ABSENT, Difference
from pipeline.common.text import number, visible
from pipeline.look.diff.diff import ArtifactDifference, RunDifference
from pipeline.look.diff.table_difference import TableDifference
from pipeline.look.diff.weights import WeightDifference
from pipeline.look.show.show import one_line

MOST = 40
"""Differences of one kind that are shown."""


def view(found: ArtifactDifference | RunDifference, names: tuple[str, str]) -> RenderableType:
    """Everything that differs, the decisive first.

    Args:
        names: what the two sides were called by the user.
    """
    parts = list(_artifact(found) if isinstance(found, ArtifactDifference) else _run(found))
    head = Text.assemble(("- ", "red"), visible(names[0]), "\n", ("+ ", "green"), visible(names[1]))
    verdict = Text("equal" if found.equal else "they differ", style="bold green" if found.equal else "bold")
    return Group(head, *parts, verdict)


def _artifact(found: ArtifactDifference) -> Iterator[RenderableType]:
    yield from _section("settings", found.settings)
    yield from _section("parents", found.parents)
    for cause in found.causes:
        yield from _section(f"the difference began in {cause.path}", cause.settings)
    yield from _section("summary", found.summary)
    for table in found.tables:
        if not table.equal:
            yield _table(table)
    if found.weights and found.weights.changed + len(found.weights.others):
        yield _weights(found.weights)
    yield from _section("files", found.files)
    yield from _section("made differently (this decides nothing)", found.provenance, style="dim")


def _run(found: RunDifference) -> Iterator[RenderableType]:
    yield from _section("settings", found.settings)
    yield from _section("artifacts", found.artifacts)
    yield from _section("evaluation, by iteration", found.figures)


def _section(title: str, found: Sequence[Difference], style: str = "") -> Iterator[RenderableType]:
    if not found:
        return
    yield Text(f"\n{title}", style="bold")
    table = Table(box=None, show_header=False, pad_edge=True, padding=(0, 1))
    table.add_column(style="cyan", overflow="fold")
    for color in ("red", "green", "dim"):
        table.add_column(style=color, overflow="fold")
    for difference in found[:MOST]:
        cells = (difference.key, _value(difference.a), _value(difference.b), _gap(difference))
        table.add_row(*(Text(one_line(cell)) for cell in cells), style=style or None)
    yield table
    if len(found) > MOST:
        yield Text(f"  and {len(found) - MOST} more (--json has all)", style="dim")


def _value(value: Any) -> str:
    if value is ABSENT:
        return "–"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return text[:16] if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else text


def _gap(difference: Difference) -> str:
    numbers = [value for value in (difference.a, difference.b) if isinstance(value, int | float) and not isinstance(value, bool)]
    return f"{numbers[1] - numbers[0]:+.4g}" if len(numbers) == 2 else ""


def _table(found: TableDifference) -> RenderableType:
    lines = [f"{found.rows[0]:,} and {found.rows[1]:,} rows"]
    lines += [f"{count:,} only in {side}" for count, side in ((found.only_a, "the first"), (found.only_b, "the second")) if count]
    lines.append(f"{found.changed:,} rows of both differ")
    text = Text.assemble((f"\ntable {found.table}", "bold"), f"\n  {', '.join(lines)}")
    for column in sorted(found.columns, key=lambda column: -column.rows):
        largest = f", by {number(column.largest)} at most" if column.largest is not None else ""
        text.append(f"\n  {column.column}", style="cyan").append(f" in {column.rows:,}{largest}")
    if found.examples:
        keys = (", ".join(f"{name} {value}" for name, value in key.items()) for key in found.examples)
        text.append(f"\n  such as {visible('; '.join(keys))}", style="dim")
    return text


def _weights(found: WeightDifference) -> RenderableType:
    text = Text.assemble(
        ("\nweights", "bold"), f"\n  {found.changed} of {found.tensors} tensors differ, by {number(found.largest)} at most"
    )
    text.append(f"; ||b - a|| / ||a|| = {number(found.relative)}")
    if found.others:
        text.append(f"\n  not in both, or of another shape: {visible(', '.join(found.others[:4]))}")
    return text
