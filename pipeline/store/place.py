"""Where artifacts lie. A home holds them, a place is the directory of one: on this machine, or in a bucket.

Stages work on local files either way. What a bucket adds is behind these two protocols: files are fetched before they are
read and published once they are written. In both, an artifact exists exactly when its manifest does.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from pipeline.common.errors import IntegrityError, UserError
from pipeline.store.cache import MANIFEST
from pipeline.store.files import TEMPORARY, sha256_of, write_text
from pipeline.store.lock import Lock
from pipeline.store.space import free_bytes, readable, refuse_full
from pipeline.store.work import SCRATCH
from schemas.manifest import File

LOCKS = "locks"
ASIDE = "damaged"
"""Folder of a store that keeps what `rollbook repair` replaced: damaged/<kind>/<key>/<number>."""
SIGNATURE = ".sig"
"""Ends the name of a signature, which lies beside its artifact: <kind>/<key>.sig."""
REMEDY = "Restore it from a copy, or delete the artifact's directory and run again to make it anew."
LONGEST_MANIFEST = 64 << 20
"""Bytes; some 300,000 files."""
Tell = Callable[[str], None]
"""Called with a sentence that the user should see."""


class Place(Protocol):
    """The directory of one artifact."""

    @property
    def path(self) -> Path:
        """On this machine."""

    @property
    def url(self) -> str:
        """What it is called by people and in records."""

    def manifest(self) -> str | None:
        """Text of the manifest; None if the artifact is not finished."""

    def have(self, file: File) -> Path:
        """The file on this machine. A local one is not looked at."""

    def verify(self, files: Sequence[File]) -> None:
        """Have files on this machine, and compare every byte of them with the manifest.

        Raises:
            IntegrityError: names the first file that is missing or differs.
        """

    def verify_there(self, files: Sequence[File]) -> None:
        """As `verify`, but of what the store itself has, whatever copies are on this machine."""

    def names(self) -> list[str]:
        """Every file that the store has in this place, the manifest among them.

        What a process is at work on is none of them, nor is what one that was killed left of that.
        """

    def refuse_others(self, files: Sequence[File]) -> None:
        """Refuse files on this machine that the manifest does not list. Raises IntegrityError."""

    def room(self, needed: int, what: str) -> None:
        """Refuse to start what will not fit on the disk. Raises StageFailed."""

    def begin(self, scratch: Path) -> None:
        """Make the directory, and get back what `keep` kept of an attempt on another machine."""

    def recover(self, name: str) -> bool:
        """Whether an earlier attempt finished this file; then it is on this machine."""

    def keep(self, point: Path) -> None:
        """Keep a resume point (a directory in the scratch directory) where another machine can find it, if it is time to."""

    def publish(self, name: str) -> None:
        """Take a finished file. It may come again if it was written again."""

    def commit(self, names: Sequence[str], manifest: str, scratch: Path) -> None:
        """Make the artifact exist: every file first, the manifest last. Only then resume state goes."""


class Home(Protocol):
    """A store's root."""

    @property
    def root(self) -> Path:
        """On this machine."""

    @property
    def url(self) -> str:
        """What it is called by people and in records."""

    def place(self, kind: str, name: str) -> Place:
        """The place of an artifact, finished or not."""

    def finished(self, kind: str | None = None) -> Iterator[tuple[Place, str]]:
        """Places of finished artifacts with their manifests, of one kind or of all."""

    def locked(self, kind: str, name: str) -> AbstractContextManager[Place]:
        """A place to write to, for one process at a time. Waits for the holder, or takes over from one that died."""

    def describe(self) -> str:
        """A line about the store, once it was seen that it can be used. Raises UserError."""


