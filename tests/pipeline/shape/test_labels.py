"""Pairs that people compared in place of pairs by reward: what they say, whose they are, and what is refused."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.look.audit.deep.rerun import request_of
from pipeline.regrade.pairs import LabelFile, ShownPair
from pipeline.run.process import Reporter
from pipeline.shape.order import shape_order
from pipeline.shape.settings import check_shape
from pipeline.shape.stage import shape
from pipeline.store import Artifact, Store, read_table
from pipeline.store.store import load_artifact
from schemas import Pairs, Shaped

FILES = {
    "part-00000.parquet": {"a": [("ok", 1.0), ("ok", 0.0), ("ok", 0.0)], "b": [("ok", 1.0), ("ok", 1.0)]},
    "part-00001.parquet": {"c": [("ok", 0.0), ("reward_error", None)], "d": [("ok", 0.5), ("ok", 0.25)]},
}
Shaping = Callable[..., Artifact]


@pytest.fixture
def rollouts(make_rollouts: Callable[..., Artifact]) -> Artifact:
    return make_rollouts(FILES)


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return tmp_path / "labels.jsonl"


@pytest.fixture
def shaping(rollouts: Artifact, labels: Path, store: Store, make_config: Callable[..., RunConfig], tmp_path: Path) -> Shaping:
    """shaping(algorithm="ipo"): the rollouts shaped with the file of labels."""

    def make(algorithm: str = "ipo", **more: Any) -> Artifact:
        config = make_config({"train.algorithm": algorithm, "shape.labels": str(labels)})
        (job,) = shape_order(config, 0, rollouts).spec()["jobs"]
        spec = {"store": str(store.root), **job, **more}
        return load_artifact(shape(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])

    return make


def give(path: Path, rollouts: Artifact, group: str, first: int, second: int, verdict: Any, annotator: str = "ada") -> None:
    LabelFile(path, rollouts, annotator).add(ShownPair(group, group, "", "x", "y", (first, second)), verdict)


def pairs_of(shaped: Artifact) -> list[tuple[str, int, int, float]]:
    rows = read_table(shaped, Pairs).sort("group_id", "chosen_index")
    return [
        (*row[:3], round(row[3], 4)) for row in rows.select("group_id", "chosen_index", "rejected_index", "preference").rows()
    ]


def test_people_decide_whatever_the_rewards_say(shaping: Shaping, rollouts: Artifact, labels: Path) -> None:
    give(labels, rollouts, "a", 0, 1, "second")
    give(labels, rollouts, "b", 0, 1, "equal")
    give(labels, rollouts, "d", 1, 0, "second")
    shaped = shaping()
    assert pairs_of(shaped) == [("a", 1, 0, 1.0), ("b", 0, 1, 0.5), ("d", 0, 1, 1.0)]
    kept = read_table(shaped, Shaped).filter("keep").select("group_id", "sample_index").rows()
    assert kept == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("d", 0), ("d", 1)]
    assert read_table(shaped, Pairs)["margin"].to_list() == [-1.0, 0.0, 0.25]


def test_annotators_are_averaged_and_the_preferred_one_is_named_first(shaping: Shaping, rollouts: Artifact, labels: Path) -> None:
    for annotator, verdict in (("ada", "first"), ("bob", "second"), ("eve", "second"), ("kim", "equal")):
        give(labels, rollouts, "d", 0, 1, verdict, annotator)
    assert pairs_of(shaping()) == [("d", 1, 0, 0.625)]


def test_pairs_whose_completions_are_left_out_are_left_out(shaping: Shaping, rollouts: Artifact, labels: Path) -> None:
    give(labels, rollouts, "c", 0, 1, "first")  # one could not be graded
    give(labels, rollouts, "a", 0, 2, "first")
    assert pairs_of(shaping()) == [("a", 0, 2, 1.0)]


def test_soft_scores_are_shares_of_both(shaping: Shaping, rollouts: Artifact, labels: Path) -> None:
    give(labels, rollouts, "a", 0, 1, "first")
    label = json.loads(labels.read_text(encoding="utf-8"))
    labels.write_text(json.dumps({**label, "score_chosen": 3, "score_rejected": 1}) + "\n", encoding="utf-8")
    assert pairs_of(shaping()) == [("a", 0, 1, 0.75)]


def test_what_is_added_for_other_rollouts_leaves_the_key(
    shaping: Shaping, rollouts: Artifact, labels: Path, make_rollouts: Callable[..., Artifact]
) -> None:
    give(labels, rollouts, "a", 0, 1, "first")
    first = shaping()
    give(labels, make_rollouts(FILES, {"a": 1}), "a", 0, 1, "second")
    assert shaping().id == first.id
    give(labels, rollouts, "b", 0, 1, "first")
    other = shaping()
    assert other.id != first.id and "labels" not in other.recipe["choices"]


def test_an_audit_makes_it_anew_without_the_file(shaping: Shaping, rollouts: Artifact, labels: Path, tmp_path: Path) -> None:
    give(labels, rollouts, "a", 0, 1, "second")
    give(labels, rollouts, "d", 1, 0, "equal")
    shaped = shaping()
    again = shape(
        {
            "store": str(tmp_path / "scratch"),
            "request": {**request_of_artifact(shaped)},
            "rollouts": str(rollouts.path),
            "algorithm": "ipo",
            "algorithm_args": {},
            "shape": shaped.recipe["choices"],
            "pairs": str(shaped.path),
        },
        Reporter(os.open(os.devnull, os.O_WRONLY)),
    )
    assert load_artifact(again["artifact"]).id == shaped.id


def request_of_artifact(artifact: Artifact) -> dict[str, Any]:
    return request_of(SimpleNamespace(manifest=artifact.manifest)).to_json()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], r"no label of a pair of .*Give some: rollbook label .* --out .*labels\.jsonl"),
        ([("a", "equal"), ("b", "equal")], r"2 pairs of .* are labelled, and in all of them both .* nothing is preferred"),
    ],
)
def test_labels_that_prefer_nothing_are_refused_before_any_work(
    shaping: Shaping, rollouts: Artifact, labels: Path, verdicts: list[tuple[str, str]], said: str
) -> None:
    for group, verdict in verdicts:
        give(labels, rollouts, group, 0, 1, verdict)
    with pytest.raises(UserError, match=said):
        shaping()


def test_an_annotator_who_contradicts_himself_is_named_with_both_lines(
    shaping: Shaping, rollouts: Artifact, labels: Path
) -> None:
    give(labels, rollouts, "a", 0, 1, "first")
    give(labels, rollouts, "a", 1, 0, "first")
    said = re.escape(f"{labels}, line 2: ada contradicts line 1: the same pair of group a with another preference")
    with pytest.raises(UserError, match=said):
        shaping()
    lines = labels.read_text(encoding="utf-8").splitlines()
    labels.write_text(f"{lines[0]}\n{lines[0]}\n", encoding="utf-8")
    assert pairs_of(shaping()) == [("a", 0, 1, 1.0)]  # the same twice


def test_only_methods_on_pairs_take_labels(shaping: Shaping, rollouts: Artifact, labels: Path) -> None:
    give(labels, rollouts, "a", 0, 1, "first")
    with pytest.raises(UserError, match=r"shape\.labels: grpo learns from rewards, not from pairs"):
        shaping("grpo")


def test_the_pairs_are_those_of_every_method_on_pairs(shaping: Shaping, rollouts: Artifact, labels: Path) -> None:
    give(labels, rollouts, "a", 2, 0, "first")
    for algorithm in ("dpo", "ipo", "ipo-md", "opa-dpo"):
        assert pairs_of(shaping(algorithm)) == [("a", 2, 0, 1.0)]


@pytest.mark.parametrize("text", ['{"chosen": 1}\n', "[]\n", '{"rollouts": "r", "group_id": "g", "chosen_index": "x"}\n'])
def test_another_file_is_refused_by_its_line(make_config: Callable[..., RunConfig], labels: Path, text: str) -> None:
    from pipeline.algorithms import resolve

    labels.write_text(text, encoding="utf-8")
    config = make_config({"shape.labels": str(labels)})
    with pytest.raises(UserError, match=r"labels\.jsonl, line 1: no label: expected a JSON object with rollouts, group_id"):
        check_shape(config.shape, resolve("ipo"))
    labels.unlink()  # there is nothing to label yet
    check_shape(config.shape, resolve("ipo"))
