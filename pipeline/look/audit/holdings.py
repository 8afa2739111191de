"""Artifacts that an audit holds in its hands: opened leniently, since a damaged one must be described and not refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pydantic import ValidationError

from pipeline.common.errors import UserError
from pipeline.look.audit.findings import Ledger, Spot
from pipeline.look.audit.folders import Folder, is_scratch
from pipeline.store import Artifact, Request
from pipeline.store.layout import MANIFEST, REMOVED
from pipeline.store.removed import Removal, is_weights
from schemas.manifest import FORMAT, UNSEALED, File, Manifest, seal_holds

RESTORE = "Restore it from a copy, or have it made anew by what made it."


@dataclass(frozen=True)
class Held:
    """An artifact with a manifest that can be read."""

    folder: Folder
    manifest: Manifest
    name: str
    """Kind and directory."""

    @property
    def artifact(self) -> Artifact:
        return Artifact(self.folder.place, self.manifest)

    @cached_property
    def removal(self) -> Removal | None:
        """The note on weights that were removed on purpose. One that names anything else is none."""
        found = self.artifact.removal if REMOVED in self.folder.entries else None
        return found if found and all(map(is_weights, found.files)) else None

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def kind(self) -> str:
        return self.manifest.content.kind

    @property
    def recipe(self) -> dict[str, Any]:
        return self.manifest.content.recipe

    @property
    def summary(self) -> dict[str, Any]:
        return self.manifest.content.summary

    @property
    def files(self) -> tuple[File, ...]:
        return (*self.manifest.content.files, *self.manifest.provenance.files)

    def tables(self, title: str) -> list[File]:
        """Files that hold a table, in order."""
        return [file for file in self.files if (file.table or "").partition("/")[0] == title]

    def file(self, path: str) -> File | None:
        return self._by_path.get(path)

    @cached_property
    def _by_path(self) -> dict[str, File]:
        return {file.path: file for file in reversed(self.files)}

    def spot(self, ledger: Ledger, file: str | None = None) -> Spot:
        return ledger.at(self.name, self.id, file)


class Shelf:
    """Every artifact that was found, by id."""

    def __init__(self, held: Iterable[Held]) -> None:
        self.all: list[Held] = list(held)
        self._by_id = {held.id: held for held in self.all}

    def get(self, id: str) -> Held | None:
        return self._by_id.get(id)

    def parent(self, of: Held, role: str) -> Held | None:
        """The parent that was used as `role`; None if it is not here or there is none."""
        return next((self.get(parent.id) for parent in of.manifest.content.parents if parent.role == role), None)

    def ancestors(self, of: Iterable[Held]) -> Iterator[Held]:
        """The artifacts and everything they were made from, as far as it is here."""
        waiting, seen = list(of), set()
        while waiting:
            held = waiting.pop()
            if held.id in seen:
                continue
            seen.add(held.id)
            yield held
            waiting += [found for parent in held.manifest.content.parents if (found := self.get(parent.id))]


def take(folder: Folder, ledger: Ledger, *, in_store: bool) -> Held | None:
    """Open an artifact and report what is wrong with its manifest. None if there is nothing that can be opened.

    Args:
        in_store: whether the directory's place says which kind and key it is of.
    """
    spot = ledger.at(f"{folder.kind}/{folder.name}")
    try:
        data = folder.manifest()
        entries = folder.entries
    except (UserError, OSError) as error:
        spot.of(MANIFEST).unknown(
            "integrity",
            "readable",
            expected="a file that can be read",
            found=str(error),
            remedy="Make it readable, and audit again.",
        )
        return None
    if data is None:
        _report_unfinished(spot, folder, list(entries))
        return None
    manifest = _parsed(data, spot.of(MANIFEST))
    if manifest is None:
        return None
    held = Held(folder, manifest, spot.artifact or "")
    _check_identity(held, data.decode(), held.spot(ledger, MANIFEST), in_store=in_store)
    return held


def _report_unfinished(spot: Spot, folder: Folder, entries: list[str]) -> None:
    found = f"{len(entries)} files and directories without one" if entries else "an empty directory"
    said: dict[str, Any] = {"expected": f"a {MANIFEST}, which is written last", "found": found}
    if folder.being_written():
        spot.note("integrity", "unfinished", **said, remedy="A process is at work on it: audit again when it is done.")
    elif entries and all(is_scratch(name) for name in entries):
        spot.note("integrity", "unfinished", **said, remedy="Interrupted work: run the same command again, or delete it.")
    else:
        remedy = "If it is interrupted work, run the same command again, or delete it; if it was finished once, restore it."
        spot.warning("integrity", "unfinished", **said, remedy=remedy)


def _parsed(data: bytes, spot: Spot) -> Manifest | None:
    try:
        value = json.loads(data.decode(), object_pairs_hook=unique_keys)
        written_as = value.get("format") if isinstance(value, dict) else None
        if isinstance(written_as, str) and written_as != FORMAT:
            spot.unknown(
                "integrity",
                "format",
                expected=FORMAT,
                found=written_as,
                remedy="Audit it with the version of rollbook that wrote it; if this one did, restore the file.",
            )
            return None
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # what is no JSON or no text has no hash
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (ValueError, RecursionError) as error:
        found = " ".join(str(error).split())
    spot.error("integrity", "manifest", expected="a valid manifest", found=found, remedy=RESTORE)
    return None


def _check_identity(held: Held, text: str, spot: Spot, *, in_store: bool) -> None:
    """Whether id, key, place and seal are what the manifest's content makes them."""
    manifest, content = held.manifest, held.manifest.content
    if manifest.expected_id() != manifest.id:
        spot.error("integrity", "id", expected=manifest.expected_id(), found=manifest.id, remedy=RESTORE, column="id")
    if manifest.seal == UNSEALED:
        remedy = "It was written by an older version: changes of its provenance cannot be found. Make it anew to seal it."
        spot.warning("integrity", "seal", expected="a seal", found="none", remedy=remedy, column="seal")
    elif not seal_holds(text, manifest.seal):
        said = {"expected": "the file's bytes as they were written", "found": "other bytes than those that were sealed"}
        spot.error("integrity", "seal", **said, remedy=RESTORE, column="seal")
    key = Request(content.kind, content.stage, content.recipe, content.parents).key
    if key != content.key:
        spot.error("integrity", "key", expected=key, found=content.key, remedy=RESTORE, column="content.key")
    if in_store and held.name != f"{content.kind}/{content.key[:16]}":
        remedy = "It was moved, or put in another's place: rename its directory, or delete it."
        spot.error("integrity", "place", expected=f"{content.kind}/{content.key[:16]}", found=held.name, remedy=remedy)
    seen: set[str] = set()
    for file in held.files:
        outside = PurePosixPath(file.path).is_absolute() or ".." in PurePosixPath(file.path).parts
        if outside or file.path in seen or file.path == MANIFEST or "\\" in file.path:
            said = {"expected": "paths inside the artifact, each once", "found": file.path, "remedy": RESTORE}
            spot.error("integrity", "path", **said, column="content.files")
        seen.add(file.path)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `json.loads`: an object whose keys are all different.

    Raises:
        ValueError: a key is there twice; readers would differ on what it says.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def safe(file: File) -> bool:
    """Whether a listed file lies inside its artifact."""
    path = PurePosixPath(file.path)
    return not path.is_absolute() and ".." not in path.parts and file.path not in ("", MANIFEST)
