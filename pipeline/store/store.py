"""The store: where artifacts lie, how they are found by key, and how one process at a time makes one.

<store>/<kind>/<first 16 hex digits of the key>/manifest.json and the files it lists
<store>/locks/<kind>-<key>.lock

The same in a local directory and in a bucket (s3://bucket/prefix).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import IntegrityError, UserError
from pipeline.store.cache import MANIFEST, store_of
from pipeline.store.lock import say
from pipeline.store.place import REMEDY, Directory, Home, LocalHome, Place, Tell
from pipeline.store.work import Work
from schemas.manifest import FORMAT, File, Kind, Manifest, Parent, digest


@dataclass(frozen=True)
class Artifact:
    """A finished artifact."""

    place: Place
    manifest: Manifest

    @property
    def path(self) -> Path:
        """Its directory on this machine. Of a bucket's artifact it holds what was fetched: see `verify` and `tables`."""
        return self.place.path

    @property
    def url(self) -> str:
        """What it is called in records and to people: its directory, or its folder in a bucket."""
        return self.place.url

    @property
    def files(self) -> tuple[File, ...]:
        """Every file but the manifest."""
        return (*self.manifest.content.files, *self.manifest.provenance.files)

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def kind(self) -> Kind:
        return self.manifest.content.kind

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest.content.summary

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest.content.recipe

    def parent(self, role: str) -> Parent:
        return next(parent for parent in self.manifest.content.parents if parent.role == role)

    def as_parent(self, role: str) -> Parent:
        return Parent(role=role, kind=self.kind, id=self.id)

    def tables(self, table: str) -> list[Path]:
        """Files that hold a table, in order, on this machine."""
        return [self.place.have(file) for file in self.files if file.table and file.table.split("/")[0] == table]

    def file(self, name: str) -> Path:
        """A file by its name, on this machine. Whether there is one is for the caller to see."""
        return next((self.place.have(file) for file in self.files if file.path == name), self.path / name)

    def verify(self) -> None:
        """Have every file on this machine, and compare it with the manifest, bytes and hash.

        Raises:
            IntegrityError: names the first file that is missing, differs, or is not listed.
        """
        self.place.verify(self.files)
        self.place.refuse_others(self.files)
        if self.manifest.expected_id() != self.manifest.id:
            raise IntegrityError(f"{self.url}/{MANIFEST}: its content hashes to another id than it states. {REMEDY}")


@dataclass(frozen=True)
class Request:
    """What to make: enough to know the key before the work starts."""

    kind: Kind
    stage: str
    recipe: dict[str, Any]
    parents: tuple[Parent, ...] = ()

    @property
    def key(self) -> str:
        parents = [parent.model_dump() for parent in self.parents]
        return digest({"kind": self.kind, "stage": self.stage, "recipe": self.recipe, "parents": parents})

    def to_json(self) -> dict[str, Any]:
        parents = [parent.model_dump() for parent in self.parents]
        return {"kind": self.kind, "stage": self.stage, "recipe": self.recipe, "parents": parents}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Request:
        parents = tuple(Parent.model_validate(parent) for parent in value["parents"])
        return cls(value["kind"], value["stage"], value["recipe"], parents)


class Store:
    """Artifacts in a directory or a bucket."""

    def __init__(self, root: str | Path, tell: Tell = say) -> None:
        """
        Args:
            root: a directory, or s3://bucket/prefix.
            tell: called when the user should know why it takes long: who is waited for.

        Raises:
            UserError: another kind of address.
        """
        self.home: Home = _home(root, tell)

    @property
    def root(self) -> Path:
        """Its directory on this machine."""
        return self.home.root

    @property
    def url(self) -> str:
        """What it is called in records and to people."""
        return self.home.url

    def path_of(self, request: Request) -> Path:
        return self._place(request).path

    def _place(self, request: Request) -> Place:
        return self.home.place(request.kind, request.key[:16])

    def find(self, request: Request) -> Artifact | None:
        """The finished artifact for a request, or None."""
        return _made_for(request, self._place(request))

    def get(self, parent: Parent) -> Artifact:
        """The artifact with an id, looked up by kind."""
        for place, text in self.home.finished(parent.kind):
            artifact = _parsed(place, text)
            if artifact.id == parent.id:
                return artifact
        raise IntegrityError(f"{self.url}: no {parent.kind} artifact with id {parent.id[:16]} ({parent.role})")

    def artifacts(self) -> Iterator[Artifact]:
        """Every finished artifact."""
        for place, text in self.home.finished():
            yield _parsed(place, text)

    @contextmanager
    def work(self, request: Request) -> Iterator[Work | Artifact]:
        """Make an artifact, or get it if another process finished it while this one waited for the lock.

        The directory may hold finished files of an earlier, interrupted attempt (see `Work.has_table`).
        """
        with self.home.locked(request.kind, request.key[:16]) as place:
            yield _made_for(request, place) or Work(place, request)


