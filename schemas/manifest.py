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

Kind = Literal[
    "prompts", "rollouts", "scores", "shaped", "checkpoint", "optimizer", "evaluation", "comparison", "reward_model", "revisions"
]


class _ManifestModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Parent(_ManifestModel):
    """An artifact that another was made from."""

    role: str
    """What the artifact was used as: policy, prompts, rollouts, reference, ..."""
    kind: Kind
    """Kind of the parent."""
    id: str
    """Id of the parent."""


class File(_ManifestModel):
    """A file of an artifact. Paths lead nowhere outside it."""

    path: str
    """Relative to the artifact, with forward slashes."""
    bytes: int = Field(ge=0)
    """Size in bytes."""
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


class Content(_ManifestModel):
    """What decides an artifact's id: the same content is the same artifact, wherever and whenever it was made."""

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


class Provenance(_ManifestModel):
    """What may differ between equal results, and is no part of the id."""

    created: str
    """UTC time at which the artifact was finished."""
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """Wall time of the work in the process that finished it, in seconds."""
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


class Manifest(_ManifestModel):
    """The file manifest.json: everything that is known of an artifact but its tables.

    `id` is the digest of `content`, and `seal` that of the file's own text; so a changed byte shows, wherever it is. The
    example is what the shaped table of one iteration of the demo left behind.

    Example:
        {
          "format": "rollbook/1",
          "seal": "a84a5486fe54745a301770ff487f1e60a08bc4eb8bcfd7970bd98b62a0db4971",
          "id": "54bb98c149faba21323b0111d2acd7ba0f659f1155dd11dfb2e9f69de274faca",
          "content": {
            "kind": "shaped",
            "key": "913df3cda0253f7e007349168fe7adafccdbaf02b8b92098262f4e1e1e37955e",
            "stage": "shape/2",
            "parents": [
              {
                "role": "rollouts",
                "kind": "rollouts",
                "id": "f4e88da81d2368f056ae728889ae8fe84f1b34bcbe1ba25535afa69695ed00ff"
              }
            ],
            "recipe": {
              "choices": {
                "zero_variance": "keep",
                "truncated": "keep",
                "reward_error": "drop",
                "min_group": 1,
                "solved_at": 1.0,
                "pass_rate": null,
                "anna_karenina": false,
                "class_balance": "keep",
                "positive_weight": 1.0,
                "negative_weight": 1.0,
                "positive_fraction": null,
                "positive_fraction_by": "weight"
              },
              "reward": {
                "cell": "AsIs"
              },
              "advantage": {
                "cell": "GroupMean",
                "shift": 0.0
              },
              "weighting": {
                "cell": "Uniform"
              }
            },
            "files": [
              {
                "path": "part-00000.parquet",
                "bytes": 2999,
                "sha256": "3d0bcbd9365f528099e3ea18aadeda164c1666c33ae7b1183d969624d65c5813",
                "rows": 256,
                "table": "shaped/1"
              }
            ],
            "summary": {
              "kept": 256,
              "kept_groups": 32,
              "positives": 66,
              "negatives": 182,
              "positive_share": 0.266129,
              "dropped": {},
              "groups": 32,
              "zero_variance_groups": 1
            }
          },
          "provenance": {
            "created": "2026-11-30T01:00:44+00:00",
            "seconds": 0.124,
            "command": [
              "/home/ada/rollbook/pipeline/shape/__main__.py"
            ],
            "started_by": [
              "rollbook",
              "run",
              "configs/demo.yaml"
            ],
            "host": "desk (Linux-6.12.0-x86_64-with-glibc2.36)",
            "versions": {
              "python": "3.11.7",
              "rollbook": "0.1.0",
              "polars": "2.1.0",
              "pyarrow": "26.0.1"
            },
            "git_commit": "c58570ea55ef8a3dc2f6340442364dd7583b876a",
            "files": [],
            "notes": {}
          }
        }
    """

    format: str = FORMAT
    """Version of this file."""
    seal: str = UNSEALED
    """Hash of this file's bytes, with zeros in this place."""
    id: str
    """Hash of `content`."""
    content: Content
    """What the artifact is."""
    provenance: Provenance
    """How it came about."""

    def expected_id(self) -> str:
        """The id that the content has, in hex. It differs from `id` if the file was edited."""
        return digest(self.content.model_dump(mode="json"))


def sealed(text: str) -> str:
    """A JSON text with an unsealed `seal` near its top, sealed: from now on any changed byte shows.

    The seal is the sha256 of the UTF-8 text with `UNSEALED` in the seal's place.
    """
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
    """sha256 of a JSON value in canonical form, in hex: keys sorted, no spaces, UTF-8.

    Raises:
        ValueError: NaN or an infinity, which JSON does not have.
        TypeError: a value of a type that JSON does not have.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
