"""What differs between artifacts, runs and configurations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from pipeline.common.differences import differences
from pipeline.look.diff.weights import weight_difference
from pipeline.store import Artifact, Request, Store, Work

Rollbook = Callable[..., tuple[int, str, str]]


def found(rollbook: Rollbook, *sides: object) -> dict[str, Any]:
    status, out, err = rollbook("diff", *sides, "--json")
    assert err == ""
    value: dict[str, Any] = json.loads(out)
    assert status == (0 if value["equal"] else 1)
    return value


@pytest.mark.parametrize(
    ("a", "b", "keys"),
    [
        ({"x": 1}, {"x": 1}, []),
        ({"x": 1}, {"x": True}, ["x"]),
        ({"x": 1}, {"x": 1.0}, []),
        ({"x": float("nan")}, {"x": float("nan")}, []),
        ({"x": None}, {}, ["x"]),
        ({"x": {}}, {"x": {"y": 1}}, ["x", "x.y"]),
        ({"x": [{"y": 1}, {"z": 2}]}, {"x": [{"y": 1}, {"z": 3}]}, ["x.1.z"]),
        ({"x": [1, 2]}, {"x": [2, 1]}, ["x"]),
    ],
    ids=str,
)
def test_trees_are_compared_leaf_by_leaf(a: dict[str, Any], b: dict[str, Any], keys: list[str]) -> None:
    assert [difference.key for difference in differences(a, b)] == keys


def test_a_copy_is_equal_until_a_byte_differs(rollbook: Rollbook, parts: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(parts["rollouts"], tmp_path / "copy")
    assert found(rollbook, parts["rollouts"], tmp_path / "copy")["equal"]
    data = bytearray((tmp_path / "copy" / "part-00000.parquet").read_bytes())
    data[100] ^= 1
    (tmp_path / "copy" / "part-00000.parquet").write_bytes(data)
    status, _, err = rollbook("diff", parts["rollouts"], tmp_path / "copy")
    assert status == 2 and "was changed after it was written" in err


def test_rows_are_matched_by_prompt_and_numbers_are_measured(rollbook: Rollbook, parts: dict[str, Path]) -> None:
    """The same prompts of two iterations: the logprobs are -0.5 and -1, so they differ by 0.5."""
    value = found(rollbook, parts["sampled 0"], parts["sampled 1"])
    (table,) = value["tables"]
    assert (table["only_a"], table["only_b"], table["changed"]) == (0, 0, 4)
    columns = {column["column"]: (column["rows"], column["largest"]) for column in table["columns"]}
    assert columns == {"policy_id": (4, None), "policy_version": (4, 1.0), "behavior_logprobs": (4, 0.5)}
    assert table["examples"][0] == {"group_id": "held-0", "sample_index": 0}


def test_the_first_difference_is_followed_to_its_ancestor(rollbook: Rollbook, parts: dict[str, Path]) -> None:
    """The evaluations differ since their policies do: one was imported, the other trained."""
    value = found(rollbook, parts["evaluation 0"], parts["evaluation 1"])
    assert value["settings"] == []
    assert [parent["key"] for parent in value["parents"]] == ["policy", "sampled"]
    assert value["causes"] == [{"of": "policy", "settings": [{"key": "stage", "a": "import/1", "b": "train/1"}]}]
    _, out, _ = rollbook("diff", parts["evaluation 0"], parts["evaluation 1"])
    assert "the difference began in policy" in out and out.rstrip().endswith("they differ")


def test_runs_and_configurations_are_compared_by_their_settings(
    rollbook: Rollbook, finished: Path, tmp_path: Path, settings: Callable[..., dict[str, Any]]
) -> None:
    shutil.copytree(finished, tmp_path / "moved")
    assert found(rollbook, finished, tmp_path / "moved")["equal"]
    (tmp_path / "a.yaml").write_text(json.dumps(settings()), encoding="utf-8")
    assert found(rollbook, finished, tmp_path / "a.yaml")["equal"]
    (tmp_path / "b.yaml").write_text(json.dumps(settings({"name": "other", "train.epochs": 7})), encoding="utf-8")
    changed = found(rollbook, finished, tmp_path / "b.yaml")
    assert changed["settings"] == [{"key": "name", "a": "small", "b": "other"}, {"key": "train.epochs", "a": 4, "b": 7}]
    assert not changed["equal"]


def checkpoint(store: Store, number: int, **tensors: Any) -> Artifact:
    with store.work(Request("checkpoint", "train/1", {"number": number})) as work:
        assert isinstance(work, Work)
        save_file(tensors, work.path / "model.safetensors")
        return work.finish({"iteration": number})


def test_weights_are_measured(store: Store) -> None:
    """a = (3, 4), b - a = (0, 1): ||b - a|| / ||a|| = 1 / 5."""
    one = checkpoint(store, 1, w=np.array([3, 4], np.float32), same=np.zeros(3, np.float16), only=np.ones(1, np.float32))
    two = checkpoint(store, 2, w=np.array([3, 5], np.float32), same=np.zeros(3, np.float16), only=np.ones(2, np.float32))
    measured = weight_difference(one, two)
    assert measured is not None
    assert (measured.tensors, measured.changed, measured.largest, measured.relative) == (2, 1, 1.0, 0.2)
    assert measured.others == ("only",)


def test_tables_without_a_common_key_are_all_difference(rollbook: Rollbook, parts: dict[str, Path]) -> None:
    (table,) = found(rollbook, parts["rollouts"], parts["sampled 0"])["tables"]
    assert (table["only_a"], table["only_b"], table["changed"]) == (4, 4, 0)


def test_hashes_of_lists_and_texts_tell_rows_apart() -> None:
    """What `table_difference` relies on: equal values have equal hashes, others do not."""
    frame = pl.DataFrame({"x": [[1.5, -0.5], [1.5, -0.5], [1.5], [], None]})
    hashes = frame.select(pl.struct("x").hash()).to_series().to_list()
    assert hashes[0] == hashes[1] and len(set(hashes)) == 4
