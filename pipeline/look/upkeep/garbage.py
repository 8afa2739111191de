"""What in a store can be deleted, and deleting it while nobody works there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pipeline.common.errors import UserError
from pipeline.config.course import Course
from pipeline.look.upkeep.inventory import Inventory, Item, Reason
from pipeline.run.order import STAGES
from pipeline.run.retention import freed, is_alone, removable, remove
from pipeline.run.state import Run
from pipeline.store import Artifact, Store
from pipeline.store.store import load_artifact
from pipeline.train.carried import state_request

ABOUT: dict[Reason, str] = {
    "temporary": "what a killed process was writing, or had no more use for",
    "unfinished": "work that no run goes on with, resume points in it included",
    "unreferenced": "finished artifacts that no run, comparison or kept artifact was made from",
    "retention": "weights of checkpoints that no rule of `keep` keeps; their manifests and tables stay",
    "set aside": "damaged artifacts that `rollbook repair` replaced",
    "lock": "lock files that nobody holds",
}


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
    """Whether no other run uses it. A store does not say who does, so this is for the user to say."""
    abandon: bool = False
    """Whether what an unfinished run could go on from may go too."""


def find_garbage(inventory: Inventory, users: Users) -> Garbage:
    """Look through a store.

    Raises:
        IntegrityError: a manifest is damaged, so that it cannot be told what its artifact was made from.
    """
    folders = inventory.folders()
    items = [*inventory.temporary(), *inventory.set_aside()]
    kept: list[str] = []
    unfinished = [f"run {run.config.name}" for run in users.runs if run.missing is not None] + list(users.unfinished)
    if not users.all_known:
        kept.append("artifacts and unfinished work: other runs may use this store. Name those with --run; then --no-other-runs")
    elif unfinished and not users.abandon:
        kept.append(f"artifacts and unfinished work: {', '.join(unfinished)} may go on from them. Finish it, or --abandon them")
    else:
        sizes = {folder.name: folder.bytes for folder in folders}
        items += [Item(folder.name, "unfinished", folder.bytes) for folder in folders if not folder.finished]
        unreferenced = [f"{a.kind}/{a.path.name}" for a in _unreferenced(Store(inventory.url), users.runs)]
        items += [Item(name, "unreferenced", sizes.get(name, 0)) for name in unreferenced]
    items += _spared(Store(inventory.url), users, {item.name for item in items})
    held, free = inventory.locks()
    gone = {item.name for item in items}
    unfinished_folders = {folder.name for folder in folders if not folder.finished}
    items += [lock for lock, of in free if of in gone or of not in unfinished_folders]
    return Garbage(tuple(items), tuple(kept), tuple(held))


def delete(inventory: Inventory, items: Sequence[Item]) -> Iterator[Item]:
    """Delete, one after the other. Yields what is gone.

    Raises:
        UserError: somebody holds a lock of the store.
    """
    if held := inventory.locks()[0]:
        raise UserError(
            f"{inventory.url}: work goes on there ({'; '.join(held)}). Nothing was deleted; try again when it is done"
        )
    for item in items:
        if item.reason == "retention":
            _remove_weights(Store(inventory.url), item)
            yield item
        elif inventory.remove(item):
            yield item


def _spared(store: Store, users: Users, gone: Collection[str]) -> Iterator[Item]:
    """Weights that the runs can spare: of a run with a store of its own, or where all runs are known."""
    runs = users.runs if users.all_known else [run for run in users.runs if is_alone(run.config)]
    for artifact, removal in removable(store, runs):
        if (name := f"{artifact.kind}/{artifact.path.name}") not in gone:
            yield Item(name, "retention", freed(artifact, removal), removal)


def _remove_weights(store: Store, item: Item) -> None:
    assert item.removal is not None
    remove(store, load_artifact(f"{store.url}/{item.name}"), item.removal)


def _unreferenced(store: Store, runs: Sequence[Run]) -> list[Artifact]:
    """Artifacts that are no root and no ancestor of one.

    Roots are what runs name, and what no stage of a run makes, such as comparisons: somebody asked for it by itself.
    """
    artifacts = {artifact.id: artifact for artifact in store.artifacts()}
    wanted = [id for run in runs for id in _named(store, run)]
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


def _named(store: Store, run: Run) -> Iterator[str]:
    from pipeline.look.show.subject import uses_of

    for use in uses_of(run):
        yield use.artifact.id
        if use.role == "checkpoint" and (state := store.find(state_request(use.artifact.manifest.content.key))):
            yield state.id  # what the next training goes on from
    replayed = (source for _, settings in Course(run.config).distinct() for source in settings.replay.artifacts)
    for path in dict.fromkeys(source.path for source in replayed):
        with suppress(UserError):
            yield load_artifact(path).id


def _compared(comparison: Artifact) -> list[str]:
    """Ids in a comparison's rows: answers and shaped tables are no parents of it."""
    from pipeline.store import read_table
    from schemas import Comparison

    rows = read_table(comparison, Comparison)
    return [id for name in rows.columns if name.endswith("_id") for id in rows[name].drop_nulls().to_list()]
