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


def resolve_dtype(dtype: Literal["auto", "float32", "bfloat16"]) -> Literal["float32", "bfloat16"]:
    if dtype == "auto":
        return "bfloat16" if has_gpu() else "float32"
    return dtype