class Directory:
    """An artifact in a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def path(self) -> Path:
        return self._path

    @property
    def url(self) -> str:
        return str(self._path)

    def manifest(self) -> str | None:
        try:
            if (size := (self._path / MANIFEST).stat().st_size) > LONGEST_MANIFEST:
                raise IntegrityError(f"{self._path / MANIFEST}: not a manifest: it has {size:,} bytes. {REMEDY}")
            return (self._path / MANIFEST).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError as error:
            raise IntegrityError(f"{self._path / MANIFEST}: not a valid manifest: {error}. {REMEDY}") from None
        except OSError as error:
            raise UserError(f"{self._path / MANIFEST}: cannot be read: {error.strerror}") from None

    def have(self, file: File) -> Path:
        refuse_links(self._path, file)
        return self._path / file.path

    def verify(self, files: Sequence[File]) -> None:
        for file in files:
            verify_file(self._path, file)

    def verify_there(self, files: Sequence[File]) -> None:
        self.verify(files)

    def names(self) -> list[str]:
        files = (Path(folder, name).relative_to(self._path) for folder, _, names in os.walk(self._path) for name in names)
        whole = (file for file in files if file.parts[0] != SCRATCH and not file.name.startswith(TEMPORARY))
        return sorted(file.as_posix() for file in whole)

    def refuse_others(self, files: Sequence[File]) -> None:
        listed = {MANIFEST, *(file.path for file in files)}
        for path in sorted(self._path.rglob("*")):
            name = path.relative_to(self._path).as_posix()
            if name not in listed and not name.startswith(".") and not path.is_dir():
                raise IntegrityError(f"{path}: not in the manifest, and a model's library could read it. Take it out of there")

    def room(self, needed: int, what: str) -> None:
        refuse_full(self._path, needed, what)

    def begin(self, scratch: Path) -> None:
        self._path.mkdir(parents=True, exist_ok=True)

    def recover(self, name: str) -> bool:
        return (self._path / name).exists()

    def keep(self, point: Path) -> None:
        pass

    def publish(self, name: str) -> None:
        pass

    def commit(self, names: Sequence[str], manifest: str, scratch: Path) -> None:
        write_text(self._path / MANIFEST, manifest)
        shutil.rmtree(scratch, ignore_errors=True)


class LocalHome:
    """Artifacts in a directory."""

    def __init__(self, root: Path, tell: Tell) -> None:
        self._root = root
        self._tell = tell

    @property
    def root(self) -> Path:
        return self._root

    @property
    def url(self) -> str:
        return str(self._root)

    def place(self, kind: str, name: str) -> Directory:
        return Directory(self._root / kind / name)

    def finished(self, kind: str | None = None) -> Iterator[tuple[Place, str]]:
        for manifest in sorted(self._root.glob(f"{kind or '*'}/*/{MANIFEST}")):
            place = Directory(manifest.parent)
            if (text := place.manifest()) is not None:
                yield place, text

    @contextmanager
    def locked(self, kind: str, name: str) -> Iterator[Place]:
        with Lock(self._root / LOCKS / f"{kind}-{name}.lock", tell=self._tell):
            yield self.place(kind, name)

    def describe(self) -> str:
        place = self._root
        while not place.exists():
            place = place.parent
        if not place.is_dir():
            raise UserError(f"{self._root}: cannot be written: {place} is no directory. Name another place in `store`")
        if not os.access(place, os.W_OK | os.X_OK):
            read_only = os.statvfs(place).f_flag & os.ST_RDONLY
            why = os.strerror(errno.EROFS if read_only else errno.EACCES)
            raise UserError(f"{self._root}: cannot be written: {why}. Mend that, or name another place in `store`")
        return f"{self._root} ({readable(free_bytes(place))} free)"


def refuse_links(root: Path, file: File) -> None:
    """A link in an artifact of a stranger's could lead anywhere on this machine.

    Raises:
        IntegrityError: the file, or a directory on the way to it, is a link.
    """
    path = root
    for part in file.path.split("/"):
        path = path / part
        if path.is_symlink():
            raise IntegrityError(f"{path}: a link to {path.readlink()}; artifacts hold files only. {REMEDY}")


def verify_file(root: Path, file: File) -> None:
    """Compare one file with its manifest entry.

    Raises:
        IntegrityError: the file is missing, or its size or hash differs.
    """
    refuse_links(root, file)
    path = root / file.path
    if not path.is_file():
        raise IntegrityError(f"{path}: listed in the manifest but missing. {REMEDY}")
    if path.stat().st_size != file.bytes:
        raise IntegrityError(f"{path}: has {path.stat().st_size} bytes, the manifest says {file.bytes}. {REMEDY}")
    if sha256_of(path) != file.sha256:
        raise IntegrityError(f"{path}: was changed after it was written (sha256 differs from the manifest). {REMEDY}")
