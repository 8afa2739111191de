"""Which device this machine has, told without importing torch."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Literal


@cache
def has_gpu() -> bool:
    """Whether an NVIDIA GPU is there and not hidden by CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()) and visible not in ("", "-1")


def visible_gpus() -> tuple[str, ...]:
    """The NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if not has_gpu():
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(filter(None, (part.strip() for part in named.split(","))))
    there = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    return tuple(map(str, range(max(len(there), 1))))


def resolve_dtype(dtype: Literal["auto", "float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    if dtype == "auto":
        return "bfloat16" if has_gpu() else "float32"
    return dtype
