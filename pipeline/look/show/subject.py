"""What a path is: an artifact, a run or a store; and its artifacts, with what they are to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.common.errors import UserError
from pipeline.common.near import did_you_mean
from pipeline.config.load import SUFFIXES
from pipeline.run.record import RECORD, load_run, run_of_config
from pipeline.run.state import Run
from pipeline.run.status import artifacts_of
from pipeline.store import Artifact, Store
from pipeline.store.artifact import open_artifact
from pipeline.store.cache import store_of
from pipeline.store.layout import MANIFEST
from pipeline.store.store import load_artifact


@dataclass(frozen=True)
class Use:
    """An artifact, and what it is to the place that it was found in."""

    artifact: Artifact
    role: str
    """policy, rollouts, sampled, greedy, evaluation, shaped, checkpoint, training prompts, ...; its kind outside a run."""
    iteration: int | None = None


@dataclass(frozen=True)
class Subject:
    """What was found at a path."""

    what: Literal["artifact", "run", "store"]
    url: str
    uses: tuple[Use, ...]
    """Of a run, some artifacts come more than once: a checkpoint is the next iteration's policy."""
    run: Run | None = None

    def only(self) -> Artifact:
        """The artifact, where the path must be one.

        Raises:
            UserError: it is a run or a store.
        """
        if self.what != "artifact":
            raise UserError(f"{self.url}: a {self.what}; name one artifact in it, such as {self.uses[0].artifact.url}")
        return self.uses[0].artifact


def find_subject(path: str) -> Subject:
    """Look at what lies at a path: a directory, a file in one, or an address in a bucket.

    Raises:
        UserError: neither an artifact, a run nor a store.
        IntegrityError: a manifest or a run's record is damaged, or an artifact that the run names is missing.
    """
    if path.startswith("s3:/") or store_of(Path(path)) is not None:
        return _in_bucket(path)
    here = Path(path)
    directory = here.parent if here.is_file() else here
    if (directory / MANIFEST).exists():
        return _artifact(directory)
    if (directory / RECORD).exists():
        run = load_run(directory)
        return Subject("run", str(directory), tuple(uses_of(run)), run)
    if directory.is_dir() and (uses := _all(Store(directory))):
        return Subject("store", str(directory), uses)
    if here.suffix in SUFFIXES and here.is_file():
        raise UserError(f"{path}: {run_of_config(here)}")
    if near := did_you_mean(path):
        raise UserError(f"{path}: nothing there{near}")
    raise UserError(
        f"{path}: neither an artifact (a directory with {MANIFEST}), nor a run (with {RECORD}), nor a store (with <kind>/<key>/ "
        "directories in it)"
    )


def _in_bucket(path: str) -> Subject:
    try:
        return _artifact(path)
    except UserError as error:
        if type(error) is not UserError:
            raise
    store = Store(path)
    if uses := _all(store):
        return Subject("store", store.url, uses)
    raise UserError(f"{path}: no artifact there, and none in it")


def _artifact(path: str | Path) -> Subject:
    artifact = load_artifact(path)
    return Subject("artifact", artifact.url, (Use(artifact, artifact.kind),))


def _all(store: Store) -> tuple[Use, ...]:
    return tuple(Use(artifact, artifact.kind, artifact.summary.get("iteration")) for artifact in store.artifacts())


def uses_of(run: Run) -> Iterator[Use]:
    for role, prompts in run.prompts.items():
        yield Use(prompts, role)
    for step in run.iterations:
        for role, artifact in artifacts_of(step).items():
            if artifact is not None:
                yield Use(artifact, role, step.iteration)


def store_around(artifact: Artifact) -> Store:
    """The store that an artifact lies in."""
    if artifact.url.startswith("s3:"):
        return Store(artifact.url.rsplit("/", 2)[0])
    return Store(artifact.path.absolute().parent.parent)


def artifacts_in(store: Store, kind: str) -> Iterator[Artifact]:
    """Artifacts of a kind. One whose manifest is damaged is passed over; `rollbook audit` names it."""
    for place, _ in store.backend.finished(kind):
        with suppress(UserError):
            yield open_artifact(place)
