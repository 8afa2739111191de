"""Rows of a table file, a bounded piece at a time, after everything that can be said of the file without reading its rows.

Token lists and completion texts are nearly all of a rollouts file. Where an artifact is large they are read of some row groups
only (see `Share`); of the others, what the file's own statistics say of them is checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.common.footers import refuse_damaged
from pipeline.look.audit.findings import Spot
from pipeline.look.audit.holdings import RESTORE, Held
from schemas import TABLES, Rollouts, Scores
from schemas.manifest import File
from schemas.table import Table

BATCH_BYTES = 32 << 20
"""Decoded size of the rows that are held at once, about."""
LARGEST_ROW_GROUP = 8 << 30
"""Decoded bytes. A file that states more is not read: it may be made to fill the memory."""
READ_WHOLE = 64 << 20
"""Bytes of an artifact up to which every list is read."""
ONE_IN = 8
"""Of larger artifacts, the lists of one row group in so many are read."""
HEAVY: dict[type[Table], dict[str, pl.Expr]] = {
    Rollouts: {
        "prompt_token_ids": pl.lit([0], pl.List(pl.Int32)),
        "completion_token_ids": pl.lit([0], pl.List(pl.Int32)),
        "behavior_logprobs": pl.lit(None, pl.List(pl.Float32)),
        "action_mask": pl.lit(None, pl.List(pl.Boolean)),
        "completion_text": pl.lit(""),
    },
    Scores: {"logprobs": pl.lit([], pl.List(pl.Float32))},
}
"""Columns that are not read of every row group, and what stands in their place."""
MAKE_ANEW = "Have it made anew by what made it."


@dataclass(frozen=True)
class RowBatch:
    """Some rows of a file."""

    first: int
    """Number of the first row in the file."""
    frame: pl.DataFrame
    whole: bool
    """Whether heavy columns were read, or are stood in for."""


@dataclass(frozen=True)
class Share:
    """Which row groups of an artifact's tables are read with their lists."""

    everything: bool

    @classmethod
    def of(cls, held: Held, deep: bool) -> Share:
        tables = sum(file.bytes for file in held.files if file.table)
        return cls(deep or tables <= READ_WHOLE)

    def has(self, file: File, row_group: int) -> bool:
        return self.everything or hashlib.sha256(f"{file.sha256} {row_group}".encode()).digest()[0] % ONE_IN == 0


class TableFile:
    """A Parquet file whose columns are those of its table."""

    def __init__(self, file: File, table: type[Table], parquet: pq.ParquetFile, share: Share) -> None:
        self.file, self.table, self.parquet, self._share = file, table, parquet, share

    @property
    def rows(self) -> int:
        return int(self.parquet.metadata.num_rows)

    def batches(self, columns: Sequence[str] | None = None) -> Iterator[RowBatch]:
        """All rows in order, a batch at a time.

        Args:
            columns: which to read; default all, of which heavy ones are stood in for where they are not read.
        """
        names = list(columns or self.parquet.schema_arrow.names)
        heavy = {name: value for name, value in HEAVY.get(self.table, {}).items() if name in names}
        first = 0
        for number in range(self.parquet.num_row_groups):
            whole = not heavy or self._share.has(self.file, number)
            read = names if whole else [name for name in names if name not in heavy]
            size = _batch_rows(self.parquet.metadata.row_group(number), whole)
            pieces = self.parquet.iter_batches(size, row_groups=[number], columns=read, use_threads=False)
            for piece in pieces:
                plain = pa.RecordBatch.from_arrays(
                    piece.columns, names=piece.schema.names
                )  # without metadata, which may be anything
                frame: Any = pl.from_arrow(plain)
                if not whole:
                    frame = frame.with_columns(**heavy).select(names)
                yield RowBatch(first, frame, whole)
                first += len(frame)

    def unread(self) -> Iterator[tuple[int, int, Any]]:
        """Row groups whose lists are not read: number of the first row, number of rows, metadata."""
        first = 0
        for number in range(self.parquet.num_row_groups):
            metadata = self.parquet.metadata.row_group(number)
            if self.table in HEAVY and not self._share.has(self.file, number):
                yield first, metadata.num_rows, metadata
            first += metadata.num_rows


