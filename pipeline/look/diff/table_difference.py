"""Rows of two tables, matched by their key: which are only in one, and which differ in which columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from pipeline.common.errors import DataError
from pipeline.look.show.reading import read
from pipeline.store import Artifact, scan_table
from schemas import TABLES, Table

GROUP = "group_id"
POLICY_KEY = r"@[0-9a-f]{8}$"
"""A group's id ends with the key of its rollouts, which differs between any two artifacts."""
EXAMPLES = 3
MEASURED = 5000
"""Rows whose lists of numbers are compared value by value."""


@dataclass(frozen=True)
class ColumnDifference:
    """A column in rows that both tables have."""

    column: str
    rows: int
    """In how many it differs."""
    largest: float | None
    """Largest difference of two numbers, also inside lists of one length; None if they are no numbers."""


@dataclass(frozen=True)
class TableDifference:
    """What differs between two tables of one kind."""

    table: str
    rows: tuple[int, int]
    only_a: int
    only_b: int
    changed: int
    """Rows that both have, with at least one difference."""
    columns: tuple[ColumnDifference, ...]
    examples: tuple[dict[str, Any], ...]
    """Keys of the first rows that differ."""

    @property
    def equal(self) -> bool:
        return not (self.only_a or self.only_b or self.changed)


def table_difference(a: Artifact, b: Artifact, name: str) -> TableDifference:
    """Compare a table that both artifacts have. Texts and lists are compared by a hash of 64 bits, so tokens are not held.

    Raises:
        DataError, IntegrityError: a table cannot be read.
    """
    table = TABLES[name]
    key = table.primary_key()
    one, other = (_hashed(artifact, table) for artifact in (a, b))
    for artifact, rows in ((a, one), (b, other)):
        if rows.select(pl.struct(key).is_duplicated().any()).item():
            raise DataError(f"{artifact.url}: table {name} has rows with the same {' + '.join(key)}, so they cannot be matched")
    columns = [column for column in one.columns if column not in key and column in other.columns]
    both = one.join(other, on=key, how="inner", suffix="|b")
    differs = both.select(*key, *(pl.col(c).ne_missing(pl.col(f"{c}|b")).alias(c) for c in columns))
    changed = differs.filter(pl.any_horizontal(columns)) if columns else differs.clear()
    counts = changed.select(pl.col(columns).sum()).row(0, named=True) if columns else {}
    found = [
        ColumnDifference(column, count, _largest(a, b, table, column, both, changed)) for column, count in counts.items() if count
    ]
    return TableDifference(
        table=name,
        rows=(len(one), len(other)),
        only_a=len(one.join(other, on=key, how="anti")),
        only_b=len(other.join(one, on=key, how="anti")),
        changed=len(changed),
        columns=tuple(found),
        examples=tuple(changed.head(EXAMPLES).select(key).to_dicts()),
    )


def _hashed(artifact: Artifact, table: type[Table]) -> pl.DataFrame:
    """Every row: its key and its numbers as they are, any other value as its hash."""
    rows = _by_prompt(scan_table(artifact, table))
    kinds = rows.collect_schema()
    short = [
        pl.col(name)
        if name in table.primary_key() or kind.is_numeric() or kind == pl.Boolean
        else pl.struct(name).hash().alias(name)
        for name, kind in kinds.items()
    ]
    return read(rows.select(short), artifact)


def _by_prompt(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Groups are matched by prompt (and by how often it was asked)."""
    if GROUP not in rows.collect_schema().names():
        return rows
    return rows.with_columns(pl.col(GROUP).str.replace(POLICY_KEY, ""))


def _largest(
    a: Artifact, b: Artifact, table: type[Table], column: str, both: pl.DataFrame, changed: pl.DataFrame
) -> float | None:
    kind = scan_table(a, table).collect_schema()[column]
    if kind.is_numeric():
        gaps = both.select((pl.col(column).cast(pl.Float64) - pl.col(f"{column}|b").cast(pl.Float64)).abs().max()).item()
        return None if gaps is None else float(gaps)
    if not (isinstance(kind, pl.List) and kind.inner in (pl.Float32, pl.Float64)):
        return None
    key = table.primary_key()
    wanted = changed.filter(column).head(MEASURED).select(key).lazy()
    one, other = (
        _by_prompt(scan_table(artifact, table)).select(*key, column).join(wanted, on=key, how="semi") for artifact in (a, b)
    )
    pairs = read(one.join(other, on=key, suffix="|b"), a)
    pairs = pairs.filter(pl.col(column).list.len() == pl.col(f"{column}|b").list.len())
    gap = pairs.select((pl.col(column).explode() - pl.col(f"{column}|b").explode()).abs().max()).item()
    return None if gap is None else float(gap)
