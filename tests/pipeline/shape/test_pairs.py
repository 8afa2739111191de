"""Pairs of completions: how they are chosen, what becomes of the rest, and where they are when a step is laid out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.algorithms import resolve
from pipeline.algorithms.cells.pairing import RewardPairs
from pipeline.algorithms.preference import Preference
from pipeline.config.run import RunConfig
from pipeline.config.shape import ShapeConfig
from pipeline.run.parts import Part
from pipeline.run.process import Reporter
from pipeline.shape.choices import shape_rows, shaped_table, with_pairs
from pipeline.shape.order import shape_request
from pipeline.shape.stage import shape
from pipeline.store import Artifact, Store, read_table
from pipeline.store.store import load_artifact
from pipeline.train.batch import collate, flatten
from pipeline.train.layout import open_snapshot
from pipeline.train.snapshot import TrainingSnapshot
from pipeline.train.tree import PackedRow
from schemas import Pairs, Shaped

MakeRollouts = Callable[..., Artifact]
Ends = list[tuple[str, int, int]]
REWARDS = {"a": [0.0, 1.0, 0.5, 1.0], "b": [0.3, 0.1 + 0.2], "c": [1.0], "d": [0.0, 0.25]}
"""Two best completions; two that differ by rounding; one alone; two near one another."""


def rows_of(groups: dict[str, list[float]]) -> pl.DataFrame:
    rows = [(name, sample, reward) for name, rewards in groups.items() for sample, reward in enumerate(rewards)]
    return pl.DataFrame(rows, schema={"group_id": pl.String, "sample_index": pl.Int32, "reward": pl.Float64}, orient="row")


def ends(pairs: pl.DataFrame) -> Ends:
    return pairs.select("group_id", "chosen_index", "rejected_index").rows()


def pairs_of(groups: dict[str, list[float]], **settings: Any) -> Ends:
    return ends(RewardPairs(**settings).pairs(rows_of(groups)))


def test_the_first_of_the_best_is_paired_with_the_first_of_the_worst() -> None:
    assert pairs_of(REWARDS) == [("a", 1, 0), ("d", 1, 0)]
    assert pairs_of({"g": [1.0, 0.0, 1.0, 0.0]}) == [("g", 0, 1)]


def test_all_pairs_are_of_completions_that_differ() -> None:
    assert pairs_of(REWARDS, strategy="all") == [("a", 1, 0), ("a", 3, 0), ("a", 1, 2), ("a", 2, 0), ("a", 3, 2), ("d", 1, 0)]


@pytest.mark.parametrize("strategy", ["best_worst", "all"])
def test_equal_completions_are_no_pair(strategy: str) -> None:
    assert pairs_of({"g": [0.5, 0.5], "h": [0.1 + 0.2, 0.3], "i": [1.0]}, strategy=strategy) == []
    assert pairs_of({"g": [0.5, 0.5]}, strategy=strategy, margin=0.0) == []


def test_a_margin_leaves_out_near_pairs() -> None:
    assert pairs_of(REWARDS, margin=0.3) == [("a", 1, 0)]
    assert pairs_of(REWARDS, strategy="all", margin=0.6) == [("a", 1, 0), ("a", 3, 0)]
    assert pairs_of(REWARDS, strategy="all", margin=0.5)[-1] == ("a", 3, 2)


def test_a_cap_keeps_the_widest_pairs_of_each_group() -> None:
    assert pairs_of(REWARDS, strategy="all", cap=2) == [("a", 1, 0), ("a", 3, 0), ("d", 1, 0)]
    assert pairs_of(REWARDS, strategy="all", cap=100) == pairs_of(REWARDS, strategy="all")


def test_labels_are_hard_unless_told_otherwise() -> None:
    hard, soft = (RewardPairs(strategy="all", soft=soft).pairs(rows_of(REWARDS)) for soft in (0.0, 0.5))
    assert hard["preference"].to_list() == [1.0] * 6
    assert soft["margin"].to_list() == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25]
    expected = [1 / (1 + math.exp(-margin / 0.5)) for margin in soft["margin"]]
    assert soft["preference"].to_list() == pytest.approx(expected, rel=1e-6)


eighths = st.integers(0, 8).map(lambda n: n / 8)


@settings(deadline=None, max_examples=40)
@given(
    st.dictionaries(st.sampled_from("abc"), st.lists(eighths, min_size=1, max_size=5), min_size=1),
    st.sampled_from(["best_worst", "all"]),
    st.sampled_from([0.0, 1e-6, 0.25, 0.5]),
    st.integers(0, 3),
    st.sampled_from([0.0, 0.01, 1.0]),
    st.data(),
)
def test_pairs_fit_their_schema_and_do_not_depend_on_the_order_of_rows(
    groups: dict[str, list[float]], strategy: Any, margin: float, cap: int, soft: float, data: st.DataObject
) -> None:
    rows = rows_of(groups)
    cell = RewardPairs(strategy=strategy, margin=margin, cap=cap, soft=soft)
    pairs = cell.pairs(rows)
    assert Pairs.check(pairs).bad.is_empty()
    assert dict(pairs.schema) == {name: column.dtype for name, column in Pairs.columns().items()}
    order = data.draw(st.permutations(range(len(rows))))
    assert cell.pairs(rows[order]).rows() == pairs.rows()
    for name, chosen, rejected in ends(pairs):
        assert groups[name][chosen] - groups[name][rejected] >= max(margin, 1 / 8)
    most = {"best_worst": 1, "all": 10}[strategy] if cap == 0 else min(cap, {"best_worst": 1, "all": 10}[strategy])
    assert pairs.group_by("group_id").len()["len"].max() in {*range(1, most + 1), None}


def test_completions_in_no_pair_are_dropped_as_unpaired() -> None:
    rows = rows_of(REWARDS).with_columns(status=pl.lit("ok"), tokens=pl.lit(3), drawn=pl.lit(3), max_tokens=pl.lit(8))
    dpo = resolve("dpo")
    assert isinstance(dpo, Preference)
    shaped, pairs = with_pairs(shape_rows(rows, ShapeConfig(), dpo, seed=0), dpo.pairing)
    table = shaped_table(shaped, dpo)
    assert table.filter("keep").select("group_id", "sample_index").rows() == [("a", 0), ("a", 1), ("d", 0), ("d", 1)]
    assert set(table.filter(~pl.col("keep"))["drop_reason"]) == {"unpaired"}
    assert ends(pairs) == [("a", 1, 0), ("d", 1, 0)]
    assert Shaped.check(table).bad.is_empty()


def test_pairs_are_of_completions_that_were_kept() -> None:
    rows = rows_of({"a": [1.0, 0.5, 0.0, 0.2]}).with_columns(
        status=pl.Series(["truncated", "ok", "reward_error", "ok"]), tokens=pl.lit(3), drawn=pl.lit(3), max_tokens=pl.lit(8)
    )
    dpo = resolve("dpo")
    assert isinstance(dpo, Preference)
    shaped, pairs = with_pairs(shape_rows(rows, ShapeConfig(truncated="drop"), dpo, seed=0), dpo.pairing)
    assert ends(pairs) == [("a", 1, 3)]
    assert shaped["drop_reason"].to_list() == ["truncated", None, "reward_error", None]


def test_no_completions_make_no_pairs() -> None:
    nothing = rows_of({}).with_columns(drop_reason=pl.lit(None, pl.String))
    shaped, pairs = with_pairs(nothing, RewardPairs())
    assert (len(shaped), len(pairs)) == (0, 0)
    assert dict(pairs.schema) == {name: column.dtype for name, column in Pairs.columns().items()}


FILES = {
    "part-00000.parquet": {"a": [("ok", 0.0), ("ok", 1.0), ("ok", 0.5), ("ok", 1.0)], "b": [("ok", 1.0), ("ok", 1.0)]},
    "part-00001.parquet": {"c": [("ok", 0.0), ("reward_error", None)]},
    "part-00002.parquet": {"d": [("ok", 0.25), ("ok", 0.75), ("engine_error", None)]},
}


@pytest.fixture
def run(store: Store, make_config: Callable[..., RunConfig]) -> Callable[..., Artifact]:
    """run(rollouts, **settings of the pairing): the shaped artifact for DPO."""

    def make(rollouts: Artifact, algorithm: str = "dpo", **settings: Any) -> Artifact:
        train = {"algorithm": algorithm, "algorithm_args": settings}
        config = make_config({"train": train})
        spec = {
            "store": str(store.root),
            "request": shape_request(config, 0, rollouts).to_json(),
            "rollouts": str(rollouts.path),
            "shape": config.shape.model_dump(mode="json"),
            **train,
        }
        return load_artifact(shape(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])

    return make


Run = Callable[..., Artifact]


def test_the_shape_stage_writes_a_file_of_pairs_beside_each_file_of_rows(make_rollouts: MakeRollouts, run: Run) -> None:
    shaped = run(make_rollouts(FILES))
    assert [path.name for path in shaped.tables("pairs")] == [f"pairs-0000{n}.parquet" for n in range(3)]
    assert ends(read_table(shaped, Pairs)) == [("a", 1, 0), ("d", 1, 0)]
    assert shaped.summary["kept"] == 4
    assert shaped.summary["dropped"] == {"engine_error": 1, "reward_error": 1, "unpaired": 5}
    shaped.verify()


def test_how_completions_are_paired_decides_the_artifact(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    assert len(read_table(run(rollouts, strategy="all"), Pairs)) == 6
    assert run(rollouts).path == run(rollouts, "ipo", tau=0.5).path
    assert run(rollouts).path != run(rollouts, strategy="all").path
    assert run(rollouts, "kto").tables("pairs") == []


def test_a_file_whose_pairs_were_not_written_is_made_again(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    done = run(rollouts)
    for name in ("manifest.json", "pairs-00002.parquet"):
        (done.path / name).unlink()
    again = run(rollouts)
    assert again.id == done.id
    assert len(again.tables("pairs")) == 3


@pytest.fixture
def snapshot(make_rollouts: MakeRollouts, run: Run, tmp_path: Path) -> Callable[..., TrainingSnapshot]:
    """snapshot(**settings of the pairing): the kept completions with their pairs, ready to train from."""

    def make(**settings: Any) -> TrainingSnapshot:
        rollouts = make_rollouts(FILES)
        return open_snapshot(tmp_path / "snapshot", [Part(rollouts, run(rollouts, **settings))], resolve("dpo"), "base")

    return make


CPU = torch.device("cpu")
MakeSnapshot = Callable[..., TrainingSnapshot]


def names_of_pairs(rows: list[PackedRow]) -> set[tuple[str, int, int, float]]:
    """The pairs of a step laid out as rows, told by the completions that the numbers stand for."""
    flat = flatten(rows, CPU)
    if flat.pairs is None or flat.preference is None:
        return set()
    named = set()
    for (chosen, rejected), preference in zip(flat.pairs.tolist(), flat.preference.tolist(), strict=True):
        one, other = flat.completions[chosen], flat.completions[rejected]
        assert one.group_id == other.group_id
        named.add((one.group_id, one.sample_index, other.sample_index, round(preference, 5)))
    return named


def test_a_group_holds_its_own_pairs(snapshot: MakeSnapshot) -> None:
    opened = snapshot(strategy="all", soft=0.5)
    pairs = {name: opened[number].pairs for number, name in enumerate(opened.groups)}
    assert sorted(pairs) == ["a", "d"]
    assert [pair[:2] for pair in pairs["a"]] == [(1, 0), (3, 0), (1, 2), (2, 0), (3, 2)]
    assert pairs["d"] == [(1, 0, pytest.approx(1 / (1 + math.exp(-1)), rel=1e-6))]


def test_pairs_are_found_however_groups_are_cut_into_rows(snapshot: MakeSnapshot) -> None:
    opened = snapshot(strategy="all")
    groups = [opened[number] for number in range(len(opened.groups))]
    expected = {("a", 1, 0, 1.0), ("a", 3, 0, 1.0), ("a", 1, 2, 1.0), ("a", 2, 0, 1.0), ("a", 3, 2, 1.0), ("d", 1, 0, 1.0)}
    for size in (1, 2, 3, 4):
        rows = [
            PackedRow.of(group, group.completions[i : i + size])
            for group in groups
            for i in range(0, len(group.completions), size)
        ]
        assert names_of_pairs(rows) == expected
        assert names_of_pairs(rows[::-1]) == expected
        assert len(flatten(rows, CPU).pairs) == 6  # type: ignore[arg-type]


def test_a_part_of_a_step_holds_the_pairs_whose_ends_are_both_there(snapshot: MakeSnapshot) -> None:
    opened = snapshot(strategy="all")
    group = opened[opened.groups.index("a")]
    first, rest = PackedRow.of(group, group.completions[:2]), PackedRow.of(group, group.completions[2:])
    assert names_of_pairs([first]) == {("a", 1, 0, 1.0)}
    assert names_of_pairs([rest]) == {("a", 3, 2, 1.0)}
    alone = PackedRow.of(group, group.completions[:1])
    assert flatten([alone], CPU).pairs is None
    tokens = collate([first], CPU).flat.tokens(torch.zeros(5), torch.zeros(5), version=1)
    assert tokens.pairs is not None and tokens.preference is not None
    assert (tokens.pairs.tolist(), tokens.preference.tolist()) == ([[1, 0]], [1.0])
