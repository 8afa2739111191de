"""Files of a bucket's artifacts on this machine: bounded, and shared by all processes here.

<cache>/<hash of the store's address>/<kind>/<name>/   files of an artifact, or work on one
<cache>/<hash of the store's address>/in-use/          one lock file per artifact; processes that use it share its lock

Any of it may be deleted while nothing runs. When room is needed, copies of finished artifacts go, longest unused first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.common.errors import UserError, writing
from pipeline.store.files import write_text
from pipeline.store.layout import MANIFEST
from pipeline.store.space import free_bytes, refuse_full

CACHE = "ROLLBOOK_CACHE"
"""Variable: the cache directory. Default: rollbook in XDG_CACHE_HOME or ~/.cache."""
CACHE_GIB = "ROLLBOOK_CACHE_GIB"
"""Variable: how large it may grow before what was used longest ago is removed. Default: 100."""
MARKER = "store.json"
"""File that says which bucket a directory of the cache belongs to."""
IN_USE = "in-use"

_held: dict[Path, int] = {}
"""Lock files of artifacts that this process uses. Paths were handed out, so they stay until the work that needed them ends."""
_guard = threading.Lock()
_working = 0
"""Blocks of `working` that are open in this process."""


@contextmanager
def working() -> Iterator[None]:
    """A piece of work. What was used for it may be removed once the last one that overlaps with it has ended."""
    global _working
    with _guard:
        _working += 1
    try:
        yield
    finally:
        with _guard:
            _working -= 1
            while not _working and _held:
                os.close(_held.popitem()[1])


class Cache:
    """One store's part of the cache."""

    def __init__(self, url: str, endpoint: str) -> None:
        """
        Args:
            url: of the store.
            endpoint: of the server; buckets of two servers may have the same name.
        """
        self.root = cache_directory() / hashlib.sha256(f"{endpoint} {url}".encode()).hexdigest()[:16]
        marker = self.root / MARKER
        if not marker.exists():
            write_text(marker, json.dumps({"url": url}) + "\n")

    @property
    def machine(self) -> str:
        """An id of this cache directory: processes that see it share the locks in it."""
        file = cache_directory() / "id"
        if not file.exists():
            with writing(file), suppress(FileExistsError):
                temporary = file.with_name(f".tmp-{uuid.uuid4().hex}")
                temporary.write_text(uuid.uuid4().hex, encoding="utf-8")
                try:
                    os.link(temporary, file)
                finally:
                    temporary.unlink()
        return file.read_text(encoding="utf-8")

    def use(self, path: Path) -> None:
        """Keep an artifact's directory from being removed while this process works with it."""
        lock = self._lock_of(path)
        with _guard, writing(lock):
            if lock in _held:
                return
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(handle, fcntl.LOCK_SH)
            os.utime(handle)
            path.mkdir(parents=True, exist_ok=True)
            _held[lock] = handle

    def make_room(self, needed: int, what: str) -> None:
        """Have room for that many bytes, removing copies that are not in use, longest unused first.

        Raises:
            StageFailed: there is no room on the disk even so. A cache that has to be larger than its bound is.
        """
        limit = _limit()
        sizes = {path: _size(path) for path in cache_directory().glob("*/*/*") if path.is_dir()}
        total = sum(sizes.values())
        copies = [path for path in sizes if (path / MANIFEST).exists()]
        for path in sorted(copies, key=self._last_use):
            if total + needed <= limit and free_bytes(self.root) >= needed:
                break
            if self._remove(path):
                total -= sizes[path]
        refuse_full(self.root, needed, what)

    def _remove(self, path: Path) -> bool:
        """Remove an artifact's files if no process uses them."""
        lock = self._lock_of(path)
        with writing(lock):
            lock.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(handle)

    def _lock_of(self, path: Path) -> Path:
        return path.parent.parent / IN_USE / f"{path.parent.name}-{path.name}"

    def _last_use(self, path: Path) -> float:
        try:
            return self._lock_of(path).stat().st_mtime
        except FileNotFoundError:
            return 0.0


def store_of(path: Path) -> str | None:
    """URL of the bucket store whose part of the cache a directory is; None for any other directory."""
    if path.absolute().parent != cache_directory():
        return None
    try:
        return str(json.loads((path / MARKER).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def cache_directory() -> Path:
    if place := os.environ.get(CACHE):
        return Path(place).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "rollbook"


def _limit() -> float:
    text = os.environ.get(CACHE_GIB, "100")
    try:
        return float(text) * 2**30
    except ValueError:
        raise UserError(f"{CACHE_GIB}={text}: expected a number of GiB") from None


def _size(path: Path) -> int:
    total = 0
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            total += file.lstat().st_size
    return total
