"""Tables as Parquet files: how each column is encoded, and how many rows go into a group.

Encodings follow from types, by measurement (`benchmarks/disk_bytes.py`). A float in a list is a logprob, nearly always another
one: a dictionary only adds to it, and its bytes compress better by place, all first ones together. A list of integers is tokens,
which come again in the same order; zstd finds that in plain integers, not in a dictionary's packed bits. All other columns repeat
themselves down the rows, for which pyarrow's dictionary is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.common.errors import DataError
from schemas.table import LARGEST_32_BIT, Table, values_of

ROWS = 16384
"""Most rows of a row group."""
BYTES = 256 << 20
"""Decoded bytes of a row group's texts and lists, about: what readers hold at once. A larger row has a group to itself."""
AT_ONCE = 16 << 20
"""Such bytes of a whole table up to which it is made Arrow's in one piece, several times as fast as piece by piece."""
DRAWN = 15
"""Level of zstd for tokens that were drawn: smaller than by its default, and read as fast. Tokens that were made from texts are
many, and soon made again."""
LOGPROBS = 17
"""Level of zstd for logprobs: nearly random bits, but for what the completions of a group begin with alike."""
LEVELS = 4
"""Bytes of the two levels that come with each value of a list while it is read or written."""


def write_parquet(path: Path, frame: pl.DataFrame, table: type[Table]) -> None:
    """Write a frame with the table's descriptions, compressed with zstd. Rows are not checked.

    No row group has more than 32-bit offsets reach, so a table of any size can be written and read. A column that has more in all
    is stored with 64-bit offsets, for readers that make one piece of it.

    Raises:
        DataError: one text has more than 2 GiB, or one list as many values: no Parquet page holds it.
    """
    schema = table.arrow_schema_for(frame)
    sizes = _sizes(path, frame.select(schema.names))
    whole = table.to_arrow(frame, schema) if sizes.sum() <= AT_ONCE else None
    with pq.ParquetWriter(path, schema, compression="zstd", **_encodings(schema, drawn=_is_drawn(frame))) as writer:
        for start, stop in _cuts(sizes):
            piece = table.to_arrow(frame[start:stop], schema) if whole is None else whole.slice(start, stop - start)
            writer.write_table(piece, row_group_size=ROWS)
        if frame.is_empty():
            writer.write_table(table.to_arrow(frame, schema))


def _encodings(schema: pa.Schema, *, drawn: bool) -> dict[str, Any]:
    """Arguments of pyarrow's writer: columns by their place in the file; what has no encoding of its own is plain."""
    floats = [f"{field.name}.list.element" for field in schema if _is_list_of(field.type, pa.types.is_floating)]
    tokens = [f"{field.name}.list.element" for field in schema if drawn and _is_list_of(field.type, pa.types.is_integer)]
    return {
        "use_dictionary": [field.name for field in schema if not pa.types.is_nested(field.type)],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        "compression_level": {**dict.fromkeys(floats, LOGPROBS), **dict.fromkeys(tokens, DRAWN)} or None,
    }


def _is_drawn(frame: pl.DataFrame) -> bool:
    """Whether rows have logprobs: then their tokens come from a model, and not from a text."""
    lists = (series for series in frame.iter_columns() if series.dtype in (pl.List(pl.Float32), pl.List(pl.Float64)))
    return any(series.null_count() < len(series) for series in lists)


def _is_list_of(kind: pa.DataType, inner: Callable[[pa.DataType], bool]) -> bool:
    return bool((pa.types.is_list(kind) or pa.types.is_large_list(kind)) and inner(kind.value_type))


def _sizes(path: Path, frame: pl.DataFrame) -> NDArray[np.int64]:
    """Bytes of each row's texts and lists.

    Raises:
        DataError: names the row and the column of a value that is too large.
    """
    total = np.zeros(len(frame), np.int64)
    for name, counts in values_of(frame).items():
        if len(counts) and counts.max() > LARGEST_32_BIT:
            what = "bytes of text" if frame.schema[name] == pl.String else "values in a list"
            raise DataError(
                f"{path}, row {int(counts.argmax())}: {name} has {int(counts.max()):,} {what}; a Parquet file holds "
                f"at most {LARGEST_32_BIT:,} in one row. Cut it, or leave the row out"
            )
        total += counts * _width(frame.schema[name])
    return total


def _width(kind: pl.DataType) -> int:
    """Bytes of a text's unit, or of a list's value with its two levels, which say where lists begin and what is null."""
    if not isinstance(kind, pl.List):
        return 1
    return LEVELS + (4 if kind.inner in (pl.Float32, pl.Int32) else 1 if kind.inner == pl.Boolean else 8)


def _cuts(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that make a row group each."""
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        full = int(np.searchsorted(ends, before + BYTES, side="right"))
        stop = min(max(full, start + 1), start + ROWS)
        yield start, stop
        start = stop
