"""Files that are either whole or absent: temporary name, fsync, rename."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.common.errors import writing

TEMPORARY = ".tmp-"


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended without an error.

    Raises:
        StageFailed: the disk is full or the place cannot be written to.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix="-" + path.name, dir=path.parent)
        os.close(handle)
        os.chmod(name, 0o644)
        temporary = Path(name)
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole file; a device or a pipe, such as /dev/null or /dev/stdout, is written to and stays what it is."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        with writing(path):
            path.write_text(text, encoding="utf-8")
        return
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Have the disk hold what was written."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
