"""What in a store can be deleted, and deleting it while nobody works there."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pipeline.artifacts import Artifact, Store
from pipeline.artifacts.cache import MANIFEST
from pipeline.artifacts.files import TEMPORARY
from pipeline.artifacts.place import LOCKS
from pipeline.artifacts.store import load_artifact
from pipeline.errors import UserError
from pipeline.inspect.repair import ASIDE
from pipeline.inspect.signing import SUFFIX
from pipeline.requests import STAGES
from pipeline.run import Run
from schemas.manifest import Kind

KEY = re.compile(r"[0-9a-f]{16}")
Reason = Literal["temporary", "unfinished", "unreferenced", "set aside", "lock"]
ABOUT: dict[Reason, str] = {
    "temporary": "files that a killed process was writing",
    "unfinished": "work that no run goes on with, resume points in it included",
    "unreferenced": "finished artifacts that no run, comparison or kept artifact was made from",
    "set aside": "damaged artifacts that `rollbook repair` replaced",
    "lock": "lock files that nobody holds",
}


@dataclass(frozen=True)
class Item:
    """Something to delete."""

    path: Path
    reason: Reason
    bytes: int


@dataclass(frozen=True)
class Garbage:
    """What can be deleted, and why the rest cannot."""

    items: tuple[Item, ...]
    kept: tuple[str, ...]
    """Sentences on what is left alone, and what would change that."""
    held: tuple[str, ...]
    """Locks that somebody holds now, with their holders."""


@dataclass(frozen=True)
class Users:
    """Who uses a store."""

    runs: Sequence[Run]
    unfinished: Sequence[str]
    """What else is not finished: comparisons."""
    all_known: bool
    """Whether no other run uses it."""
    abandon: bool = False
    """Whether what an unfinished run could go on from may go too."""


def find_garbage(root: Path, users: Users) -> Garbage:
    """Look through a store in a directory.

    Raises:
        IntegrityError: a manifest is damaged, so that it cannot be told what its artifact was made from.
    """
    folders = list(artifact_folders(root))
    leftovers = [path for folder in folders for path in sorted(folder.rglob(f"{TEMPORARY}*")) if path.is_file()]
    items = [Item(path, "temporary", path.lstat().st_size) for path in leftovers]
    items += [Item(path, "set aside", _size(path)) for path in sorted(root.glob(f"{ASIDE}/*/*/*"))]
    kept: list[str] = []
    unfinished = [f"run {run.config.name}" for run in users.runs if run.missing is not None] + list(users.unfinished)
    if not users.all_known:
        kept.append("artifacts and unfinished work: other runs may use this store. Name them all: --run RUN, and --no-other-runs")
    elif unfinished and not users.abandon:
        kept.append(f"artifacts and unfinished work: {', '.join(unfinished)} may go on from them. Finish it, or --abandon them")
    else:
        items += [Item(path, "unfinished", _size(path)) for path in folders if not (path / MANIFEST).exists()]
        items += [Item(a.path, "unreferenced", _size(a.path)) for a in _unreferenced(Store(root), users.runs)]
    held, free = _locks(root)
    gone = {item.path for item in items}
    items += [Item(path, "lock", path.lstat().st_size) for path in free if _is_spent(root, path, gone)]
    return Garbage(tuple(items), tuple(kept), tuple(held))


def artifact_folders(root: Path) -> Iterator[Path]:
    """<kind>/<key>, finished or not. Nothing else in a directory is taken for a part of the store."""
    for kind in get_args(Kind):
        yield from (path for path in sorted((root / kind).glob("*")) if KEY.fullmatch(path.name) and path.is_dir())


def delete(root: Path, items: Sequence[Item]) -> Iterator[Item]:
    """Delete, one after the other. Yields what is gone.

    An artifact's manifest goes first: from then on it does not exist, whatever becomes of the rest.

    Raises:
        UserError: somebody holds a lock of the store.
    """
    if held := _locks(root)[0]:
        raise UserError(f"{root}: work goes on there ({'; '.join(held)}). Nothing was deleted; try again when it is done")
    for item in items:
        if item.reason in ("unfinished", "unreferenced"):
            lock = root / LOCKS / f"{item.path.parent.name}-{item.path.name}.lock"
            with _held(lock, create=True) as is_free:
                if not is_free:
                    continue
                _remove(item.path)
        elif item.reason == "lock":
            with _held(item.path) as is_free:
                if not is_free:
                    continue
        else:
            _remove(item.path)
            if item.reason == "set aside":
                with suppress(OSError):  # others are kept there
                    for empty in list(item.path.parents)[:3]:
                        empty.rmdir()
        yield item


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
    path.with_name(path.name + SUFFIX).unlink(missing_ok=True)


def _unreferenced(store: Store, runs: Sequence[Run]) -> list[Artifact]:
    """Artifacts that are no root and no ancestor of one.

    Roots are what runs name, and what no stage of a run makes, such as comparisons: somebody asked for it by itself.
    """
    artifacts = {artifact.id: artifact for artifact in store.artifacts()}
    wanted = [id for run in runs for id in _named(run)]
    wanted += [id for id, a in artifacts.items() if a.manifest.content.stage.partition("/")[0] not in STAGES]
    reached: set[str] = set()
    while wanted:
        id = wanted.pop()
        if id in reached or id not in artifacts:
            continue
        reached.add(id)
        artifact = artifacts[id]
        wanted += [parent.id for parent in artifact.manifest.content.parents]
        if artifact.kind == "comparison":
            wanted += _compared(artifact)
    return [artifact for id, artifact in artifacts.items() if id not in reached]


def _named(run: Run) -> Iterator[str]:
    from pipeline.inspect.places import uses_of

    for use in uses_of(run):
        yield use.artifact.id
    for source in run.config.replay.artifacts:
        with suppress(UserError):
            yield load_artifact(source.path).id


def _compared(comparison: Artifact) -> list[str]:
    """Ids in a comparison's rows: answers and shaped tables are no parents of it."""
    from pipeline.artifacts import read_table
    from schemas import Comparison

    rows = read_table(comparison, Comparison)
    return [id for name in rows.columns if name.endswith("_id") for id in rows[name].drop_nulls().to_list()]


def _is_spent(root: Path, lock: Path, gone: set[Path]) -> bool:
    """Whether what a lock was for is finished, deleted, or never came to be."""
    kind, _, name = lock.stem.partition("-")
    place = root / kind / name
    return place in gone or not place.exists() or (place / MANIFEST).exists()


def _locks(root: Path) -> tuple[list[str], list[Path]]:
    """Who holds locks, and the lock files that nobody holds."""
    held, free = [], []
    for path in sorted((root / LOCKS).glob("*.lock")):
        with _held(path, remove=False) as is_free:
            if is_free:
                free.append(path)
            else:
                held.append(f"{path.stem}: {_holder(path)}")
    return held, free


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def _held(path: Path, *, create: bool = False, remove: bool = True) -> Iterator[bool]:
    """Hold a lock if nobody else does. The file goes with it, unless it is only looked at."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o644)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
        if remove:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _size(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, name)).st_size
    return total
