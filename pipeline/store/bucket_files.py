"""The files of an artifact in a bucket, as they are read: fetched into the cache, and compared with their manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.common.errors import IntegrityError
from pipeline.store.bucket import Bucket
from pipeline.store.cache import Cache
from pipeline.store.files import sha256_of, whole_file, write_text
from pipeline.store.layout import MANIFEST, REMOVED, SCRATCH
from pipeline.store.remembered import known_sha256
from pipeline.store.removed import Removal
from schemas.manifest import File

AT_ONCE = 8
"""Files that are sent or fetched at once."""
REMEDY = "Restore the object from a copy, or have it made anew: `rollbook repair` on its artifact says how."


class _Differs(Exception):
    """What was read is not what is listed."""


class BucketFiles:
    """A folder of a bucket, and the directory of its copies on this machine."""

    def __init__(self, bucket: Bucket, prefix: str, cache: Cache, path: Path) -> None:
        """
        Args:
            prefix: of the keys; ends with a slash.
        """
        self._bucket, self._prefix, self._cache, self._path = bucket, prefix, cache, path
        self._manifest: str | None = None

    @property
    def path(self) -> Path:
        return self._path

    @property
    def url(self) -> str:
        return self._url_of("").rstrip("/")

    def _url_of(self, name: str) -> str:
        return f"s3://{self._bucket.name}/{self._prefix}{name}"

    def manifest(self) -> str | None:
        try:
            found = self.manifest_bytes()
            return None if found is None else found.decode()
        except UnicodeDecodeError:
            raise IntegrityError(f"{self._url_of(MANIFEST)}: not a valid manifest: it is not UTF-8. {REMEDY}") from None

    def manifest_bytes(self) -> bytes | None:
        """The manifest, whatever it holds; None if there is none."""
        found = self._bucket.read(self._prefix + MANIFEST)
        if found is None:
            return None
        self._manifest = found[0].decode(errors="replace")
        return found[0]

    def have(self, file: File) -> Path:
        path = self._path / file.path
        self._cache.use(self._path)
        if not path.is_file() or path.stat().st_size != file.bytes:
            self._fetch([file])
        return path

    def verify(self, files: Sequence[File]) -> None:
        self._cache.use(self._path)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            whole = list(pool.map(self._is_whole, files))
        self._fetch([file for file, right in zip(files, whole, strict=True) if not right])

    def verify_there(self, files: Sequence[File]) -> None:
        self._cache.use(self._path)
        self._fetch(files)
        write_text(self._path / MANIFEST, self._manifest or "")

    def names(self) -> list[str]:
        names = [key.removeprefix(self._prefix) for key in self._bucket.keys(self._prefix)]
        return [name for name in names if not name.startswith(f"{SCRATCH}/")]

    def expect(self, needed: int) -> None:
        """Have room for copies of that many bytes, and keep them while this process works. Raises StageFailed."""
        self._cache.use(self._path)
        self._cache.make_room(needed, f"a copy of {self.url}")

    def sha256(self, file: File, on_piece: Callable[[int], bool], *, keep: bool) -> str:
        """Hash the object's bytes, whatever copy of it is here.

        Args:
            on_piece: called with the number of bytes of each piece; False ends it.
            keep: leave a copy here, in which nothing but the listed bytes will be.

        Raises:
            FileNotFoundError: there is no such object.
        """
        hashed = hashlib.sha256()

        def read(into: BinaryIO | None) -> str:
            for block in self._bucket.blocks(self._prefix + file.path):
                hashed.update(block)
                if into is not None:
                    into.write(block)
                if not on_piece(len(block)):
                    break
            return hashed.hexdigest()

        if not keep:
            return read(None)
        with suppress(_Differs), whole_file(self._path / file.path) as temporary:
            with temporary.open("wb") as copy:
                found = read(copy)
            if found != file.sha256:
                raise _Differs
        if hashed.hexdigest() == file.sha256:
            write_text(self._path / MANIFEST, self._manifest or "")
        return hashed.hexdigest()

    def start(self, file: File, count: int) -> bytes:
        """The object's first bytes."""
        return b"".join(self._bucket.blocks(self._prefix + file.path, count))

    def _is_whole(self, file: File) -> bool:
        path = self._path / file.path
        return path.is_file() and path.stat().st_size == file.bytes and known_sha256(path) == file.sha256

    def _fetch(self, files: Sequence[File]) -> None:
        if files:
            self._cache.make_room(sum(file.bytes for file in files), f"a copy of {self.url}")
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(self._fetch_file, files))
            write_text(self._path / MANIFEST, self._manifest or "")

    def _fetch_file(self, file: File) -> None:
        with whole_file(self._path / file.path) as temporary:
            if not self._bucket.download(self._prefix + file.path, temporary):
                raise IntegrityError(f"{self._url_of(file.path)}: listed in the manifest but missing. {REMEDY}")
            if (size := temporary.stat().st_size) != file.bytes:
                raise IntegrityError(f"{self._url_of(file.path)}: has {size} bytes, the manifest says {file.bytes}. {REMEDY}")
            if sha256_of(temporary) != file.sha256:
                raise IntegrityError(
                    f"{self._url_of(file.path)}: was changed after it was written (sha256 differs from the manifest). {REMEDY}"
                )

    def removal(self) -> Removal | None:
        found = self._bucket.read(self._prefix + REMOVED)
        return Removal.read(found[0].decode(errors="replace")) if found else None

    def refuse_others(self, files: Sequence[File]) -> None:
        """Only files that the manifest lists are fetched."""
