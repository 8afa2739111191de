"""What differs between two artifacts, two runs, or two configurations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.common.differences import Difference, differences
from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.look.diff.table_difference import TableDifference, table_difference
from pipeline.look.diff.weights import WeightDifference, weight_difference
from pipeline.look.show.subject import Subject, store_around
from pipeline.store import Artifact
from schemas import TABLES

PLACES = ("name", "run_dir", "store")
"""Settings that say where a run lies, and decide no result."""
DEEPEST = 50
"""Generations that are followed to the first difference."""


@dataclass(frozen=True)
class Cause:
    """Ancestors of one role that were made differently from the same parents: where the difference began."""

    path: str
    """Roles on the way to them: rollouts < policy."""
    settings: tuple[Difference, ...]


@dataclass(frozen=True)
class ArtifactDifference:
    """What differs between two artifacts."""

    a: Artifact
    b: Artifact
    settings: tuple[Difference, ...]
    """Stage and recipe."""
    parents: tuple[Difference, ...]
    """Ids by role."""
    causes: tuple[Cause, ...]
    summary: tuple[Difference, ...]
    tables: tuple[TableDifference, ...]
    weights: WeightDifference | None
    files: tuple[Difference, ...]
    """Hashes of files that are no tables, and of what only one of them has."""
    provenance: tuple[Difference, ...]
    """What may differ between equal results: versions, host, command."""

    @property
    def equal(self) -> bool:
        return self.a.id == self.b.id


@dataclass(frozen=True)
class RunDifference:
    """What differs between two runs, or configurations."""

    settings: tuple[Difference, ...]
    artifacts: tuple[Difference, ...]
    """Ids by iteration and role."""
    figures: tuple[Difference, ...]

    @property
    def equal(self) -> bool:
        decisive = [setting for setting in self.settings if setting.key not in PLACES]
        return not (decisive or self.artifacts)


def artifact_difference(a: Artifact, b: Artifact) -> ArtifactDifference:
    """Compare two artifacts, after comparing each with its manifest.

    Raises:
        IntegrityError: one of them is damaged, so that it cannot be told.
    """
    for artifact in (a, b):
        artifact.verify()
    one, other = a.manifest, b.manifest
    return ArtifactDifference(
        a=a,
        b=b,
        settings=tuple(_settings(a, b)),
        parents=tuple(differences(_parents(a), _parents(b))),
        causes=tuple(_causes(a, b, set())),
        summary=tuple(differences(a.summary, b.summary)),
        tables=tuple(_tables(a, b)) if a.id != b.id else (),
        weights=weight_difference(a, b) if a.id != b.id else None,
        files=tuple(differences(_files(a, b), _files(b, a))),
        provenance=tuple(
            differences(one.provenance.model_dump(exclude={"files"}), other.provenance.model_dump(exclude={"files"}))
        ),
    )


def run_difference(a: Subject | RunConfig, b: Subject | RunConfig) -> RunDifference:
    """Compare two runs, or what they were asked for: where one side is a configuration, settings only."""
    settings = differences(*(_config(side).model_dump(mode="json") for side in (a, b)))
    if isinstance(a, RunConfig) or isinstance(b, RunConfig):
        return RunDifference(tuple(settings), (), ())
    ids = [
        {f"{use.iteration}.{use.role}" if use.iteration is not None else use.role: use.artifact.id for use in p.uses}
        for p in (a, b)
    ]
    figures = [{f"{use.iteration}": use.artifact.summary for use in place.uses if use.role == "evaluation"} for place in (a, b)]
    return RunDifference(tuple(settings), tuple(differences(*ids)), tuple(differences(*figures)))


def _config(side: Subject | RunConfig) -> RunConfig:
    if isinstance(side, RunConfig):
        return side
    assert side.run is not None
    return side.run.config


def _settings(a: Artifact, b: Artifact) -> list[Difference]:
    """Stage and recipe. Where the stages differ, so does every setting."""
    one, other = a.manifest.content, b.manifest.content
    if one.stage != other.stage:
        return [Difference("stage", one.stage, other.stage)]
    return differences(one.recipe, other.recipe)


def _parents(artifact: Artifact) -> dict[str, str]:
    return {parent.role: parent.id for parent in artifact.manifest.content.parents}


def _files(artifact: Artifact, other: Artifact) -> dict[str, str]:
    """Hashes of files that are not compared row by row."""
    shared = {_table(file.table) for file in artifact.files} & {_table(file.table) for file in other.files} - {None}
    return {file.path: file.sha256[:16] for file in artifact.manifest.content.files if _table(file.table) not in shared}


def _table(title: str | None) -> str | None:
    name = title.split("/")[0] if title else None
    return name if name in TABLES else None


def _tables(a: Artifact, b: Artifact) -> Iterator[TableDifference]:
    one, other = (dict.fromkeys(_table(file.table) for file in artifact.manifest.content.files) for artifact in (a, b))
    for name in one:
        if name is not None and name in other:
            yield table_difference(a, b, name)


def _causes(a: Artifact, b: Artifact, seen: set[tuple[str, str]], path: tuple[str, ...] = ()) -> Iterator[Cause]:
    """Follow parents that differ, as far as their stores have them, to where settings differ and parents do not."""
    stores = store_around(a), store_around(b)
    for one in a.manifest.content.parents:
        other = next((parent for parent in b.manifest.content.parents if parent.role == one.role), None)
        if other is None or other.id == one.id or (one.id, other.id) in seen or len(path) >= DEEPEST:
            continue
        seen.add((one.id, other.id))
        with suppress(UserError):  # it is not in the store any more
            left, right = stores[0].get(one), stores[1].get(other)
            here = (*path, one.role)
            if settings := _settings(left, right):
                yield Cause(" < ".join(reversed(here)), tuple(settings))
            else:
                yield from _causes(left, right, seen, here)


def to_json(found: ArtifactDifference | RunDifference) -> dict[str, Any]:
    """For machines."""
    if isinstance(found, RunDifference):
        parts = {"settings": found.settings, "artifacts": found.artifacts, "figures": found.figures}
        return {"equal": found.equal, **{name: [d.to_json() for d in part] for name, part in parts.items()}}
    return {
        "equal": found.equal,
        "a": {"url": found.a.url, "id": found.a.id},
        "b": {"url": found.b.url, "id": found.b.id},
        **{
            name: [d.to_json() for d in getattr(found, name)]
            for name in ("settings", "parents", "summary", "files", "provenance")
        },
        "causes": [{"of": cause.path, "settings": [d.to_json() for d in cause.settings]} for cause in found.causes],
        "tables": [asdict(table) for table in found.tables],
        "weights": asdict(found.weights) if found.weights else None,
    }
