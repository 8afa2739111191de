"""Everything that a scope holds, opened; and which of it is audited."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.look.audit.findings import Ledger
from pipeline.look.audit.folders import Folder
from pipeline.look.audit.holdings import Held, Shelf, take
from pipeline.look.audit.integrity import check_strays
from pipeline.look.audit.scope import Scope, can_be, is_in_bucket, named_places, root_of
from schemas.manifest import ORIGINAL


@dataclass(frozen=True)
class Gathered:
    """Artifacts of a scope."""

    shelf: Shelf
    """All that can be opened: parents are looked up here."""
    audited: tuple[Held, ...]
    """Those that are audited."""
    unopened: int
    """Directories that hold no artifact that can be opened."""


def gather(scope: Scope, ledger: Ledger) -> Gathered:
    """Open what there is, and report what cannot be opened.

    Raises:
        UserError: there is nothing to audit.
    """
    wanted = named_places(scope)
    folders = [(folder, True) for root in scope.whole for folder in root.folders()]
    folders += [(folder, f"{folder.kind}/{folder.name}" in wanted) for root in scope.shared for folder in root.folders()]
    if scope.artifact is not None:
        own = scope.artifact.place.url
        folders = [(folder, False) for folder, _ in folders if folder.place.url != own] + [(scope.artifact, True)]
    for root in scope.whole:
        check_strays(root, ledger)
    unheard = Ledger()
    opened: list[tuple[Held, Folder, bool]] = []
    missed = 0
    for folder, heard in folders:
        held = take(folder, ledger if heard else unheard, in_store=_in_store(scope, folder))
        if held is not None:
            opened.append((held, folder, heard))
        elif heard:
            missed += 1
    shelf = Shelf(_with_originals([held for held, _, _ in opened]))
    audited = {held.folder.place.url: held for held, _, heard in opened if heard}
    if scope.kind == "run":
        for held in shelf.ancestors(list(audited.values())):
            if held.folder.place.url not in audited:
                take(held.folder, ledger, in_store=True)
                audited[held.folder.place.url] = held
    if not audited and not missed and scope.record is None:
        raise UserError(f"{scope.path}: no artifacts there")
    return Gathered(shelf, tuple(audited.values()), missed)


def _with_originals(found: list[Held]) -> list[Held]:
    """Artifacts, and those of the stores that hold what a base model is a copy of: a run can begin where another one ended."""
    there, opened = {held.id for held in found}, {held.folder.place.url.rsplit("/", 2)[0] for held in found}
    waiting = list(found)
    while waiting:
        for store in _stores_of_originals(waiting.pop(), there):
            if store not in opened:
                opened.add(store)
                more = [held for folder in root_of(store).folders() if (held := take(folder, Ledger(), in_store=True))]
                found, waiting = [*found, *more], [*waiting, *more]
                there |= {held.id for held in more}
    return found


def _stores_of_originals(held: Held, there: Container[str]) -> list[str]:
    """Where the missing originals of a base model lay when it was copied, as far as that can be looked at."""
    place = held.manifest.provenance.notes.get(ORIGINAL)
    missing = any(parent.role == ORIGINAL and parent.id not in there for parent in held.manifest.content.parents)
    if not missing or not isinstance(place, str) or not can_be(place, Path()):
        return []
    store = place.rstrip("/").rsplit("/", 2)[0]
    return [store] if is_in_bucket(store) or Path(store).is_dir() else []


def _in_store(scope: Scope, folder: Folder) -> bool:
    return scope.artifact is None or folder is not scope.artifact or bool(scope.shared)
