"""Rows of a file of labels, read one after the other: CSV, JSONL or Parquet. Only the columns that are asked for are kept."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import DataError, UserError
from pipeline.common.footers import refuse_damaged
from pipeline.common.near import did_you_mean

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
LONGEST = 16 << 20
"""Bytes of a JSONL line, characters of a CSV cell."""
BATCH_ROWS = 4096
DANGEROUS = ("=", "+", "-", "@", "\t", "\r")
"""A spreadsheet takes a cell that begins like this for a formula; a sheet has an apostrophe before it."""


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One row."""

    place: str
    """What it is called by people: row 2 (a spreadsheet's, the header is row 1), line 1 (of JSONL), row 0 (of Parquet)."""
    values: Sequence[Any]
    """Of the columns that were asked for; None where there is nothing."""


def columns_of(path: Path) -> list[str]:
    """Names of a file's columns; of JSONL, those of its first lines: what is empty may be left out of a line.

    Raises:
        UserError: no such file, or of an unknown kind.
        DataError: it cannot be read.
    """
    _refuse_unknown(path)
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return list(pq.read_schema(path).names)
        if path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                return next(csv.reader(file, delimiter=_delimiter(path)), [])
        lines = itertools.islice(_json_lines(path), BATCH_ROWS)
        return list(dict.fromkeys(name for _, row in lines for name in row))
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from None


def read_labels(path: Path, columns: Sequence[str]) -> Iterator[LabelRow]:
    """The file's rows, with the values of these columns.

    Raises:
        UserError, DataError: as `columns_of`; a row that cannot be read is named.
    """
    _refuse_unknown(path)
    read = {".parquet": _of_parquet, ".csv": _of_csv, ".tsv": _of_csv}.get(path.suffix, _of_jsonl)
    try:
        yield from read(path, columns)
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(path, error) from None


def escaped(text: str) -> str:
    """A text that no spreadsheet takes for a formula.

    >>> escaped("=1+1"), escaped("1+1")
    ("'=1+1", '1+1')
    """
    return "'" + text if text.startswith(DANGEROUS) else text


def _plain(text: str) -> str | None:
    """A cell as it was before `escaped`; None for an empty one."""
    return (text[1:] if text.startswith("'") and text[1:].startswith(DANGEROUS) else text) or None


def _refuse_unknown(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: unknown kind of file; labels are read from {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file{did_you_mean(path)}")


def _unreadable(path: Path, error: Exception) -> DataError:
    return error if isinstance(error, DataError) else DataError(f"{path}: cannot be read: {' '.join(str(error).split())[:300]}")


def has_decimal_comma(path: Path) -> bool:
    """Whether a spreadsheet wrote the file where the comma is the decimal sign: it puts semicolons between cells there."""
    return path.suffix == ".csv" and _delimiter(path) == ";"


def _delimiter(path: Path) -> str:
    if path.suffix == ".tsv":
        return "\t"
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline(LONGEST)
    return ";" if header.count(";") > header.count(",") else ","


def _of_csv(path: Path, columns: Sequence[str]) -> Iterator[LabelRow]:
    csv.field_size_limit(LONGEST)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=_delimiter(path), strict=True)
        header = next(reader, [])
        if twice := [name for name in columns if header.count(name) > 1]:
            raise DataError(f"{path}: column {twice[0]!r} is there twice")
        places = [header.index(name) for name in columns]
        for number, cells in enumerate(_cells(path, reader), start=2):
            if not any(cells):
                continue
            if len(cells) != len(header):
                found = f"{path}, row {number}: {len(cells)} cells, but the header has {len(header)}"
                raise DataError(f"{found}. Put texts with separators in quotes")
            yield LabelRow(f"row {number}", [_plain(cells[place]) for place in places])


def _cells(path: Path, reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """
    Raises:
        DataError: a row's quotes are not in order; names the row.
    """
    for number in itertools.count(2):
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, row {number}: cannot be read: {error}. Mend its quotes") from None


def _of_jsonl(path: Path, columns: Sequence[str]) -> Iterator[LabelRow]:
    for number, row in _json_lines(path):
        yield LabelRow(f"line {number}", [row.get(name) for name in columns])


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise DataError(f"{path}, line {number}: longer than {LONGEST >> 20} MiB")
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
            yield number, row


def _of_parquet(path: Path, columns: Sequence[str]) -> Iterator[LabelRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from pipeline.common import memory
    from pipeline.store.space import readable

    number = 0
    refuse_damaged(path)
    with pq.ParquetFile(path) as file:
        metadata = file.metadata
        for group in range(metadata.num_row_groups):
            if (size := memory.claimed(metadata, [group])) > memory.budget():
                raise DataError(f"{path}: row group {group} says that it expands to {readable(size)}; write smaller row groups")
        try:
            for batch in file.iter_batches(BATCH_ROWS, columns=list(columns), use_threads=False):
                found = [batch.column(name).to_pylist() for name in columns]
                for values in zip(*found, strict=True):
                    yield LabelRow(f"row {number}", values)
                    number += 1
        except pa.ArrowException as error:
            raise DataError(f"{path}: cannot be read: {error}") from None
