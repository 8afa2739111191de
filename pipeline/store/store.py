"""The store: where artifacts lie, how they are found by key, and how one process at a time makes one.

<store>/<kind>/<first 16 hex digits of the key>/manifest.json and the files it lists
<store>/locks/<kind>-<key>.lock

The same in a local directory and in a bucket (s3://bucket/prefix).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.common.errors import IntegrityError, UserError
from pipeline.store.artifact import Artifact, Request, made_for, open_artifact, parsed_artifact
from pipeline.store.cache import store_of
from pipeline.store.directory import Directory, LocalBackend
from pipeline.store.lock import say
from pipeline.store.place import Backend, Notify, Place
from pipeline.store.work import Work
from schemas.manifest import Parent


class Store:
    """Artifacts in a directory or a bucket."""

    def __init__(self, root: str | Path, notify: Notify = say) -> None:
        """
        Args:
            root: a directory, or s3://bucket/prefix.
            notify: called when the user should know why it takes long: who is waited for.

        Raises:
            UserError: another kind of address.
        """
        self.backend: Backend = _backend(root, notify)

    @property
    def root(self) -> Path:
        """Its directory on this machine."""
        return self.backend.root

    @property
    def url(self) -> str:
        """What it is called in records and to people."""
        return self.backend.url

    def path_of(self, request: Request) -> Path:
        return self._place(request).path

    def _place(self, request: Request) -> Place:
        return self.backend.place(request.kind, request.key[:16])

    def find(self, request: Request) -> Artifact | None:
        """The finished artifact for a request, or None."""
        return made_for(request, self._place(request))

    def get(self, parent: Parent) -> Artifact:
        """The artifact with an id, looked up by kind."""
        for place, text in self.backend.finished(parent.kind):
            artifact = parsed_artifact(place, text)
            if artifact.id == parent.id:
                return artifact
        raise IntegrityError(f"{self.url}: no {parent.kind} artifact with id {parent.id[:16]} ({parent.role})")

    def discard(self, request: Request) -> None:
        """Delete the artifact of a request, if there is one."""
        self.backend.discard(request.kind, request.key[:16])

    def artifacts(self) -> Iterator[Artifact]:
        """Every finished artifact."""
        for place, text in self.backend.finished():
            yield parsed_artifact(place, text)

    @contextmanager
    def work(self, request: Request) -> Iterator[Work | Artifact]:
        """Make an artifact, or get it if another process finished it while this one waited for the lock.

        The directory may hold finished files of an earlier, interrupted attempt (see `Work.has_table`).
        """
        with self.backend.locked(request.kind, request.key[:16]) as place:
            yield made_for(request, place) or Work(place, request)


def load_artifact(path: str | Path) -> Artifact:
    """Open a finished artifact by its directory, or by its address in a bucket (s3://bucket/prefix/kind/key).

    Raises:
        UserError: there is no manifest, or it cannot be read.
        IntegrityError: the manifest is of an unknown format, not valid, or not the one that its id names.
    """
    folder, _, name = str(path).rstrip("/").rpartition("/")
    root, _, kind = folder.rpartition("/")
    if kind and (_is_bucket(path) or store_of(Path(root))):
        return open_artifact(_backend(root, say).place(kind, name))
    if Path(path, "run.json").exists():
        raise UserError(f"{path}: a run, not one of its artifacts; `rollbook lineage {path} --all` lists those")
    return open_artifact(Directory(Path(path)))


def verified(path: str | Path) -> Artifact:
    """Open a finished artifact that is about to be worked from, after comparing all of it with its manifest.

    Raises:
        UserError, IntegrityError: as `load_artifact` and `Artifact.verify`.
    """
    artifact = load_artifact(path)
    artifact.verify()
    return artifact


def _backend(root: str | Path, notify: Notify) -> Backend:
    """A store by its address. A directory that is a bucket's cache stands for the bucket."""
    from pipeline.store.mirror import BucketBackend

    address = str(root) if _is_bucket(root) else store_of(Path(root))
    if address is not None:
        return BucketBackend(address, notify)
    if "://" in str(root):
        raise UserError(f"store: {str(root).partition('://')[0]}:// is not supported; use a directory, or s3://bucket/prefix")
    return LocalBackend(Path(root), notify)


def _is_bucket(place: str | Path) -> bool:
    return str(place).startswith("s3:/")  # a Path has one slash left
