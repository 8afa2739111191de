"""Damage of an artifact, and two ways out: a new artifact without the damaged shards, or the same one made anew.

Nothing is guessed: a file whose bytes differ from the manifest is not read, however much of it could be.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.artifacts import Artifact, Request
from pipeline.artifacts.cache import MANIFEST
from pipeline.artifacts.files import sha256_of, sync, whole_file
from pipeline.artifacts.lock import Lock
from pipeline.artifacts.mirror import BucketHome
from pipeline.artifacts.place import ASIDE, LOCKS
from pipeline.errors import IntegrityError, UserError, writing
from pipeline.generate.summary import read_scalars, summarize
from pipeline.inspect.places import store_around
from schemas import Rollouts
from schemas.manifest import File

STAGE = "repair/1"
SHARDED = ("rollouts", "shaped", "scores")
"""Kinds whose stages go on from shards that are there."""


@dataclass(frozen=True)
class Broken:
    """A file that differs from the manifest."""

    file: File
    why: str


@dataclass(frozen=True)
class Damage:
    """What is wrong with an artifact's files."""

    artifact: Artifact
    broken: tuple[Broken, ...]
    unlisted: tuple[str, ...]
    """Files that the manifest does not name. They are in nobody's way, unless a model's library reads them."""

    @property
    def whole(self) -> tuple[File, ...]:
        names = {broken.file.path for broken in self.broken}
        return tuple(file for file in self.artifact.files if file.path not in names)

    @property
    def shards(self) -> tuple[Broken, ...]:
        """Broken shards that the artifact can do without."""
        if self.artifact.kind != "rollouts":
            return ()
        return tuple(broken for broken in self.broken if broken.file.table is not None)


def find_damage(artifact: Artifact) -> Damage:
    """Compare every byte that the store has of an artifact with its manifest."""
    broken = []
    for file in artifact.files:
        try:
            artifact.place.verify_there([file])
        except IntegrityError as error:
            broken.append(Broken(file, str(error).partition(": ")[2].partition(". ")[0]))
    listed = {MANIFEST, *(file.path for file in artifact.files)}
    return Damage(artifact, tuple(broken), tuple(name for name in artifact.place.names() if name not in listed))


def drop_shards(damage: Damage) -> Artifact:
    """A new rollouts artifact with the shards that are whole, in the same store; the damaged one stays as it is.

    Its recipe is the damaged one's, with what was dropped and why; the damaged one is a parent.

    Raises:
        UserError: nothing is broken, nothing is left, or other files than shards are broken.
    """
    artifact = damage.artifact
    kept = [file for file in damage.whole if file.table is not None]
    if not damage.broken:
        raise UserError(f"{artifact.url}: every file is whole; there is nothing to drop")
    if artifact.kind != "rollouts":
        raise UserError(f"{artifact.url}: only rollouts can do without a shard, this is a {artifact.kind}. Try --regenerate")
    if not kept:
        raise UserError(f"{artifact.url}: no shard is whole, so nothing would be left. Try --regenerate")
    content = artifact.manifest.content
    dropped = [{**broken.file.model_dump(exclude={"table"}), "why": broken.why} for broken in damage.broken]
    recipe = {**content.recipe, "repair": {"of": artifact.id, "dropped": dropped}}
    request = Request(content.kind, STAGE, recipe, (*content.parents, artifact.as_parent("damaged")))
    with store_around(artifact).work(request) as work:
        if isinstance(work, Artifact):
            return work
        for file in kept:
            _copy(artifact.place.have(file), work.path / file.path, file)
            work.has_table(file.path, Rollouts)
        return work.finish(summarize(read_scalars([work.path / file.path for file in kept])), notes={"repaired": artifact.url})


def set_aside(damage: Damage) -> str:
    """Move a damaged artifact out of the way, and leave its whole shards where its stage goes on from them.

    Returns:
        Where the damaged one is kept, as it was: a directory, or an address in a bucket.

    Raises:
        UserError: nothing is broken.
    """
    artifact = damage.artifact
    if not damage.broken:
        raise UserError(f"{artifact.url}: every file is whole; there is nothing to make anew")
    stay = [file for file in damage.whole if artifact.kind in SHARDED and file.table is not None]
    home = store_around(artifact).home
    if isinstance(home, BucketHome):
        return _set_aside_there(home, artifact, stay)
    place = artifact.path.absolute()
    store, name = place.parent.parent, place.name
    with Lock(store / LOCKS / f"{artifact.kind}-{name}.lock"), writing(place):
        kept = store / ASIDE / artifact.kind / name
        kept.mkdir(parents=True, exist_ok=True)
        aside = kept / _next(old.name for old in kept.iterdir())
        place.rename(aside)
        sync(kept)
        place.mkdir()
        for file in stay:
            _copy(aside / file.path, place / file.path, file)
    return str(aside)


def _set_aside_there(home: BucketHome, artifact: Artifact, stay: Sequence[File]) -> str:
    """In a bucket: nothing is moved there, so the folder is copied, and what is not to stay is deleted."""
    name = artifact.path.name
    with home.locked(artifact.kind, name):
        kept = f"{ASIDE}/{artifact.kind}/{name}/"
        aside = kept + _next(path.partition("/")[0] for path in home.sizes(kept))
        home.copy(f"{artifact.kind}/{name}/", f"{aside}/")
        home.delete(f"{artifact.kind}/{name}/", {file.path for file in stay})
    return f"{home.url}/{aside}"


def _next(names: Iterable[str]) -> str:
    """The number after those that are taken."""
    return str(1 + max((int(name) for name in names if name.isdigit()), default=0))


def _copy(source: Path, target: Path, file: File) -> None:
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
        if sha256_of(temporary) != file.sha256:
            raise IntegrityError(f"{source}: changed while it was copied")


def to_json(damage: Damage) -> dict[str, Any]:
    """For machines."""
    return {
        "artifact": damage.artifact.url,
        "id": damage.artifact.id,
        "whole": not damage.broken and not damage.unlisted,
        "broken": [{"path": broken.file.path, "rows": broken.file.rows, "why": broken.why} for broken in damage.broken],
        "unlisted": list(damage.unlisted),
        "rows_left": sum(file.rows or 0 for file in damage.whole if file.table),
    }
