"""Weights of checkpoints that no rule of `keep` keeps and nothing needs any more: found, and removed.

What stays whatever the rules say:

    the base model, and the newest checkpoint        the next iteration, or whoever uses what was trained, starts from them
    what a later iteration reads as its reference     `reference` says which
    what an artifact beside this run was made from    a comparison's trial, another run's rollouts, an export
    what the snapshot of a comparison was drawn with  more algorithms may be compared on it

Manifest, tables, tokenizer and settings of a checkpoint stay, with a note on what is gone. In a store that other runs may use,
`rollbook gc` removes and the run does not: a store does not say what another run will do next.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

from pipeline.common.errors import UserError
from pipeline.config.course import Course
from pipeline.config.run import RunConfig
from pipeline.run.state import Run
from pipeline.run.status import artifacts_of
from pipeline.run.stopping import best_of
from pipeline.store import Artifact, Store
from pipeline.store.removed import Removal, is_weights
from pipeline.store.space import readable


def spare(run: Run) -> list[Artifact]:
    """Checkpoints that neither a rule of the run's `keep` keeps nor the rest of the run needs, the oldest first."""
    keep, versions = run.config.keep, _versions(run)
    if keep.everything or not versions:
        return []
    newest, best = max(versions), best_of(run)
    kept = {0, newest, *_references(run.config, newest)}
    kept |= {number for number in versions if number > newest - (keep.last or 1)}
    kept |= {number for number in versions if keep.every and number % keep.every == 0}
    kept |= {best.iteration} if keep.best and best else set()
    ids = {versions[number].id for number in kept if number in versions}
    return [artifact for number, artifact in sorted(versions.items()) if artifact.id not in ids]


def _versions(run: Run) -> dict[int, Artifact]:
    found = {step.iteration: step.policy for step in run.iterations}
    found |= {step.iteration + 1: step.checkpoint for step in run.iterations if step.checkpoint}
    return found


def _references(config: RunConfig, newest: int) -> Iterator[int]:
    """Iterations whose policies are read by the trainings that are still to come."""
    course = Course(config)
    for number in range(newest, config.iterations):
        if (version := course.at(number).reference.version(number)) is not None:
            yield version


def removable(store: Store, runs: Iterable[Run]) -> list[tuple[Artifact, Removal]]:
    """Weights that runs can spare and nothing else in the store needs, and that are still there, with the notes to leave."""
    runs = list(runs)
    found = {artifact.id: (artifact, _removal(artifact, run)) for run in runs for artifact in spare(run)}
    there = [(artifact, removal) for artifact, removal in found.values() if _is_there(artifact, removal)]
    wanted = _wanted(store, runs) if there else set()
    return [(artifact, removal) for artifact, removal in there if artifact.id not in wanted]


def _removal(artifact: Artifact, run: Run) -> Removal:
    names = [file.path for file in artifact.files if is_weights(file.path)]
    return artifact.removal or Removal.now(names, f"keep: {run.config.keep} of run {run.config.name}")


def _is_there(artifact: Artifact, removal: Removal) -> bool:
    return bool(set(removal.files) & set(artifact.place.names()))


def _wanted(store: Store, runs: Collection[Run]) -> set[str]:
    """Ids of what artifacts beside the runs were made from, comparisons were drawn with, or another run keeps."""
    own = {artifact.id for run in runs for step in run.iterations for artifact in artifacts_of(step).values() if artifact}
    compared = {place.name for run in runs for place in (run.config.directory / "comparisons").glob("*")}
    wanted = {a.id for run in runs for a in _versions(run).values() if a.id not in {one.id for one in spare(run)}}
    for artifact in store.artifacts():
        if artifact.id not in own or artifact.path.name in compared:
            wanted |= {parent.id for parent in artifact.manifest.content.parents if parent.kind == "checkpoint"}
    return wanted


def remove(store: Store, artifact: Artifact, removal: Removal) -> int:
    """Remove an artifact's weights. Waits for whoever is at work on it.

    Returns:
        Bytes that were listed.
    """
    with store.backend.locked(artifact.kind, artifact.path.name) as place:
        place.remove(removal)
    return freed(artifact, removal)


def freed(artifact: Artifact, removal: Removal) -> int:
    """Bytes of files that a note names."""
    return sum(file.bytes for file in artifact.files if file.path in removal.files)


def is_alone(config: RunConfig) -> bool:
    """Whether the run's store is its own."""
    return config.store is None


class Retention:
    """Removes what a run can spare from its own store, whenever it is shown the run.

    Args:
        notify: told what was removed. Whatever goes wrong is said there, and the run goes on.
    """

    def __init__(self, store: Store, notify: Callable[[str], None]) -> None:
        self._store, self._notify = store, notify
        self._gone: set[str] = set()

    def apply(self, run: Run) -> None:
        new = [artifact.id for artifact in spare(run) if artifact.id not in self._gone]
        if not new or not is_alone(run.config):
            return
        try:
            for artifact, removal in removable(self._store, [run]):
                size = readable(remove(self._store, artifact, removal))
                self._notify(f"weights of {artifact.kind}/{artifact.path.name} removed, {size} (keep: {run.config.keep})")
            self._gone.update(new)
        except (UserError, OSError) as error:
            self._notify(f"weights that keep: {run.config.keep} can spare were left there: {error}")
