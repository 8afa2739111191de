"""What lies in a store, as it lies there: every entry of every directory, whether a manifest names it or not."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Protocol, get_args

from pipeline.common.errors import UserError
from pipeline.store.directory import Directory
from pipeline.store.files import TEMPORARY
from pipeline.store.layout import LARGEST_MANIFEST, LOCKS, MANIFEST, SCRATCH, SIGNATURE
from pipeline.store.place import Place
from schemas.manifest import File, Kind

KINDS: tuple[str, ...] = get_args(Kind)
BLOCK = 4 << 20
"""Bytes that are read and hashed at a time."""


class Folder(Protocol):
    """A directory that holds, or held, an artifact."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def place(self) -> Place: ...

    @property
    def entries(self) -> Mapping[str, int | None]:
        """Size of every file in it by its path; None for what is no regular file, such as a link or an empty directory."""

    def manifest(self) -> bytes | None:
        """Bytes of its manifest; None if it has none. Raises UserError if it cannot be read."""

    def local(self, file: File) -> Path:
        """Where the file can be read on this machine. Raises UserError if it cannot be had."""

    def start(self, file: File, count: int) -> bytes:
        """The file's first bytes."""

    def sha256(self, file: File, on_piece: Callable[[int], bool], *, keep: bool) -> str:
        """Hash the file as the store has it.

        Args:
            on_piece: called with the number of bytes of each piece that was read; False ends it.
            keep: whether it will be read by `local`; then what was hashed is what is read.
        """

    def being_written(self) -> bool:
        """Whether a process that is alive holds its lock."""


class StoreRoot(Protocol):
    """A store's root."""

    @property
    def url(self) -> str: ...

    def folders(self) -> Iterator[Folder]:
        """Every directory where an artifact can be."""

    def strays(self) -> Iterator[str]:
        """Entries that lie where no artifact can be."""


class LocalFolder:
    """A directory on this machine."""

    def __init__(self, path: Path, lock: Path | None = None) -> None:
        self._path, self._lock = path, lock

    @property
    def kind(self) -> str:
        return self._path.parent.name

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def place(self) -> Directory:
        return Directory(self._path)

    @cached_property
    def entries(self) -> Mapping[str, int | None]:
        found = dict(_walk(self._path, ""))
        return {name: found[name] for name in sorted(found)}

    def manifest(self) -> bytes | None:
        path = self._path / MANIFEST
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise UserError("not a regular file")
            if path.stat().st_size > LARGEST_MANIFEST:
                raise UserError(f"larger than {LARGEST_MANIFEST >> 20} MiB")
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(error.strerror or str(error)) from None

    def local(self, file: File) -> Path:
        return self._path / file.path

    def start(self, file: File, count: int) -> bytes:
        with self.local(file).open("rb") as handle:
            return handle.read(count)

    def sha256(self, file: File, on_piece: Callable[[int], bool], *, keep: bool) -> str:
        hashed = hashlib.sha256()
        block = bytearray(min(BLOCK, max(file.bytes, 1)))
        view = memoryview(block)
        with self.local(file).open("rb", buffering=0) as handle:
            while count := handle.readinto(block):
                hashed.update(view[:count])
                if not on_piece(count):
                    break
        return hashed.hexdigest()

    def being_written(self) -> bool:
        if self._lock is None or not self._lock.is_file():
            return False
        with self._lock.open("rb") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


class LocalRoot:
    """A store in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def url(self) -> str:
        return str(self.root)

    def folders(self) -> Iterator[LocalFolder]:
        for kind in KINDS:
            for entry in _scan(self.root / kind):
                if entry.is_dir():
                    yield LocalFolder(Path(entry.path), self.root / LOCKS / f"{kind}-{entry.name}.lock")

    def strays(self) -> Iterator[str]:
        for entry in _scan(self.root):
            if entry.name == LOCKS:
                yield from (f"{LOCKS}/{lock.name}" for lock in _scan(self.root / LOCKS) if not lock.name.endswith(".lock"))
            elif entry.name not in KINDS or not entry.is_dir():
                yield entry.name
            else:
                files = {file.name: file.is_dir() for file in _scan(self.root / entry.name)}
                yield from (
                    f"{entry.name}/{name}" for name, is_dir in files.items() if not is_dir and not is_signature(name, files)
                )


def is_signature(name: str, beside: Collection[str]) -> bool:
    """Whether a file is the signature of an artifact that lies beside it."""
    return name.endswith(SIGNATURE) and name.removesuffix(SIGNATURE) in beside


def is_scratch(name: str) -> bool:
    """Whether an entry is work in progress: resume state, or a file that is being written."""
    parts = name.split("/")
    return parts[0] == SCRATCH or parts[-1].startswith(TEMPORARY)


def _scan(path: Path) -> list[os.DirEntry[str]]:
    """Entries of a directory by name; none if there is no such directory."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _walk(path: Path, prefix: str) -> Iterator[tuple[str, int | None]]:
    entries = _scan(path)
    if not entries and prefix:
        yield prefix.rstrip("/"), None
    for entry in entries:
        name = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), name + "/")
        elif entry.is_file(follow_symlinks=False):
            yield name, entry.stat(follow_symlinks=False).st_size
        else:
            yield name, None
