"""What lies in a store: every folder, leftover and lock of a store, and removing one of them. Of a store in a directory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from pipeline.store.files import TEMPORARY
from pipeline.store.layout import ASIDE, LOCKS, MANIFEST, SCRATCH, SIGNATURE
from pipeline.store.removed import Removal
from schemas.manifest import Kind

KEY = re.compile(r"[0-9a-f]{16}")
Reason = Literal["temporary", "unfinished", "unreferenced", "retention", "set aside", "lock"]


@dataclass(frozen=True)
class Item:
    """Something to delete."""

    name: str
    """Relative to the store."""
    reason: Reason
    bytes: int
    removal: Removal | None = None
    """Of weights, the note that is left."""


@dataclass(frozen=True)
class StoreFolder:
    """Where an artifact is, or is to be."""

    name: str
    """<kind>/<key>"""
    bytes: int
    finished: bool


class Inventory(Protocol):
    """A store, as it lies there."""

    @property
    def url(self) -> str:
        """Its directory, or its address in a bucket."""

    def folders(self) -> list[StoreFolder]:
        """<kind>/<key>, finished or not. Nothing else is taken for a part of the store."""

    def temporary(self) -> list[Item]:
        """Files that were being written, and resume state of finished artifacts: a process was killed before it was removed."""

    def set_aside(self) -> list[Item]:
        """Damaged artifacts that were replaced."""

    def locks(self) -> tuple[list[str], list[tuple[Item, str]]]:
        """Who holds locks; and locks that nobody holds and that can be removed, with the folder that each is of."""

    def remove(self, item: Item) -> bool:
        """Remove an item, unless somebody is at work on it. Says whether it is gone.

        An artifact's manifest goes first: from then on it does not exist, whatever becomes of the rest.
        """


class LocalInventory:
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return str(self._root)

    def _folders(self) -> Iterator[Path]:
        for kind in get_args(Kind):
            yield from (path for path in sorted((self._root / kind).glob("*")) if KEY.fullmatch(path.name) and path.is_dir())

    def folders(self) -> list[StoreFolder]:
        return [StoreFolder(self._name(path), _size(path), (path / MANIFEST).exists()) for path in self._folders()]

    def temporary(self) -> list[Item]:
        return [item for folder in self._folders() for item in self._left_in(folder)]

    def _left_in(self, folder: Path) -> Iterator[Item]:
        scratch = folder / SCRATCH
        done_with = (folder / MANIFEST).exists() and scratch.is_dir()
        if done_with:
            yield Item(self._name(scratch), "temporary", _size(scratch))
        for path in sorted(folder.rglob(f"{TEMPORARY}*")):
            if path.is_file() and not (done_with and path.is_relative_to(scratch)):
                yield Item(self._name(path), "temporary", path.lstat().st_size)

    def set_aside(self) -> list[Item]:
        return [Item(self._name(path), "set aside", _size(path)) for path in sorted(self._root.glob(f"{ASIDE}/*/*/*"))]

    def locks(self) -> tuple[list[str], list[tuple[Item, str]]]:
        held, free = [], []
        for path in sorted((self._root / LOCKS).glob("*.lock")):
            with _held(path, remove=False) as is_free:
                if is_free:
                    free.append((Item(self._name(path), "lock", path.lstat().st_size), path.stem.replace("-", "/", 1)))
                else:
                    held.append(f"{path.stem}: {_holder(path)}")
        return held, free

    def remove(self, item: Item) -> bool:
        path = self._root / item.name
        if item.reason in ("unfinished", "unreferenced"):
            lock = self._root / LOCKS / f"{path.parent.name}-{path.name}.lock"
            with _held(lock, create=True) as is_free:
                if is_free:
                    _remove(path)
            return is_free
        if item.reason == "lock":
            with _held(path) as is_free:
                return is_free
        _remove(path)
        if item.reason == "set aside":
            with suppress(OSError):  # others are kept there
                for empty in list(path.parents)[:3]:
                    empty.rmdir()
        return True

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix()


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
    path.with_name(path.name + SIGNATURE).unlink(missing_ok=True)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def _held(path: Path, *, create: bool = False, remove: bool = True) -> Iterator[bool]:
    """Hold a lock if nobody else does. The file goes with it, unless it is only looked at."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
        if remove:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _size(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
