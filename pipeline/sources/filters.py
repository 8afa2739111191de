"""Which rows of a set are used: those of which an SQL expression over the columns is true."""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import Any

import polars as pl

from pipeline.common.errors import DataError, UserError
from pipeline.sources.readers import SourceRows

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")


def where(found: SourceRows, condition: str, name: str) -> SourceRows:
    """The rows that a condition is true of. What cannot be read stays among the bad rows.

    Args:
        name: of the set, for messages.

    Raises:
        UserError: no SQL expression, or not one that is true or false; a column that is not there.
        DataError: a column's values are of several kinds; no row is left.
    """
    expression = _parsed(condition)
    for column in dict.fromkeys(expression.meta.root_names()):
        if column not in found.columns:
            near = difflib.get_close_matches(column, found.columns, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(found.columns)}"
            raise UserError(f"where: {condition!r} reads {column!r}, and {name} has no such column; {hint}")
    columns = dict.fromkeys(expression.meta.root_names())
    frame = pl.DataFrame([_series(found, column, name) for column in columns] or {"row": found.numbers})
    try:
        mask = frame.select(expression.alias("kept"))["kept"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError) as error:
        raise UserError(f"where: {condition!r} cannot be asked of {name}: {_line(error)}") from None
    if mask.dtype != pl.Boolean:
        raise UserError(f"where: {condition!r} gives {mask.dtype}, expected true or false of every row")
    kept = list(mask.fill_null(False)) if len(mask) == len(frame) else [bool(mask[0])] * len(frame)
    rows = [row for row, keep in zip(found.rows, kept, strict=True) if keep]
    numbers = [number for number, keep in zip(found.numbers, kept, strict=True) if keep]
    if found.rows and not rows:
        raise DataError(f"{name}: none of {len(found.rows)} rows fits where: {condition!r}")
    return replace(found, rows=rows, numbers=numbers)


def _parsed(condition: str) -> pl.Expr:
    if re.search(r"\bselect\b", _QUOTED.sub("", condition), re.IGNORECASE):
        raise UserError(f"where: {condition!r} asks another table; expected an expression over the set's own columns")
    try:
        return pl.sql_expr(condition)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        said = f"{condition!r} is no SQL expression such as \"level >= 3 AND source = 'olympiads'\""
        raise UserError(f"where: {said}: {_line(error)}") from None


def _series(found: SourceRows, column: str, name: str) -> pl.Series:
    """A column, of one type."""
    values = [row.get(column) for row in found.rows]
    kinds: dict[str, tuple[int, Any]] = {}
    for number, value in zip(found.numbers, values, strict=True):
        if value is not None:
            kinds.setdefault(_kind(value), (number, value))
    if len(kinds) > 1:
        (one, first), (other, second) = list(kinds.values())[:2]
        raise DataError(
            f"{name}: where: column {column!r} holds {first!r:.40} in {found.unit} {one} and {second!r:.40} in {found.unit} "
            f"{other}; expected values of one kind. Write them alike in the file"
        )
    try:
        return pl.Series(column, values, strict=False)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError, OverflowError) as error:
        raise DataError(f"{name}: where: column {column!r} cannot be compared: {_line(error)}") from None


def _kind(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
