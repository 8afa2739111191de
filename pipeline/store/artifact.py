"""A finished artifact, and the request that names one before it is made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import IntegrityError, UserError
from pipeline.common.near import did_you_mean
from pipeline.store.layout import MANIFEST, REMOVED
from pipeline.store.place import REMEDY, Place
from pipeline.store.removed import Removal
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
        file = self._by_name.get(name)
        return self.path / name if file is None else self.place.have(file)

    @cached_property
    def _by_name(self) -> dict[str, File]:
        return {file.path: file for file in self.files}

    @property
    def removal(self) -> Removal | None:
        """The note on weights that were removed on purpose; only checkpoints have one."""
        return self.place.removal() if self.kind == "checkpoint" else None

    def verify(self) -> None:
        """Have every file on this machine, and compare it with the manifest, size and hash.

        A large file that has not changed on this machine's disk since it was hashed is not read again.

        Raises:
            UserError: its weights were removed on purpose.
            IntegrityError: names the first file that is missing, differs, or is not listed.
        """
        if removal := self.removal:
            raise UserError(
                f"{self.url}: its weights were {removal}. To have them again, restore {', '.join(removal.files)} from a copy and "
                f"delete {REMOVED}; or delete the directory and run the same config again, which trains it anew from its parent"
            )
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


def open_artifact(place: Place) -> Artifact:
    """Open a finished artifact.

    Raises:
        UserError: there is no manifest, or it cannot be read.
        IntegrityError: the manifest is of an unknown format, not valid, or not the one that its id names.
    """
    text = place.manifest()
    if text is None:
        raise UserError(f"{place.url}: not a finished artifact (it has no {MANIFEST}){did_you_mean(place.url)}")
    return parsed_artifact(place, text)


def made_for(request: Request, place: Place) -> Artifact | None:
    """The finished artifact of a place, which must be the one that was asked for; None if there is none."""
    text = place.manifest()
    if text is None:
        return None
    artifact = parsed_artifact(place, text)
    if artifact.manifest.content.key != request.key:
        raise IntegrityError(
            f"{place.url}/{MANIFEST}: holds key {artifact.manifest.content.key}, expected {request.key}. {REMEDY}"
        )
    return artifact


def parsed_artifact(place: Place, text: str) -> Artifact:
    """An artifact by the text of its manifest.

    Raises:
        IntegrityError: the manifest is of an unknown format, not valid, or not the one that its id names.
    """
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
