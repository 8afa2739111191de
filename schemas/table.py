"""What a table is: typed columns with a description and a unit each, rules, and a version.

A table is a dataframely schema. From the class come the Arrow schema (descriptions travel as field metadata, so that any
reader of the Parquet file sees them), validation, and the split of good rows from bad ones with each bad row's reasons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from functools import cache, wraps
from typing import Any, ClassVar, NamedTuple

import dataframely as dy
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

MOST_EXTRA = 1000
"""Columns beyond the declared ones that a file may have."""
LARGEST_32_BIT = 2**31 - 1
"""Bytes of text or list elements that an Arrow column with 32-bit offsets holds in one piece."""


class Checked(NamedTuple):
    """Rows that fit a table, and the others."""

    good: pl.DataFrame
    bad: pl.DataFrame
    """The rows that do not fit, as they came, with two columns more: `row` (their number) and `reasons`."""


class Table(dy.Schema):
    """Base of every table. A table's docstring says what one row is and ends with a row, see `schemas.example`."""

    version: ClassVar[int] = 1
    """Raised whenever a column changes its meaning; readers refuse versions they do not know."""
    extra_prefixes: ClassVar[tuple[str, ...]] = ()
    """Columns beyond the declared ones may start with these; they are nullable Float64."""

    @classmethod
    def title(cls) -> str:
        """Its name in file metadata and manifests: the class's in small letters."""
        return cls.__name__.lower()

    @classmethod
    def is_extra(cls, column: str) -> bool:
        """Whether a column may follow the declared ones, such as reward_regex in the rollouts."""
        return column not in cls._declared() and bool(cls.extra_prefixes) and column.startswith(cls.extra_prefixes)

    @classmethod
    @cache
    def _declared(cls) -> frozenset[str]:
        """Names of the declared columns. (`columns` makes the columns anew each time it is called.)"""
        return frozenset(cls.columns())

    @classmethod
    @cache
    def _declared_fields(cls) -> pa.Schema:
        """`arrow_schema` of the declared columns, made once."""
        return cls.arrow_schema()

    @classmethod
    def check(cls, frame: pl.DataFrame) -> Checked:
        """Split a frame into rows that fit and rows that do not, both in the frame's order.

        Args:
            frame: has the declared columns with their types (see `differences`), and perhaps others, which are kept.

        Raises:
            polars.exceptions.ColumnNotFoundError: a declared column is missing.
        """
        numbered = frame.with_row_index("row")
        if cls.is_valid(frame.select(*cls.columns())):
            return Checked(frame, numbered.clear().with_columns(reasons=pl.lit("")))
        _, failure = _with_row(cls).filter(numbered.select("row", *cls.columns()))
        details = failure.details()
        if details.is_empty():
            return Checked(frame, numbered.clear().with_columns(reasons=pl.lit("")))
        rules = [name for name in details.columns if name not in cls.columns() and name != "row"]
        texts = [pl.when(pl.col(rule) == "invalid").then(pl.lit(cls.reason(rule))) for rule in rules]
        bad = details.select("row", reasons=pl.concat_str(texts, separator="; ", ignore_nulls=True))
        good = numbered.join(bad, on="row", how="anti", maintain_order="left").drop("row")
        return Checked(good, numbered.join(bad, on="row", how="inner", maintain_order="left"))

    @classmethod
    def reason(cls, rule: str) -> str:
        """Why a row is bad, from the name of what it breaks.

        Args:
            rule: as dataframely names it: `answer_is_not_empty` is "breaks the rule: answer is not empty", `step|min` is
                "step is below its minimum".
        """
        column, bar, check = rule.partition("|")
        if rule == "primary_key":
            return f"{' + '.join(cls.primary_key())} is there twice"
        if not bar:
            return f"breaks the rule: {rule.replace('_', ' ')}"
        inner = "a value inside " if check.startswith("inner_") else ""
        check = check.removeprefix("inner_")
        if check.startswith("check__one_of_"):
            return f"{column} is none of its allowed values"
        words = {
            "nullability": "is null",
            "nan": "is NaN",
            "inf": "is infinite",
            "min": "is below its minimum",
            "max": "is above its maximum",
            "regex": "does not have the expected form",
        }
        return f"{inner}{column} {words.get(check, 'fails ' + check.replace('_', ' '))}"

    @classmethod
    def differences(cls, found: pa.Schema) -> list[str]:
        """How a file's columns differ from the table's: one sentence per column. Empty if they fit."""
        names = Counter(found.names)
        problems = [f"column {name} is there {count} times" for name, count in names.items() if count > 1]
        if len(names) > len(cls._declared()) + MOST_EXTRA:
            return [*problems, f"{len(names):,} columns, expected at most {len(cls._declared()) + MOST_EXTRA:,}"]
        for field in cls._declared_fields():
            index = found.get_field_index(field.name)
            if names[field.name] > 1:
                continue
            if index < 0:
                problems.append(f"column {field.name} ({field.type}) is missing")
            elif not _same_type(found.field(index).type, field.type):
                problems.append(f"column {field.name} is {found.field(index).type}, expected {field.type}")
        for field in found:
            if cls.is_extra(field.name) and field.type != pa.float64():
                problems.append(f"column {field.name} is {field.type}, expected double")
            elif field.name not in cls._declared() and not cls.is_extra(field.name):
                problems.append(f"column {field.name} is not part of table {cls.title()} version {cls.version}")
        return problems

    @classmethod
    def arrow_schema(cls, extra: tuple[str, ...] = (), large: Collection[str] = ()) -> pa.Schema:
        """The Arrow schema, with descriptions as field metadata and the table's name and version as schema metadata.

        Args:
            extra: names of columns that follow the declared ones: nullable doubles.
            large: names of columns of texts or lists that get 64-bit offsets.
        """
        return cls._arrow_schema(tuple(extra), frozenset(large))

    @classmethod
    @cache
    def _arrow_schema(cls, extra: tuple[str, ...], large: frozenset[str]) -> pa.Schema:
        fields = []
        for name, column in cls.columns().items():
            metadata = {"description": column.description or "", **(column.metadata or {})}
            kind = _arrow_type(column.dtype, name in large)
            fields.append(pa.field(name, kind, nullable=column.nullable, metadata=metadata))
        fields += [pa.field(name, pa.float64(), metadata={"description": "See the recipe."}) for name in extra]
        return pa.schema(fields, {"rollbook.table": cls.title(), "rollbook.version": str(cls.version)})

    @classmethod
    def arrow_schema_for(cls, frame: pl.DataFrame) -> pa.Schema:
        """The Arrow schema for a frame: its extra columns by name, 64-bit offsets where 32 bits do not reach.

        Raises:
            polars.exceptions.ColumnNotFoundError: a declared column is missing.
        """
        extra = tuple(sorted(column for column in frame.columns if cls.is_extra(column)))
        if frame.estimated_size() <= LARGEST_32_BIT // 8:  # a value takes a bit at least
            return cls.arrow_schema(extra)
        counts = values_of(frame.select(cls._declared()))
        large = [name for name, count in counts.items() if count.sum() > LARGEST_32_BIT]
        return cls.arrow_schema(extra, large)

    @classmethod
    def to_arrow(cls, frame: pl.DataFrame, schema: pa.Schema | None = None) -> pa.Table:
        """Cast a frame to the Arrow schema, declared columns first, extra ones after them by name; others are left out.

        Args:
            schema: of the table that the frame is a part of. Default: `arrow_schema_for` the frame.

        Raises:
            polars.exceptions.ColumnNotFoundError: a declared column is missing.
            ValueError: a value does not fit its column's type, or is null in one that may not be.
        """
        schema = schema or cls.arrow_schema_for(frame)
        return frame.select(schema.names).to_arrow().cast(schema)


