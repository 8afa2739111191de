"""Rows with aligned lists, made into one row a place of the lists: a problem with its generations, a step with its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from pipeline.exchange.imports.format import misfit
from pipeline.exchange.imports.known import Misfit, SourceRow


def exploded(rows: Iterable[SourceRow | Misfit], columns: Sequence[str]) -> Iterator[SourceRow | Misfit]:
    """Rows as they are, or one a place of the lists in some columns. A column that is null is null in each.

    A row whose lists differ in length is set aside, with their lengths.
    """
    for row in rows:
        if isinstance(row, Misfit) or not columns:
            yield row
            continue
        try:
            parts = list(parts_of(row.values, columns))
        except ValueError as error:
            yield misfit(row, str(error))
            continue
        yield from (replace(row, values=values, part=part) for part, values in enumerate(parts))


def parts_of(values: dict[str, Any], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """
    Raises:
        ValueError: a column is missing or no list, no column is a list, or their lengths differ.
    """
    lengths: dict[str, int] = {}
    for column in columns:
        if column not in values:
            raise ValueError(f"column {column}: missing, and is to be one row a place")
        if isinstance(values[column], list):
            lengths[column] = len(values[column])
        elif values[column] is not None:
            raise ValueError(f"column {column}: expected a list, one value a row, found {type(values[column]).__name__}")
    if not lengths:
        raise ValueError(f"columns {', '.join(columns)}: no list in any of them")
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{column} has {length}" for column, length in lengths.items())
        raise ValueError(f"lists that are to be aligned differ in length: {told}")
    for place in range(next(iter(lengths.values()))):
        yield {**values, **{column: values[column][place] for column in lengths}}
