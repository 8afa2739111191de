"""Integrity: every listed file is there with its bytes, nothing else is, and every artifact's parents are here."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.look.audit.findings import Ledger
from pipeline.look.audit.folders import StoreRoot, is_scratch
from pipeline.look.audit.holdings import Held, Shelf
from pipeline.store.layout import ASIDE, MANIFEST, REMOVED, SCRATCH

DELETE = "Delete it, or move it out of the store: nobody knows what it is."


def check_strays(root: StoreRoot, ledger: Ledger) -> None:
    """Report what lies in a store where no artifact can be."""
    for name in root.strays():
        if name == ASIDE:
            remedy = "`rollbook gc --delete` deletes it."
            said = {"expected": "nothing but artifacts and locks", "found": "damaged artifacts that `rollbook repair` replaced"}
            ledger.at(file=name).note("integrity", "set aside", **said, remedy=remedy)
            continue
        said = {"expected": "nothing but artifacts and locks", "found": "an entry that belongs to neither"}
        ledger.at(file=name).error("integrity", "unlisted", **said, remedy=DELETE)


def check_listing(held: Held, ledger: Ledger) -> None:
    """Report entries of an artifact's directory that its manifest does not list."""
    listed = {file.path for file in held.files} | {MANIFEST}
    for name, size in held.folder.entries.items():
        if name in listed or (name == REMOVED and held.removal):
            continue
        found = "a link, a device or an empty directory" if size is None else f"a file of {size:,} bytes"
        said = {"expected": "nothing but the listed files", "found": found}
        if name.partition("/")[0] == SCRATCH:
            remedy = "A process was killed after it had finished the artifact. It can be deleted: `rollbook gc --delete` does."
            said["found"] = "resume state, which is no part of the artifact"
            held.spot(ledger, SCRATCH).note("integrity", "unlisted", **said, remedy=remedy)
        elif is_scratch(name):
            remedy = "It was left behind by a process that was killed: delete it."
            held.spot(ledger, name).warning("integrity", "unlisted", **said, remedy=remedy)
        else:
            held.spot(ledger, name).error("integrity", "unlisted", **said, remedy=DELETE)


def check_lineage(audited: Iterable[Held], shelf: Shelf, ledger: Ledger, *, alone: bool) -> None:
    """Report parents that are not here.

    Args:
        alone: whether one artifact is audited outside a store: then its parents cannot be here.
    """
    for held in audited:
        for parent in held.manifest.content.parents:
            found = shelf.get(parent.id)
            ledger.count("lineage", "parents", 0 if found is None else 1, 1)
            said = {"expected": f"{parent.kind} {parent.id}, its {parent.role}", "column": "content.parents"}
            spot = held.spot(ledger, MANIFEST)
            if found is None and alone:
                remedy = "Audit it in the store that it comes from to follow where it comes from."
                spot.note("lineage", "parent", **said, found="not here: the artifact is on its own", remedy=remedy)
            elif found is None:
                remedy = "Restore the parent from a copy; without it nobody can say where this comes from."
                spot.warning("lineage", "parent", **said, found="no artifact with that id", remedy=remedy)
            elif found.kind != parent.kind:
                remedy = "Restore both from a copy."
                spot.error("lineage", "parent", **said, found=f"a {found.kind} artifact", remedy=remedy)
