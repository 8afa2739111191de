"""Damage of an artifact, and two ways out: a new artifact without the damaged shards, or the same one made anew.

Nothing is guessed: a file whose bytes differ from the manifest is not read, however much of it could be.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.errors import IntegrityError, UserError, writing
from pipeline.generate.summary import read_scalars, summarize
from pipeline.generate.turns import turn_figures
from pipeline.generate.unknowns import count_unknowns
from pipeline.look.show.subject import store_around
from pipeline.run.order import STAGES
from pipeline.store import Artifact, Request
from pipeline.store.files import sha256_of, sync, whole_file
from pipeline.store.layout import ASIDE, LOCKS, MANIFEST, REMOVED
from pipeline.store.lock import Lock
from pipeline.store.mirror import BucketBackend
from schemas import TABLES
from schemas.manifest import File

STAGE = "repair/1"
COMMANDS = {
    "import-rollouts": "`rollbook import`",
    "scored-logprobs": "`rollbook import --logprobs-from`",
    "grade": "`rollbook grade`",
    "compare": "`rollbook compare`",
    "repair": "`rollbook repair --drop-shards`",
}
"""What makes the artifacts that no stage of a run makes."""
SHARDED = ("rollouts", "shaped", "scores", "revisions")
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
    def left(self) -> tuple[File, ...]:
        """Whole tables but for those beside a shard that is not. Without its origins or turns a shard is not whole either."""
        gone = {_number(broken.file) for broken in self.broken if _table(broken.file) in ("rollouts", "origins", "turns")}
        return tuple(file for file in self.whole if _table(file) in TABLES and _number(file) not in gone)

    @property
    def rows_left(self) -> int:
        return rows_of(self.left, self.artifact.kind)


def find_damage(artifact: Artifact) -> Damage:
    """Compare every byte that the store has of an artifact with its manifest."""
    removal = artifact.removal
    removed = set(removal.files) if removal else set()
    broken = []
    for file in (file for file in artifact.files if file.path not in removed):
        try:
            artifact.place.verify_there([file])
        except IntegrityError as error:
            broken.append(Broken(file, str(error).partition(": ")[2].partition(". ")[0]))
    listed = {MANIFEST, *([REMOVED] if removal else []), *(file.path for file in artifact.files)}
    return Damage(artifact, tuple(broken), tuple(name for name in artifact.place.names() if name not in listed))


def doubted(artifact: Artifact) -> Damage:
    """As if no file of an artifact were what it should be: an audit can find that of files that are what the manifest says."""
    return Damage(artifact, tuple(Broken(file, "is to be made anew") for file in artifact.files), ())


def drop_shards(damage: Damage) -> Artifact:
    """A new rollouts artifact with the shards that are whole, in the same store; the damaged one stays as it is.

    Its recipe is the damaged one's, with what was dropped and why; the damaged one is a parent.

    Raises:
        UserError: nothing is broken, nothing is left, or other files than shards are broken.
    """
    artifact = damage.artifact
    if not damage.broken:
        raise UserError(f"{artifact.url}: every file is whole; there is nothing to drop")
    if artifact.kind != "rollouts":
        raise UserError(f"{artifact.url}: only rollouts can do without a shard, this is a {artifact.kind}. {remedy(artifact)}")
    if not damage.rows_left:
        raise UserError(f"{artifact.url}: no shard is whole, so nothing would be left. {remedy(artifact)}")
    content = artifact.manifest.content
    recipe = {**content.recipe, "repair": {"of": artifact.id, "dropped": _dropped(damage)}}
    request = Request(content.kind, STAGE, recipe, (*content.parents, artifact.as_parent("damaged")))
    with store_around(artifact).work(request) as work:
        if isinstance(work, Artifact):
            return work
        for file in damage.left:
            _copy(artifact.place.have(file), work.path / file.path, file)
            work.has_table(file.path, TABLES[_table(file)])
        return work.finish(_summary(damage, work.path), notes={"repaired": artifact.url})


def _dropped(damage: Damage) -> list[dict[str, Any]]:
    """Entries of the recipe: what is broken, and what lay beside a shard that is dropped."""
    beside = [file for file in damage.whole if file.table is not None and file not in damage.left]
    lost = [*damage.broken, *(Broken(file, "beside a shard that is dropped") for file in beside)]
    return [{**broken.file.model_dump(exclude={"table"}), "why": broken.why} for broken in lost]


def _summary(damage: Damage, directory: Path) -> dict[str, Any]:
    """The figures that the damaged artifact's summary has, of the rows that are left."""
    before = damage.artifact.summary
    tables = ("rollouts", "origins", "turns")
    files = {name: [directory / file.path for file in damage.left if _table(file) == name] for name in tables}
    aside = rows_of(damage.left, "setaside")
    unknowns = count_unknowns(before.keys(), files["rollouts"], files["origins"])
    figures = {**summarize(read_scalars(files["rollouts"])), **turn_figures(files["turns"])}
    return {**figures, **unknowns, **({"set_aside": aside} if aside else {})}


def rows_of(files: Iterable[File], table: str) -> int:
    """Rows of a table in some files."""
    return sum(file.rows or 0 for file in files if _table(file) == table)


def _table(file: File) -> str:
    """Name of the table that a file holds; empty if it holds none."""
    return (file.table or "").partition("/")[0]


def _number(file: File) -> str:
    """What a shard has in common with the files beside it: 00001.parquet of part-00001.parquet and origins-00001.parquet."""
    return file.path.partition("-")[2]


def is_made_by_a_run(artifact: Artifact) -> bool:
    return artifact.manifest.content.stage.partition("/")[0] in STAGES


def remedy(artifact: Artifact) -> str:
    """How an artifact that cannot be mended comes back."""
    if is_made_by_a_run(artifact):
        return "Try --regenerate"
    command = COMMANDS.get(artifact.manifest.content.stage.partition("/")[0], "the command that made it")
    named = artifact.manifest.provenance.notes.get("read_from")
    sources = f" (it read {', '.join(map(str, named))})" if isinstance(named, list) and named else ""
    return f"No run makes it: move its directory away and repeat {command} as it was given{sources}"


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
    backend = store_around(artifact).backend
    if isinstance(backend, BucketBackend):
        return _set_aside_there(backend, artifact, stay)
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


def _set_aside_there(backend: BucketBackend, artifact: Artifact, stay: Sequence[File]) -> str:
    """In a bucket: nothing is moved there, so the folder is copied, and what is not to stay is deleted."""
    name = artifact.path.name
    with backend.locked(artifact.kind, name):
        kept = f"{ASIDE}/{artifact.kind}/{name}/"
        aside = kept + _next(path.partition("/")[0] for path in backend.sizes(kept))
        backend.copy(f"{artifact.kind}/{name}/", f"{aside}/")
        backend.delete(f"{artifact.kind}/{name}/", {file.path for file in stay})
    return f"{backend.url}/{aside}"


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
        "rows_left": damage.rows_left,
    }
