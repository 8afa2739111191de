"""What lies in a store in a bucket, object by object. Objects are read where they lie, whatever copies are on this machine.

Every object is read once: hashed as it comes, and left in the cache if its content is looked at later. Weights are not, unless
the audit is deep: of them the header is enough.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.common.errors import StageFailed, UserError
from pipeline.look.audit.folders import KINDS, is_signature
from pipeline.store import Store
from pipeline.store.bucket_files import AT_ONCE
from pipeline.store.layout import LARGEST_MANIFEST, LOCKS, MANIFEST
from pipeline.store.mirror import BucketBackend, BucketPlace
from schemas.manifest import File


class BucketFolder:
    """A folder of a bucket.

    Args:
        entries: size of every object in it by its path.
        being_written: asks whether a living process holds its lock.
    """

    def __init__(self, place: BucketPlace, entries: Mapping[str, int], being_written: Callable[[], bool]) -> None:
        self.place, self.entries, self._being_written = place, entries, being_written
        self._guard = threading.Lock()
        self._expected = False
        self._manifest: bytes | UserError | None = None
        self._asked = False

    @property
    def kind(self) -> str:
        return self.place.path.parent.name

    @property
    def name(self) -> str:
        return self.place.path.name

    def ask(self) -> None:
        """Read the manifest, so that it is at hand."""
        try:
            self._manifest = self._read() if MANIFEST in self.entries else None
        except StageFailed:
            raise
        except UserError as error:
            self._manifest = error
        self._asked = True

    def manifest(self) -> bytes | None:
        if not self._asked:
            self.ask()
        if isinstance(self._manifest, UserError):
            raise self._manifest
        return self._manifest

    def _read(self) -> bytes | None:
        if self.entries[MANIFEST] > LARGEST_MANIFEST:
            raise UserError(f"larger than {LARGEST_MANIFEST >> 20} MiB")
        return self.place.manifest_bytes()

    def local(self, file: File) -> Path:
        return self.place.have(file)

    def start(self, file: File, count: int) -> bytes:
        return self.place.start(file, count)

    def sha256(self, file: File, on_piece: Callable[[int], bool], *, keep: bool) -> str:
        if keep:
            with self._guard:
                if not self._expected:
                    self.place.expect(sum(size for name, size in self.entries.items() if not name.endswith(".safetensors")))
                    self._expected = True
            if file.path.endswith(".safetensors"):
                self.place.expect(file.bytes)
        return self.place.sha256(file, on_piece, keep=keep)

    def being_written(self) -> bool:
        return self._being_written()


class BucketRoot:
    """A store in a bucket."""

    def __init__(self, url: str) -> None:
        """
        Raises:
            UserError: not an address in a bucket.
        """
        backend = Store(url).backend
        assert isinstance(backend, BucketBackend)
        self._backend = backend

    @property
    def url(self) -> str:
        return self._backend.url

    def folder(self, kind: str, name: str) -> BucketFolder:
        """One folder."""
        (found,) = self._folders({(kind, name): self._backend.sizes(f"{kind}/{name}/")})
        return found

    def kinds(self) -> list[str]:
        """Names of the folders directly in the store."""
        return self._backend.folders()

    def folders(self) -> Iterator[BucketFolder]:
        found: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for kind in KINDS:
            for path, size in self._backend.sizes(f"{kind}/").items():
                name, slash, rest = path.partition("/")
                if slash and rest and self._backend.is_place(kind, name):
                    found[kind, name][rest] = size
        folders = self._folders(found)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(BucketFolder.ask, folders))
        yield from folders

    def _folders(self, found: Mapping[tuple[str, str], Mapping[str, int]]) -> list[BucketFolder]:
        return [
            BucketFolder(
                self._backend.place(kind, name),
                {path: entries[path] for path in sorted(entries)},
                lambda kind=kind, name=name: self._backend.holder(kind, name) is not None,  # type: ignore[misc]
            )
            for (kind, name), entries in found.items()
        ]

    def strays(self) -> Iterator[str]:
        sizes = self._backend.sizes("")
        names: dict[str, set[str]] = defaultdict(set)
        for path in sizes:
            first, _, rest = path.partition("/")
            if "/" in rest:
                names[first].add(rest.partition("/")[0])
        found = (self._stray(path, names) for path, size in sizes.items() if size or not path.endswith("/"))
        yield from dict.fromkeys(name for name in found if name is not None)

    def _stray(self, path: str, names: Mapping[str, Collection[str]]) -> str | None:
        """The entry that an object makes a stranger in the store; None if it is where it may be."""
        first, slash, rest = path.partition("/")
        if first == LOCKS and slash:
            return None if "/" not in rest and rest.endswith(".lock") else path
        if first not in KINDS or not slash:
            return first
        name, inner, _ = rest.partition("/")
        is_file = not inner and is_signature(name, names[first])
        return None if is_file or (inner and self._backend.is_place(first, name)) else path
