"""What an audit is of: an artifact, a run directory, or a store."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.common.near import did_you_mean
from pipeline.config.load import SUFFIXES
from pipeline.look.audit.bucket_folders import BucketRoot
from pipeline.look.audit.findings import LONGEST
from pipeline.look.audit.folders import KINDS, Folder, LocalFolder, LocalRoot, StoreRoot
from pipeline.run.record import RECORD, run_of_config
from pipeline.store.cache import store_of
from pipeline.store.layout import MANIFEST

ARTIFACTS = "artifacts"
"""Where a run's own store lies in its directory."""


@dataclass(frozen=True)
class Scope:
    """What is looked at."""

    kind: Literal["artifact", "run", "store"]
    path: str
    """As it was asked for."""
    whole: tuple[StoreRoot, ...] = ()
    """Stores of which everything is audited."""
    shared: tuple[StoreRoot, ...] = ()
    """Stores of which only what the run or the artifact needs is audited."""
    artifact: Folder | None = None
    directory: Path | None = None
    """The run's."""

    @property
    def record(self) -> Path | None:
        return self.directory / RECORD if self.directory else None


def scope_of(path: str | Path) -> Scope:
    """What lies at a path.

    Raises:
        UserError: nothing that can be audited.
    """
    place = Path(path)
    if not can_be(str(path), Path()):
        raise UserError(f"{str(path)[:LONGEST]!r}: no path that a file can have")
    if is_in_bucket(path):
        return _in_bucket(str(path))
    if place.name == RECORD and place.is_file():
        place = place.parent
    if not place.exists():
        raise UserError(f"{path}: no such file or directory{did_you_mean(place)}")
    if place.suffix in SUFFIXES and place.is_file():
        raise UserError(f"{path}: {run_of_config(place)}")
    if not place.is_dir():
        raise UserError(f"{path}: a file. Name the directory of an artifact, a run or a store")
    if (place / MANIFEST).exists():
        store = place.absolute().parent.parent
        in_store = place.absolute().parent.name in KINDS
        return Scope(
            "artifact", str(path), shared=(LocalRoot(store),) if in_store else (), artifact=LocalFolder(place.absolute())
        )
    if (place / RECORD).exists() or _is_store(place / ARTIFACTS):
        return _run(str(path), place)
    if _is_store(place):
        return Scope("store", str(path), whole=(LocalRoot(place),))
    raise UserError(
        f"{path}: nothing to audit. It has no {MANIFEST} (an artifact), no {RECORD} (a run) and no directory such as "
        "rollouts/ or checkpoint/ (a store)"
    )


def is_in_bucket(path: str | Path) -> bool:
    """Whether a path is an address in a bucket, or a directory of the cache, which stands for one."""
    place = Path(path).absolute()
    return str(path).startswith("s3:/") or any(store_of(folder) for folder in (place, place.parent.parent))


def _in_bucket(path: str) -> Scope:
    address = path.rstrip("/").removesuffix(f"/{MANIFEST}")
    folder, _, name = address.rpartition("/")
    store, _, kind = folder.rpartition("/")
    if kind in KINDS:
        root = BucketRoot(store)
        return Scope("artifact", path, shared=(root,), artifact=root.folder(kind, name))
    root = BucketRoot(address)
    kinds = root.kinds()
    if any(kind in KINDS for kind in kinds):
        return Scope("store", path, whole=(root,))
    deeper = f". Is it {root.url}/{ARTIFACTS}?" if ARTIFACTS in kinds else ""
    raise UserError(f"{path}: nothing to audit. It has no folder such as rollouts/ or checkpoint/ (a store){deeper}")


def root_of(store: str) -> StoreRoot:
    """A store by its directory or address."""
    return BucketRoot(store) if is_in_bucket(store) else LocalRoot(Path(store))


def _is_store(place: Path) -> bool:
    return any((place / kind).is_dir() for kind in KINDS)


def _run(path: str, directory: Path) -> Scope:
    """A run's own store is audited whole; of a store that it shares with others, what its record names."""
    own = directory / ARTIFACTS
    named = (reference for reference in _references(directory / RECORD) if can_be(reference, directory))
    roots = {_store_of(reference, directory) for reference in named}
    shared = sorted(root for root in roots if root.startswith("s3:") or Path(root).resolve() != own.resolve())
    whole = (LocalRoot(own),) if own.is_dir() else ()
    return Scope("run", path, whole, tuple(map(root_of, shared)), directory=directory)


def can_be(reference: str, directory: Path) -> bool:
    """Whether a path, such as one of a run's record, can be that of a file, here or in a bucket."""
    try:
        if not reference.startswith("s3:"):
            (directory / reference).lstat()
        return "\0" not in reference and bool(reference.encode(errors="surrogateescape"))
    except ValueError:  # a null byte, or half a character
        return False
    except OSError as error:
        return error.errno not in (errno.ENAMETOOLONG, errno.ELOOP)


def _store_of(reference: str, directory: Path) -> str:
    """The store that an artifact of a run's record lies in."""
    if reference.startswith("s3:"):
        return reference.rstrip("/").rsplit("/", 2)[0]
    return str((directory / reference).absolute().parent.parent)


def _references(record: Path) -> Iterator[str]:
    """Paths of artifacts that a record names; none if it cannot be read, which is reported elsewhere."""
    try:
        value = json.loads(record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    yield from (entry["path"] for entry in references_in(value))


def named_places(scope: Scope) -> set[str]:
    """Kind and directory of every artifact that a run's record names."""
    record = scope.record
    return {"/".join(Path(path).parts[-2:]) for path in _references(record)} if record else set()


def last_checkpoint(run: Path) -> str | None:
    """Id of the newest checkpoint that a run's record names; None if there is no such record."""
    try:
        iterations = json.loads((run / RECORD).read_bytes())["iterations"]
        found = [entry[name]["id"] for entry in iterations for name in ("policy", "checkpoint") if entry.get(name)]
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None
    return str(found[-1]) if found else None


def references_in(value: Any) -> Iterator[dict[str, str]]:
    """Every reference to an artifact (kind, id and path) inside a record, at any depth."""
    if isinstance(value, dict):
        if {"kind", "id", "path"} <= value.keys() and all(isinstance(value[name], str) for name in ("kind", "id", "path")):
            yield value
        else:
            for part in value.values():
                yield from references_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from references_in(part)