def open_table(held: Held, file: File, spot: Spot, share: Share) -> TableFile | None:
    """Open a table file and report what is wrong with it as a whole. None if its rows cannot be read."""
    name, _, version = (file.table or "").partition("/")
    table = TABLES.get(name)
    if table is None or version != str(table.version):
        known = f"{name}/{table.version}" if table else f"one of {', '.join(TABLES)}"
        remedy = "Audit it with the version of rollbook that wrote it."
        spot.unknown("schema", "version", expected=known, found=file.table, remedy=remedy)
        return None
    try:
        refuse_damaged(held.folder.local(file))
        parquet = pq.ParquetFile(held.folder.local(file))
    except (pa.ArrowException, OSError) as error:
        spot.error("schema", "parquet", expected="a Parquet file", found=_line(error), remedy=RESTORE)
        return None
    _check_file(file, table, parquet, spot)
    if problems := table.differences(parquet.schema_arrow):
        for problem in problems:
            found = re.match(r"column (\S+)", problem)
            column = found[1] if found else None
            spot.error(
                "schema", "columns", expected=f"the columns of {file.table}", found=problem, remedy=MAKE_ANEW, column=column
            )
        return None
    for number in range(parquet.num_row_groups):
        if (stated := _decoded_bytes(parquet.metadata.row_group(number))) > LARGEST_ROW_GROUP:
            limit = f"row groups of at most {LARGEST_ROW_GROUP >> 30} GiB"
            remedy = "Write it again with smaller row groups."
            spot.unknown("schema", "size", expected=limit, found=f"{stated:,} bytes in row group {number}", remedy=remedy)
            return None
    return TableFile(file, table, parquet, share)


def check_rows(batch: RowBatch, table: type[Table], spot: Spot) -> None:
    """Report rows that do not fit their table."""
    bad = table.check(batch.frame).bad
    for row in bad.iter_rows(named=True):
        for reason in row["reasons"].split("; "):
            column = next((word for word in reason.split() if word in row), None)
            spot.error(
                "schema",
                "rows",
                expected=f"rows of {table.title()}/{table.version}: not one in which {reason}",
                found=row[column] if column else row_name(row, table),
                remedy=MAKE_ANEW,
                row=batch.first + row["row"],
                column=column,
            )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What no row may be."""

    check: str
    broken: pl.Expr
    """The condition; null counts as sound."""
    expected: str
    found: pl.Expr
    """What is there instead."""
    column: str | None = None
    remedy: str = MAKE_ANEW


def check_rules(batch: RowBatch, rules: Sequence[Rule], spot: Spot) -> None:
    """Report rows that break a rule: one finding per rule, with the first such row."""
    if batch.frame.is_empty() or not rules:
        return
    counts = batch.frame.select(rule.broken.sum().alias(str(number)) for number, rule in enumerate(rules)).row(0)
    for rule, count in zip(rules, counts, strict=True):
        if count:
            rows = batch.frame.with_row_index("row")
            row, value = rows.filter(rule.broken).head(1).select("row", found=rule.found).row(0)
            found = value if isinstance(value, str) else repr(value)
            said: dict[str, Any] = {"row": batch.first + row, "column": rule.column, "count": count, "remedy": rule.remedy}
            spot.error("schema", rule.check, expected=rule.expected, found=found, **said)


def row_name(row: dict[str, Any], table: type[Table]) -> str:
    """The row's key, such as group_id p1@3f9c0d2e, sample_index 3."""
    return ", ".join(f"{name} {row[name]}" for name in table.primary_key())


def _check_file(file: File, table: type[Table], parquet: pq.ParquetFile, spot: Spot) -> None:
    rows = parquet.metadata.num_rows
    if rows != file.rows:
        spot.error("schema", "count", expected=f"{file.rows} rows", found=f"{rows} rows", remedy=RESTORE)
    stated = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in _metadata(parquet).items()}
    title = f"{stated.get('rollbook.table', '?')}/{stated.get('rollbook.version', '?')}"
    if title != file.table:
        spot.error("schema", "table", expected=f"{file.table} in the file's own metadata", found=title, remedy=RESTORE)


def _metadata(parquet: pq.ParquetFile) -> dict[bytes, bytes]:
    return dict(parquet.schema_arrow.metadata or {})


def _decoded_bytes(row_group: Any) -> int:
    """What the rows may take in memory: lists are decoded to 8 bytes a value."""
    columns = [row_group.column(number) for number in range(row_group.num_columns)]
    return max(
        sum(int(column.total_uncompressed_size) for column in columns), sum(8 * int(column.num_values) for column in columns)
    )


def _batch_rows(row_group: Any, whole: bool) -> int:
    rows = int(row_group.num_rows)
    size = _decoded_bytes(row_group) if whole else 512 * rows
    return max(1, min(16384, BATCH_BYTES * rows // max(size, 1)))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
