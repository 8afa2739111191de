"""What is typed into the filter: words to look for, and conditions on columns. Nothing of it is run as code or as a query."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.common.errors import UserError
from pipeline.look.view.columns import ViewColumn

LONGEST = 2000
"""Characters of a filter."""
_QUOTED = r'"((?:[^"\\]|\\.)*)"'
_CONDITION = re.compile(rf"([A-Za-z_][\w.]*)(>=|<=|!=|!~|=|>|<|~)(?:{_QUOTED}|([^\s\"]+))")
_WORD = re.compile(rf"{_QUOTED}|([^\s\"]+)")
_ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


@dataclass(frozen=True)
class RowFilter:
    """A filter that was understood."""

    expressions: tuple[pl.Expr, ...]
    """All of them must hold; null is no."""
    shaped: bool
    """Whether the shaped table is needed."""


def parse_filter(text: str, columns: Mapping[str, ViewColumn]) -> RowFilter:
    r"""Words and conditions, all of which must hold.

        reward>0.5 status=truncated         conditions: = != > >= < <=; null, true and false are values
        completion_text~"so far" error!~x   holds the text, or does not
        carrots "two words"                 the prompt or the completion holds it, whatever its case

    Raises:
        UserError: a column that is not there, a value that is none of its type, or a text that ends in the middle.
    """
    if len(text) > LONGEST:
        raise UserError(f"the filter is longer than {LONGEST:,} characters")
    found, shaped, place = [], False, 0
    while place < len(text):
        if text[place].isspace():
            place += 1
            continue
        if condition := _CONDITION.match(text, place):
            column = _column(condition[1], columns)
            value = _unquoted(condition[3]) if condition[3] is not None else condition[4]
            found.append(_holds(column, condition[2], value, quoted=condition[3] is not None))
            shaped |= column.shaped
            place = condition.end()
        elif word := _WORD.match(text, place):
            wanted = _unquoted(word[1]) if word[1] is not None else word[2]
            if wanted:
                found.append(_mentions(wanted))
            place = word.end()
        else:
            raise UserError(f'{text[place : place + 30]}: a text that begins with a quote ends with one; a quote in it is \\"')
    return RowFilter(tuple(found), shaped)


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _column(name: str, columns: Mapping[str, ViewColumn]) -> ViewColumn:
    if name in columns:
        return columns[name]
    near = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "the columns are listed under the filter"
    raise UserError(f'{name}: there is no such column; {hint} To look for the text itself, put it in quotes: "{name}=…"')


def _mentions(text: str) -> pl.Expr:
    pattern = f"(?i){pl.escape_regex(text)}"
    return pl.col("completion_text").str.contains(pattern) | pl.col("prompt_text").str.contains(pattern)


def _holds(column: ViewColumn, order: str, value: str, *, quoted: bool) -> pl.Expr:
    if value == "null" and not quoted:
        if order not in ("=", "!="):
            raise UserError(f"{column.name}{order}null: null is compared by = and != alone")
        return column.expression.is_null() if order == "=" else column.expression.is_not_null()
    if order in ("~", "!~"):
        if column.sort != "text":
            raise UserError(f"{column.name}{order}{value}: {column.name} is no text; compare it by = != > >= < <=")
        found = column.expression.str.contains(value, literal=True)
        return found if order == "~" else ~found
    if column.sort == "truth" and (order not in ("=", "!=") or value not in ("true", "false")):
        raise UserError(f"{column.name}{order}{value}: expected {column.name}=true or {column.name}=false")
    wanted: Any = _number(column, value) if column.sort == "number" else value == "true" if column.sort == "truth" else value
    return _ORDERS[order](column.expression, pl.lit(wanted))  # type: ignore[no-any-return]


def _number(column: ViewColumn, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UserError(f"{column.name}: {value!r} is no number")
    return number
