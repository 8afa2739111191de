"""Room on the disk: asked for before a stage starts, so that it does not run out of it hours later."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.common.errors import StageFailed


def free_bytes(path: Path) -> int:
    """Room on the disk that holds `path`, which need not exist yet."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def refuse_full(path: Path, needed: int, what: str) -> None:
    """Refuse to start what will not fit.

    Args:
        needed: bytes, an estimate.
        what: such as "rollouts of 1,024 completions".

    Raises:
        StageFailed: there is less room than that.
    """
    if (free := free_bytes(path)) < needed:
        raise StageFailed(
            f"{path}: {readable(free)} free on its disk, but {what} will take about {readable(needed)}. Make room there, or "
            "set `store` to a place that has it, and run the same command again."
        )


def readable(size: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