def load_artifact(path: str | Path) -> Artifact:
    """Open a finished artifact by its directory, or by its address in a bucket (s3://bucket/prefix/kind/key).

    Raises:
        UserError: there is no manifest, or it cannot be read.
        IntegrityError: the manifest is of an unknown format, not valid, or not the one that its id names.
    """
    folder, _, name = str(path).rstrip("/").rpartition("/")
    root, _, kind = folder.rpartition("/")
    if kind and (_is_bucket(path) or store_of(Path(root))):
        return open_artifact(_home(root, say).place(kind, name))
    if Path(path, "run.json").exists():
        raise UserError(f"{path}: a run, not one of its artifacts; `rollbook lineage {path}` lists those")
    return open_artifact(Directory(Path(path)))


def open_artifact(place: Place) -> Artifact:
    """Open a finished artifact; see `load_artifact`."""
    text = place.manifest()
    if text is None:
        raise UserError(f"{place.url}: not a finished artifact (it has no {MANIFEST})")
    return _parsed(place, text)


def verified(path: str | Path) -> Artifact:
    """Open a finished artifact that is about to be worked from, after comparing every byte of it with its manifest.

    Raises:
        UserError, IntegrityError: as `load_artifact` and `Artifact.verify`.
    """
    artifact = load_artifact(path)
    artifact.verify()
    return artifact


def _home(root: str | Path, tell: Tell) -> Home:
    """A store by its address. A directory that is a bucket's cache stands for the bucket."""
    from pipeline.store.mirror import BucketHome

    address = str(root) if _is_bucket(root) else store_of(Path(root))
    if address is not None:
        return BucketHome(address, tell)
    if "://" in str(root):
        raise UserError(f"store: {str(root).partition('://')[0]}:// is not supported; use a directory, or s3://bucket/prefix")
    return LocalHome(Path(root), tell)


def _is_bucket(place: str | Path) -> bool:
    return str(place).startswith("s3:/")  # a Path has one slash left


def _made_for(request: Request, place: Place) -> Artifact | None:
    text = place.manifest()
    if text is None:
        return None
    artifact = _parsed(place, text)
    if artifact.manifest.content.key != request.key:
        raise IntegrityError(
            f"{place.url}/{MANIFEST}: holds key {artifact.manifest.content.key}, expected {request.key}. {REMEDY}"
        )
    return artifact


def _parsed(place: Place, text: str) -> Artifact:
    file = f"{place.url}/{MANIFEST}"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{file}: not a valid manifest: {error}. {REMEDY}") from None
    written_as = value.get("format") if isinstance(value, dict) else None
    if written_as is not None and written_as != FORMAT:
        raise IntegrityError(f"{file}: format {written_as!r}; this version of rollbook reads {FORMAT!r}")
    try:
        manifest = Manifest.model_validate(value)
        expected = manifest.expected_id()
    except ValidationError as error:
        raise IntegrityError(f"{file}: not a valid manifest: {_first_of(error)}. {REMEDY}") from None
    except (ValueError, RecursionError) as error:  # NaN, half a surrogate pair: what no canonical JSON holds
        raise IntegrityError(f"{file}: not a valid manifest: {error}. {REMEDY}") from None
    if expected != manifest.id:
        raise IntegrityError(f"{file}: its content hashes to another id than it states. {REMEDY}")
    return Artifact(place, manifest)


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg'].removeprefix('Value error, ')}" if place else str(first["msg"])
