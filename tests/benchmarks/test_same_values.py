"""The benchmark that compares two commits' artifacts: why ids differ, and whether that is fine, on artifacts made by hand."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    sys.modules.pop("same_values", None)


def artifact(
    path: Path,
    rows: pl.DataFrame,
    recipe: dict[str, Any],
    parents: dict[str, str] | None = None,
    weight: float | None = None,
    **change: Any,
) -> Any:
    """An artifact with one table, and a weight if there is one; its key and its id follow from its content."""
    from same_values import Made

    path.mkdir(parents=True)
    rows.write_parquet(path / "part.parquet")
    if weight is not None:
        save_file({"w": np.array([weight])}, path / "model.safetensors")
    content: dict[str, Any] = {
        "kind": "shaped",
        "stage": "shape/1",
        "recipe": recipe,
        "parents": [{"role": role, "kind": "rollouts", "id": id} for role, id in (parents or {}).items()],
        "files": [{"path": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()} for file in path.iterdir()],
        **change,
    }
    content["key"] = json.dumps([content[name] for name in ("kind", "stage", "recipe", "parents")])
    id = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({"id": id, "content": content}), encoding="utf-8")
    return Made.at(path)


def rows(*values: float, group: str = "g@00000000") -> pl.DataFrame:
    return pl.DataFrame({"group_id": [group] * len(values), "advantage": values})


def judged(base: list[Any], head: list[Any]) -> list[tuple[str, str, bool]]:
    from same_values import pairs_of, verdict

    found = [verdict(pair) for pair in pairs_of(base, head)]
    return [(one["why"], one["values"], one["fine"]) for one in found]


def test_the_same_id_is_the_same(tmp_path: Path) -> None:
    one, other = (artifact(tmp_path / side, rows(1.0), {"a": 1}) for side in ("base", "head"))
    assert judged([one], [other]) == [("same", "same", True)]


def test_other_bytes_for_the_same_key_are_fine_up_to_rounding(tmp_path: Path) -> None:
    base = artifact(tmp_path / "base", rows(1.0, 2.0), {"a": 1})
    near = artifact(tmp_path / "near", rows(1.0, 2.0 + 2e-7), {"a": 1})
    far = artifact(tmp_path / "far", rows(1.0, 2.1), {"a": 1})
    assert judged([base], [near]) == [("bytes: part.parquet", "within 1e-07 (part.parquet advantage)", True)]
    assert judged([base], [far]) == [("bytes: part.parquet", "differ by 0.05 (part.parquet advantage)", False)]


def test_a_changed_recipe_is_declared_and_excuses_what_is_made_of_it(tmp_path: Path) -> None:
    sides = {}
    for side, low, value in (("base", 0.1, 1.0), ("head", 0.2, 5.0)):
        parent = artifact(tmp_path / side / "parent", rows(value), {"clip": {"low": low}, "seed": 3})
        child = artifact(tmp_path / side / "child", rows(value), {"child": True}, {"shaped": parent.id})
        sides[side] = [parent, child]
    assert judged(sides["base"], sides["head"]) == [
        ("recipe: clip.low 0.1 -> 0.2", "differ by 4 (part.parquet advantage)", True),
        ("parents", "differ by 4 (part.parquet advantage)", True),
    ]


def test_what_differs_below_a_change_that_changed_no_value_is_not_excused(tmp_path: Path) -> None:
    sides = {}
    for side, version, value in (("base", "shape/1", 1.0), ("head", "shape/2", 5.0)):
        parent = artifact(tmp_path / side / "parent", rows(1.0), {"seed": 3}, stage=version)
        child = artifact(tmp_path / side / "child", rows(value), {"child": True}, {"shaped": parent.id})
        sides[side] = [parent, child]
    assert judged(sides["base"], sides["head"]) == [
        ('recipe: stage "shape/1" -> "shape/2"', "equal", True),
        ("parents", "differ by 4 (part.parquet advantage)", False),
    ]


@pytest.mark.parametrize(("off", "fine"), [(8e-6, True), (2e-5, False)])
def test_a_policy_trained_with_other_rounding_says_the_same_within_1e_5(tmp_path: Path, off: float, fine: bool) -> None:
    sides = {}
    for side, weight, value in (("base", 1.0, -0.5), ("head", 1.0001, -0.5 - off)):
        policy = artifact(tmp_path / side / "policy", rows(0.25), {"seed": 3}, weight=weight, kind="checkpoint")
        said = artifact(tmp_path / side / "said", rows(value), {"n": 1}, {"policy": policy.id}, kind="rollouts")
        judge = artifact(tmp_path / side / "judge", rows(value), {"k": 1}, {"sampled": said.id}, kind="evaluation")
        sides[side] = [policy, said, judge]
    policy, said, evaluation = judged(sides["base"], sides["head"])
    assert policy == ("bytes: model.safetensors", "equal, weights within 1e-04", True)
    assert (said[0], said[2]) == ("parents", fine)
    assert evaluation[2] is False  # of figures 1e-6 is asked


def test_names_that_hold_ids_are_no_values(tmp_path: Path) -> None:
    base = artifact(tmp_path / "base", rows(1.0, group="sum-3@4f37dbfe"), {"a": 1}, {"rollouts": "1"})
    head = artifact(tmp_path / "head", rows(1.0, group="sum-3@00000001"), {"a": 1}, {"rollouts": "2"})
    assert judged([base], [head]) == [("parents", "equal", True)]


def test_an_artifact_on_one_side_alone_is_not_fine(tmp_path: Path) -> None:
    base = artifact(tmp_path / "base", rows(1.0), {"a": 1})
    other = artifact(tmp_path / "other", rows(1.0), {"a": 1}, kind="scores")
    assert judged([base], [other]) == [("only in base", "", False), ("only in head", "", False)]
