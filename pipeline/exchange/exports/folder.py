"""The directory that an export is written to: whole or absent, and never in the place of somebody else's."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError, writing
from pipeline.store.files import TEMPORARY, sha256_of, sync

RECORD = "rollbook-export.json"
"""What an export is of, and its files. A directory with it is ours, and may be written anew."""
FORMAT = "rollbook-export/1"


@contextmanager
def export_folder(out: Path, what: dict[str, Any]) -> Iterator[Path]:
    """A directory beside `out` that takes its place once the block has ended without an error.

    Args:
        what: the export is of: recorded with the sha256 of every file.

    Raises:
        UserError: there is something at `out` that no export wrote.
        StageFailed: the disk is full or the place cannot be written to.
    """
    refuse_foreign(out)
    with writing(out):
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=f"-{out.name}", dir=out.absolute().parent))
        try:
            yield building
            files = sorted(path for path in building.rglob("*") if path.is_file())
            listed = [
                {"path": path.relative_to(building).as_posix(), "bytes": path.stat().st_size, "sha256": sha256_of(path)}
                for path in files
            ]
            record = building / RECORD
            record.write_text(json.dumps({"format": FORMAT, **what, "files": listed}, indent=2) + "\n", encoding="utf-8")
            for path in (*files, record):
                path.chmod(0o644)
                sync(path)
            building.chmod(0o755)
            _put(building, out.absolute())
        finally:
            shutil.rmtree(building, ignore_errors=True)


def refuse_foreign(out: Path) -> None:
    """
    Raises:
        UserError: there is something that no export wrote.
    """
    if out.is_dir() and not any(out.iterdir()):
        return
    if (out.exists() or out.is_symlink()) and not _is_ours(out):
        raise UserError(f"--out {out}: is there and is no export of rollbook (it has no {RECORD}). Name another place")


def _is_ours(out: Path) -> bool:
    try:
        return str(json.loads((out / RECORD).read_text(encoding="utf-8"))["format"]).startswith("rollbook-export/")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _put(building: Path, out: Path) -> None:
    """Give the new directory its name. A reader that comes in between finds the old one, or none."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=TEMPORARY, suffix=f"-old-{out.name}", dir=out.parent))
        out.rename(old / "old")
        building.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        building.rename(out)
    sync(out.parent)
