"""safetensors files: a header that says what lies where, and whether that is so. No tensor is built."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

LARGEST_HEADER = 100_000_000
"""Bytes, as the format has it."""
BITS = {
    **{"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8},
    **{"I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8},
}
"""Size of an element. Of types that are not listed, sizes are not checked."""

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type and shape by name."""


def tensors_of(size: int, first: Callable[[int], bytes]) -> Tensors:
    """What a file holds, after checking that its parts lie one after the other and fill it.

    Args:
        size: bytes of the file.
        first: gives its first bytes, that many.

    Raises:
        ValueError: says what is wrong with the file.
    """
    length = int.from_bytes(first(8), "little") if size >= 8 else 0
    if size < 8 or length > min(LARGEST_HEADER, size - 8):
        raise ValueError(f"a header of {length:,} bytes in a file of {size:,}")
    header = json.loads(first(8 + length)[8:])
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    entries = sorted(((name, _entry(name, value)) for name, value in header.items() if name != "__metadata__"), key=_start)
    end = 0
    for name, (dtype, shape, start, stop) in entries:
        needed = math.prod(shape) * BITS.get(dtype, 0) // 8
        if start != end or (dtype in BITS and stop - start != needed):
            raise ValueError(f"{name}: {dtype} {list(shape)} at bytes {start} to {stop}, expected {needed} bytes from {end} on")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"{size - 8 - length:,} bytes of data, the header describes {end:,}")
    return {name: (dtype, shape) for name, (dtype, shape, _, _) in entries}


def _entry(name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
    try:
        start, stop = value["data_offsets"]
        dtype, shape = value["dtype"], tuple(value["shape"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{name}: no dtype, shape and data_offsets") from None
    if not isinstance(dtype, str) or not all(isinstance(part, int) and part >= 0 for part in (*shape, start, stop)):
        raise ValueError(f"{name}: a dtype, shape or offset that is none")
    return dtype, shape, start, stop


def _start(entry: tuple[str, tuple[str, tuple[int, ...], int, int]]) -> int:
    return entry[1][2]
