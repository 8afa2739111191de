"""A manifest's id: it follows the content and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.manifest import FORMAT, Content, File, Manifest, Parent, Provenance, digest

FILE = File(path="part-00000.parquet", bytes=12, sha256="ab" * 32, rows=3, table="shaped/1")
CONTENT = Content(
    kind="shaped",
    key="cd" * 32,
    stage="shape/1",
    parents=(Parent(role="rollouts", kind="rollouts", id="ef" * 32),),
    recipe={"min_group": 1, "advantage": {"name": "GroupMean", "scale": 0.5}},
    files=(FILE,),
    summary={"kept": 3},
)
PROVENANCE = Provenance(created="2025-01-01T00:00:00+00:00", seconds=1.5, command=("rollbook",), host="a", versions={})


def manifest_with(provenance: Provenance = PROVENANCE, **changes: Any) -> Manifest:
    content = CONTENT.model_copy(update=changes)
    return Manifest(id=digest(content.model_dump(mode="json")), content=content, provenance=provenance)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "scores"},
        {"key": "00" * 32},
        {"stage": "shape/2"},
        {"parents": ()},
        {"recipe": {"min_group": 2}},
        {"files": (FILE.model_copy(update={"sha256": "00" * 32}),)},
        {"files": (FILE.model_copy(update={"rows": 4}),)},
        {"files": (FILE, FILE.model_copy(update={"path": "other"}))},
        {"summary": {"kept": 2}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_id_changes_with_the_content(change: dict[str, Any]) -> None:
    assert manifest_with(**change).expected_id() != manifest_with().expected_id()


def test_the_id_does_not_change_with_the_provenance() -> None:
    changes = {"host": "b", "seconds": 9.0, "git_commit": "1234+", "files": (FILE,), "notes": {"a": 1}}
    elsewhere = PROVENANCE.model_copy(update=changes)
    assert manifest_with(elsewhere).id == manifest_with().id


def test_a_manifest_survives_its_json() -> None:
    manifest = manifest_with()
    text = manifest.model_dump_json(indent=2)
    assert Manifest.model_validate(json.loads(text)) == manifest
    assert Manifest.model_validate_json(text).expected_id() == manifest.id
    assert json.loads(text)["format"] == FORMAT == "rollbook/1"


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ValidationError, match="color"):
        File.model_validate({**FILE.model_dump(), "color": "red"})


def test_a_digest_is_of_the_canonical_json() -> None:
    """sha256 of '{"a":1,"b":[true,null,"é"]}', as any other program computes it."""
    known = "9488dd13ca33d3291f5a91a1833dfa164811755ffba538c2b340780f8c31a0cb"
    assert digest({"b": [True, None, "é"], "a": 1}) == digest({"a": 1, "b": [True, None, "é"]})
    assert digest({"b": [True, None, "é"], "a": 1}) == known


def test_a_digest_of_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest({"a": float("nan")})
