"""How much data may claim to be: files come from strangers, and a few bytes of Parquet can stand for terabytes."""

from __future__ import annotations

import os
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BYTES_PER_ROW = 256
"""Least that a row costs once it is held in Python."""
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, "INT64": 8, "DOUBLE": 8, "INT96": 12}
_TEXT = 16
"""What a reader holds of a text beside its bytes."""


def budget() -> int:
    """Bytes that one input may take once it is read: a quarter of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4


def claimed(metadata: pq.FileMetaData, groups: Iterable[int] | None = None) -> int:
    """Bytes that row groups say they expand to: what their pages hold, and a place for every value.

    A run of equal values is a few bytes in its page, however many values there are, so values are counted beside pages.
    """
    total = 0
    for number in range(metadata.num_row_groups) if groups is None else groups:
        group = metadata.row_group(number)
        for place in range(group.num_columns):
            chunk = group.column(place)
            total += chunk.total_uncompressed_size + chunk.num_values * _WIDTHS.get(chunk.physical_type, _TEXT)
    return total


def decoded(array: pa.Array) -> int:
    """Bytes of an array's values once every repeated text is written out.

    >>> decoded(pa.DictionaryArray.from_arrays(pa.array([0, 0, 1, None]), pa.array(["long text", "a"])))
    19
    """
    if pa.types.is_dictionary(array.type):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_struct(array.type):
        return sum(decoded(part) for part in array.flatten())
    if pa.types.is_map(array.type):
        return decoded(array.keys) + decoded(array.items)
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        return decoded(array.flatten())
    return int(array.nbytes)