def values_of(frame: pl.DataFrame) -> dict[str, NDArray[np.int64]]:
    """Bytes of each text, or elements of each list, by column; 0 for null. Columns of anything else are left out."""
    texts = [pl.col(name).str.len_bytes() for name, kind in frame.schema.items() if kind == pl.String]
    lists = [pl.col(name).list.len() for name, kind in frame.schema.items() if isinstance(kind, pl.List)]
    counts = frame.select(one.cast(pl.Int64).fill_null(0) for one in [*texts, *lists])
    return {series.name: series.to_numpy() for series in counts.iter_columns()}


def rule(condition: Callable[[Any], pl.Expr]) -> Any:
    """A row rule, named by its method. A condition that evaluates to null counts as broken (dataframely lets it pass)."""

    @wraps(condition)
    def certain(cls: Any) -> pl.Expr:
        return condition(cls).fill_null(False)

    return dy.rule()(certain)


def column(kind: type[dy.Column], description: str, *args: Any, unit: str | None = None, **settings: Any) -> Any:
    """A column with its description and unit: `column(dy.Float32, "log of ...", unit="nats", max=0)`."""
    return kind(*args, description=description, metadata={"unit": unit} if unit else None, **settings)


@cache
def _with_row(table: type[Table]) -> type[Table]:
    """The same table with a row number, which dataframely carries through to its report of failures."""
    return type(table.__name__, (table,), {"row": dy.UInt32()})


def one_of(*values: str) -> dict[str, Callable[[pl.Expr], pl.Expr]]:
    """A column check: `column(dy.String, "...", check=one_of("a", "b"))`."""
    return {f"one_of_{'_'.join(values)}": lambda expression: expression.is_in(values)}


def _arrow_type(dtype: pl.DataType, large: bool) -> pa.DataType:
    if isinstance(dtype, pl.List):
        inner = _arrow_type(dtype.inner, large)  # type: ignore[arg-type]
        return pa.large_list(inner) if large else pa.list_(inner)
    if dtype == pl.String:
        return pa.large_string() if large else pa.string()
    return pl.Series([], dtype=dtype).to_arrow().type


def _same_type(found: pa.DataType, expected: pa.DataType) -> bool:
    if pa.types.is_list(expected):
        lists = pa.types.is_list(found) or pa.types.is_large_list(found)
        return bool(lists) and _same_type(found.value_type, expected.value_type)
    if pa.types.is_string(expected):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found))
    return bool(found == expected)
