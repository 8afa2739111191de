"""The manifest: what an artifact is, file by file, and where it comes from.

`content` decides the artifact's id. `provenance` may differ between equal results (time, host, versions, speed) and does not.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

FORMAT = "rollbook/1"
UNSEALED = "0" * 64
"""Stands in the place of a seal while the bytes around it are hashed."""

ORIGINAL = "original"
"""Role of the checkpoint that a base model is a copy of; under that name its place is noted in the copy's provenance."""

Kind = Literal["prompts", "rollouts", "scores", "shaped", "checkpoint", "evaluation", "comparison"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Parent(_Part):
    role: str
    """What the artifact was used as: policy, prompts, rollouts, reference, ..."""
    kind: Kind
    """Kind of the parent."""
    id: str
    """Id of the parent."""


class File(_Part):
    path: str
    """Relative to the artifact, with forward slashes."""
    bytes: int = Field(ge=0)
    """Size."""
    sha256: str
    """Hash of the bytes, in hex."""
    rows: int | None = None
    """Rows, for a table."""
    table: str | None = None
    """Name and version of the table, such as rollouts/1."""

    @field_validator("path")
    @classmethod
    def _lies_inside(cls, path: str) -> str:
        """A manifest may be a stranger's: what it names lies in the artifact's own directory."""
        if any(part in ("", ".", "..") for part in path.split("/")) or not path.isprintable() or "\\" in path:
            raise ValueError(f"lists {path!r}, which lies outside the artifact")
        return path


class Content(_Part):
    kind: Kind
    """What the artifact is."""
    key: str
    """Hash of kind, parents, recipe and stage version: known before the work is done."""
    stage: str
    """Stage and version that made it, such as shape/1."""
    parents: tuple[Parent, ...]
    """Artifacts it was made from."""
    recipe: dict[str, Any]
    """The settings that decided the result."""
    files: tuple[File, ...]
    """Every file but the manifest and those under provenance."""
    summary: dict[str, Any]
    """Figures worth knowing without opening a file."""

    @model_validator(mode="after")
    def _summary_is_figures(self) -> Content:
        if self.kind != "comparison" and (wrong := _no_figure(self.summary)):
            raise ValueError(f"summary.{wrong} is no number")
        return self


def _no_figure(figures: dict[str, Any]) -> str | None:
    """The place of the first value that is neither a number, nor null, nor a mapping of these."""
    for name, value in figures.items():
        if isinstance(value, dict):
            if inside := _no_figure(value):
                return f"{name}.{inside}"
        elif not isinstance(value, int | float | None):
            return name
    return None


class Provenance(_Part):
    created: str
    """UTC time at which the artifact was finished."""
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """Wall time of the work in the process that finished it."""
    command: tuple[str, ...]
    """Arguments of that process."""
    started_by: tuple[str, ...] = ()
    """The rollbook command that it worked for."""
    host: str
    """Machine and platform."""
    versions: dict[str, str]
    """Python and the libraries that matter."""
    git_commit: str | None = None
    """Commit of rollbook's source, if it ran from a checkout; '+' marks local changes."""
    files: tuple[File, ...] = ()
    """Files that may differ between equal results, such as timings."""
    notes: dict[str, Any] = {}
    """What the stage saw of its machine: device, threads, engine."""

    @field_validator("created")
    @classmethod
    def _is_a_time(cls, created: str) -> str:
        datetime.fromisoformat(created)
        return created


class Manifest(_Part):
    format: str = FORMAT
    """Version of this file."""
    seal: str = UNSEALED
    """Hash of this file's bytes, with zeros in this place."""
    id: str
    """Hash of `content`."""
    content: Content
    provenance: Provenance

    def expected_id(self) -> str:
        return digest(self.content.model_dump(mode="json"))


def sealed(text: str) -> str:
    """A JSON text with an unsealed `seal` near its top, sealed: from now on any changed byte shows."""
    return text.replace(_seal(UNSEALED), _seal(hashlib.sha256(text.encode()).hexdigest()), 1)


def seal_holds(text: str, seal: str) -> bool:
    """Whether a sealed text is the one that `sealed` returned.

    Args:
        seal: what the text states.
    """
    return seal != UNSEALED and sealed(text.replace(_seal(seal), _seal(UNSEALED), 1)) == text


def _seal(value: str) -> str:
    return f'"seal": "{value}"'


def digest(value: Any) -> str:
    """sha256 of a JSON value in canonical form: keys sorted, no spaces, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
