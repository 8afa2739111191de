"""A store in a directory, and an artifact in one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.common.errors import IntegrityError, UserError
from pipeline.store.files import TEMPORARY, sha256_of, write_text
from pipeline.store.layout import LARGEST_MANIFEST, LOCKS, MANIFEST, REMOVED, SCRATCH
from pipeline.store.lock import Lock
from pipeline.store.place import REMEDY, Notify, Place
from pipeline.store.remembered import known_sha256
from pipeline.store.removed import Removal
from pipeline.store.space import free_bytes, readable, refuse_full
from schemas.manifest import File


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
            if (size := (self._path / MANIFEST).stat().st_size) > LARGEST_MANIFEST:
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
            verify_file(self._path, file, known_sha256)

    def verify_there(self, files: Sequence[File]) -> None:
        for file in files:
            verify_file(self._path, file, sha256_of)

    def names(self) -> list[str]:
        files = (Path(folder, name).relative_to(self._path) for folder, _, names in os.walk(self._path) for name in names)
        whole = (file for file in files if file.parts[0] != SCRATCH and not file.name.startswith(TEMPORARY))
        return sorted(file.as_posix() for file in whole)

    def removal(self) -> Removal | None:
        try:
            return Removal.read((self._path / REMOVED).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            return None

    def remove(self, removal: Removal) -> None:
        write_text(self._path / REMOVED, removal.text)
        for name in removal.files:
            (self._path / name).unlink(missing_ok=True)

    def refuse_others(self, files: Sequence[File]) -> None:
        listed = {MANIFEST, *(file.path for file in files)}
        for path in sorted(self._path.rglob("*")):
            name = path.relative_to(self._path).as_posix()
            if name not in listed and not name.startswith(".") and not path.is_dir():
                raise IntegrityError(f"{path}: not in the manifest, and a model's library could read it. Take it out of there")

    def require_space(self, needed: int, what: str) -> None:
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


class LocalBackend:
    """Artifacts in a directory."""

    def __init__(self, root: Path, notify: Notify) -> None:
        self._root = root
        self._notify = notify

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
        with Lock(self._root / LOCKS / f"{kind}-{name}.lock", notify=self._notify):
            yield self.place(kind, name)

    def discard(self, kind: str, name: str) -> None:
        with self.locked(kind, name) as place:
            (place.path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(place.path, ignore_errors=True)

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


def verify_file(root: Path, file: File, hashed: Callable[[Path], str]) -> None:
    """Compare one file with its manifest entry.

    Args:
        hashed: gives its sha256, read or remembered.

    Raises:
        IntegrityError: the file is missing, or its size or hash differs.
    """
    refuse_links(root, file)
    path = root / file.path
    if not path.is_file():
        raise IntegrityError(f"{path}: listed in the manifest but missing. {REMEDY}")
    if path.stat().st_size != file.bytes:
        raise IntegrityError(f"{path}: has {path.stat().st_size} bytes, the manifest says {file.bytes}. {REMEDY}")
    if hashed(path) != file.sha256:
        raise IntegrityError(f"{path}: was changed after it was written (sha256 differs from the manifest). {REMEDY}")
