"""The store: where artifacts lie, how they are found by key, and how one process at a time makes one.

<store>/<kind>/<first 16 hex digits of the key>/manifest.json and the files it lists
<store>/locks/<kind>-<key>.lock
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.artifacts.files import sha256_of
from pipeline.artifacts.lock import Lock
from pipeline.artifacts.work import Work
from pipeline.errors import IntegrityError, UserError
from schemas.manifest import FORMAT, File, Kind, Manifest, Parent, digest

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A finished artifact."""

    path: Path
    manifest: Manifest

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
        """Files that hold a table, in order."""
        files = (*self.manifest.content.files, *self.manifest.provenance.files)
        return [self.path / file.path for file in files if file.table and file.table.split("/")[0] == table]

    def verify(self) -> None:
        """Compare every file with the manifest, bytes and hash.

        Raises:
            IntegrityError: names the first file that is missing or differs.
        """
        for file in (*self.manifest.content.files, *self.manifest.provenance.files):
            verify_file(self.path, file)
        if self.manifest.expected_id() != self.manifest.id:
            raise IntegrityError(f"{self.path / MANIFEST}: its content hashes to another id than it states. {_REMEDY}")


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
    """A directory of artifacts."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path_of(self, request: Request) -> Path:
        return self.root / request.kind / request.key[:16]

    def find(self, request: Request) -> Artifact | None:
        """The finished artifact for a request, or None."""
        path = self.path_of(request)
        if not (path / MANIFEST).exists():
            return None
        artifact = load_artifact(path)
        if artifact.manifest.content.key != request.key:
            raise IntegrityError(
                f"{path / MANIFEST}: holds key {artifact.manifest.content.key}, expected {request.key}. {_REMEDY}"
            )
        return artifact

    def get(self, parent: Parent) -> Artifact:
        """The artifact with an id, looked up by kind."""
        for manifest in sorted((self.root / parent.kind).glob(f"*/{MANIFEST}")):
            artifact = load_artifact(manifest.parent)
            if artifact.id == parent.id:
                return artifact
        raise IntegrityError(f"{self.root}: no {parent.kind} artifact with id {parent.id[:16]} ({parent.role})")

    def artifacts(self) -> Iterator[Artifact]:
        """Every finished artifact."""
        for manifest in sorted(self.root.glob(f"*/*/{MANIFEST}")):
            yield load_artifact(manifest.parent)

    @contextmanager
    def work(self, request: Request) -> Iterator[Work | Artifact]:
        """Make an artifact, or get it if another process finished it while this one waited for the lock.

        The directory may hold finished files of an earlier, interrupted attempt (see `Work.has`).
        """
        with Lock(self.root / "locks" / f"{request.kind}-{request.key[:16]}.lock"):
            found = self.find(request)
            yield found or Work(self.path_of(request), request)


def load_artifact(path: str | Path) -> Artifact:
    """Open a finished artifact by its directory.

    Raises:
        UserError: there is no manifest.
        IntegrityError: the manifest is of an unknown format, not valid, or not the one that its id names.
    """
    path = Path(path)
    file = path / MANIFEST
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not a finished artifact (it has no {MANIFEST})") from None
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{file}: not a valid manifest: {error}. {_REMEDY}") from None
    written_as = value.get("format") if isinstance(value, dict) else None
    if written_as is not None and written_as != FORMAT:
        raise IntegrityError(f"{file}: format {written_as!r}; this version of rollbook reads {FORMAT!r}")
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        raise IntegrityError(f"{file}: not a valid manifest: {error.errors()[0]['msg']}. {_REMEDY}") from None
    if manifest.expected_id() != manifest.id:
        raise IntegrityError(f"{file}: its content hashes to another id than it states. {_REMEDY}")
    for entry in (*manifest.content.files, *manifest.provenance.files):
        if Path(entry.path).is_absolute() or ".." in Path(entry.path).parts:
            raise IntegrityError(f"{file}: lists {entry.path!r}, which lies outside the artifact")
    return Artifact(path, manifest)


def verified(path: str | Path) -> Artifact:
    """Open a finished artifact that is about to be worked from, after comparing every byte of it with its manifest.

    Raises:
        UserError, IntegrityError: as `load_artifact` and `Artifact.verify`.
    """
    artifact = load_artifact(path)
    artifact.verify()
    return artifact


def verify_file(root: Path, file: File) -> None:
    """Compare one file with its manifest entry.

    Raises:
        IntegrityError: the file is missing, or its size or hash differs.
    """
    path = root / file.path
    if not path.is_file():
        raise IntegrityError(f"{path}: listed in the manifest but missing. {_REMEDY}")
    if path.stat().st_size != file.bytes:
        raise IntegrityError(f"{path}: has {path.stat().st_size} bytes, the manifest says {file.bytes}. {_REMEDY}")
    if sha256_of(path) != file.sha256:
        raise IntegrityError(f"{path}: was changed after it was written (sha256 differs from the manifest). {_REMEDY}")


_REMEDY = "Restore it from a copy, or delete the artifact's directory and run again to make it anew."
