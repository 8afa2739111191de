"""Everything that a scope holds, opened; and which of it is audited."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.audit.findings import Ledger
from pipeline.audit.folders import Folder
from pipeline.audit.holdings import Held, Shelf, take
from pipeline.audit.integrity import check_strays
from pipeline.audit.scope import Scope, named_places
from pipeline.errors import UserError


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
    shelf = Shelf(held for held, _, _ in opened)
    audited = {held.folder.place.url: held for held, _, heard in opened if heard}
    if scope.kind == "run":
        for held in shelf.ancestors(list(audited.values())):
            if held.folder.place.url not in audited:
                take(held.folder, ledger, in_store=True)
                audited[held.folder.place.url] = held
    if not audited and not missed and scope.record is None:
        raise UserError(f"{scope.path}: no artifacts there")
    return Gathered(shelf, tuple(audited.values()), missed)


def _in_store(scope: Scope, folder: Folder) -> bool:
    return scope.artifact is None or folder is not scope.artifact or bool(scope.shared)
