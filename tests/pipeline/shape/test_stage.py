"""The shape stage, on rollouts on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import UserError
from pipeline.config.run import RunConfig
from pipeline.run.process import Reporter
from pipeline.run.silence import is_flat, silence
from pipeline.shape.order import shape_request
from pipeline.shape.stage import shape
from pipeline.store import Artifact, Store, read_table
from pipeline.store.store import load_artifact
from schemas import Shaped

MakeRollouts = Callable[..., Artifact]
Run = Callable[..., Artifact]
FILES = {
    "part-00000.parquet": {"a": [("ok", 1.0), ("ok", 0.0)], "b": [("ok", 1.0), ("truncated", 1.0)]},
    "part-00001.parquet": {"c": [("ok", 0.0), ("ok", 0.0)], "d": [("ok", 1.0), ("reward_error", None), ("engine_error", None)]},
}


@pytest.fixture
def run(store: Store, make_config: Callable[..., RunConfig]) -> Run:
    """run(rollouts, algorithm, args, seed, iteration, **choices): the shaped artifact."""

    def make(
        rollouts: Artifact,
        algorithm: str = "grpo",
        args: dict[str, Any] | None = None,
        seed: int = 0,
        iteration: int = 0,
        **choices: Any,
    ) -> Artifact:
        train = {"algorithm": algorithm, "algorithm_args": args or {}}
        config = make_config({"train": train, "shape": choices, "seed": seed})
        spec = {
            "store": str(store.root),
            "request": shape_request(config, iteration, rollouts).to_json(),
            "rollouts": str(rollouts.path),
            "shape": config.shape.model_dump(mode="json"),
            **train,
            "trust_remote_code": False,
        }
        return load_artifact(shape(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])

    return make


def test_a_completion_of_which_the_policy_drew_nothing_is_dropped_with_a_reason(make_rollouts: MakeRollouts, run: Run) -> None:
    masks = {"a 0": [False, False], "c 0": [True, False], "c 1": [False, False, True]}
    shaped = run(make_rollouts(FILES, masks=masks), "reinforce")
    frame = read_table(shaped, Shaped)
    assert frame["drop_reason"].to_list() == ["masked", *[None] * 6, "reward_error", "engine_error"]
    assert frame["advantage"].to_list()[:2] == [0.0, 0.0]
    assert shaped.summary["dropped"] == {"engine_error": 1, "masked": 1, "reward_error": 1}


def test_a_penalty_for_length_on_rollouts_without_a_limit_is_refused(make_rollouts: MakeRollouts, run: Run) -> None:
    imported = make_rollouts(FILES, max_tokens=None)
    with pytest.raises(UserError, match=r"Set reward\.limit in train\.algorithm_args"):
        run(imported, "dapo")
    limited = read_table(run(imported, "dapo", {"reward.limit": 10}), Shaped)
    assert limited.equals(read_table(run(make_rollouts(FILES), "dapo"), Shaped))


def test_a_weight_that_overflows_is_refused_with_the_setting_that_keeps_it_finite(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts({"part-00000.parquet": {"a": [("ok", 200.0), ("ok", 0.0)]}})
    with pytest.raises(
        UserError, match=r"group a, sample 0: .* A = 100 .* Raise weighting\.temperature in train\.algorithm_args"
    ):
        run(rollouts, "red-weight")
    weights = read_table(run(rollouts, "red-weight", {"temperature": 100.0}), Shaped)["weight"].to_list()
    assert weights == pytest.approx([2.71828, 0.367879], abs=1e-5)


def test_there_is_a_row_for_every_rollout_in_a_file_of_the_same_name(make_rollouts: MakeRollouts, run: Run) -> None:
    shaped = run(make_rollouts(FILES))
    assert [path.name for path in shaped.tables("shaped")] == list(FILES)
    frame = read_table(shaped, Shaped)
    assert frame["group_id"].to_list() == ["a", "a", "b", "b", "c", "c", "d", "d", "d"]
    assert frame["sample_index"].to_list() == [0, 1, 0, 1, 0, 1, 0, 1, 2]
    shaped.verify()


def test_the_advantage_is_the_algorithms_own(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    advantages = {name: read_table(run(rollouts, name), Shaped)["advantage"][0] for name in ("grpo", "rec-oneside-is")}
    assert advantages == {"grpo": pytest.approx(0.5**0.5, abs=1e-5), "rec-oneside-is": 0.5}
    population = run(rollouts, "grpo", {"ddof": 0})
    assert read_table(population, Shaped)["advantage"][0] == pytest.approx(1.0, abs=1e-5)


def test_the_summary_counts_what_was_kept_and_why_the_rest_was_not(make_rollouts: MakeRollouts, run: Run) -> None:
    summary = run(make_rollouts(FILES), zero_variance="drop").summary
    assert summary["kept"] == 2
    assert summary["dropped"] == {"engine_error": 1, "reward_error": 1, "zero_variance": 5}
    assert summary["groups"] == 4
    assert summary["zero_variance_groups"] == 3


def test_methods_that_shape_alike_share_one_artifact(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    assert run(rollouts, "rec-oneside-is").path == run(rollouts, "reinforce").path
    assert run(rollouts, "grpo").path == run(rollouts, "cispo", {"importance.positive_high": 5}).path
    assert run(rollouts, "grpo").path != run(rollouts, "reinforce").path


def test_the_id_depends_on_the_rows_alone(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    first = run(rollouts)
    for path in sorted(first.path.rglob("*"), reverse=True):
        path.unlink()
    assert run(rollouts).id == first.id


def test_files_of_an_interrupted_attempt_are_kept(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES)
    done = run(rollouts)
    written = {path.name: path.stat().st_mtime_ns for path in done.tables("shaped")}
    (done.path / "manifest.json").unlink()
    (done.path / "part-00001.parquet").unlink()
    again = run(rollouts)
    assert again.id == done.id
    assert again.tables("shaped")[0].stat().st_mtime_ns == written["part-00000.parquet"]


def test_a_finished_artifact_is_reused(make_rollouts: MakeRollouts, run: Run, store: Store) -> None:
    rollouts = make_rollouts(FILES)
    first = run(rollouts)
    assert run(rollouts).manifest == first.manifest
    assert len(list(store.artifacts())) == 2


def test_only_methods_that_draw_depend_on_the_seed(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts({"part-00000.parquet": {name: [("ok", 1.0), *[("ok", 0.0)] * 7] for name in "abcd"}})
    kept = [read_table(run(rollouts, "red-drop", seed=seed), Shaped)["keep"].to_list() for seed in (1, 2)]
    assert kept[0] != kept[1]
    assert run(rollouts, "grpo", seed=1).path == run(rollouts, "grpo", seed=2).path


def test_whitening_is_over_the_kept_tokens_of_all_files(make_rollouts: MakeRollouts, run: Run) -> None:
    # Kept: a (1, 2 tokens), a (0, 3), b (1, 2), b (1, 3), c (0, 2), c (0, 3), d (1, 2): mean 9/17 over 17 tokens.
    frame = read_table(run(make_rollouts(FILES), "reinforce++"), Shaped)
    mean = 9 / 17
    scale = (mean * (1 - mean)) ** 0.5
    expected = [(reward - mean) / scale for reward in (1, 0, 1, 1, 0, 0, 1)]
    assert frame["advantage"].to_list() == pytest.approx([*expected, 0, 0], abs=1e-6)


def test_the_reasons_are_readable_with_any_parquet_reader(make_rollouts: MakeRollouts, run: Run) -> None:
    frame = pl.read_parquet(run(make_rollouts(FILES), truncated="drop").tables("shaped"))
    dropped = frame.filter(~pl.col("keep")).select("group_id", "sample_index", "drop_reason").rows()
    assert dropped == [("b", 1, "truncated"), ("d", 1, "reward_error"), ("d", 2, "engine_error")]


def test_completions_of_policies_beyond_the_age_limit_are_dropped(make_rollouts: MakeRollouts, run: Run) -> None:
    rollouts = make_rollouts(FILES, {"a": 3, "b": 4, "c": 5, "d": 5})
    table = read_table(run(rollouts, iteration=5, max_age=1), Shaped)
    assert table.filter(drop_reason="age")["group_id"].to_list() == ["a", "a"]
    assert read_table(run(rollouts, iteration=5, max_age=2), Shaped).filter(drop_reason="age").is_empty()
    assert read_table(run(rollouts, iteration=3, max_age=0), Shaped).filter(drop_reason="age").is_empty()


def test_an_age_limit_makes_a_table_of_its_own_for_each_iteration_and_nothing_else_does(
    make_rollouts: MakeRollouts, run: Run
) -> None:
    rollouts = make_rollouts(FILES)
    assert run(rollouts, iteration=1).path == run(rollouts, iteration=2).path
    assert run(rollouts, iteration=1, max_age=0).path != run(rollouts, iteration=2, max_age=0).path


def test_a_share_of_positives_is_reached_over_all_files(make_rollouts: MakeRollouts, run: Run) -> None:
    # Kept: a (1, 0), b (1, 1), c (0, 0), d (1): under TOPR 4 positives and 3 negatives.
    rollouts = make_rollouts(FILES)
    weighed = run(rollouts, "topr", positive_fraction=0.2)
    table = read_table(weighed, Shaped).filter("keep")
    assert sorted(set(table["weight"].to_list())) == pytest.approx([0.2 / (4 / 7), 0.8 / (3 / 7)])
    assert (weighed.summary["positives"], weighed.summary["negatives"], weighed.summary["positive_share"]) == (4, 3, 0.2)
    left = run(rollouts, "topr", positive_fraction=0.25, positive_fraction_by="drop")
    assert (left.summary["positives"], left.summary["negatives"]) == (1, 3)
    assert left.summary["dropped"] == {"engine_error": 1, "reward_error": 1, "surplus_positive": 3}
    assert left.summary["kept_groups"] == len(set(read_table(left, Shaped).filter("keep")["group_id"]))


def test_a_share_of_whitened_advantages_counts_their_final_sign(make_rollouts: MakeRollouts, run: Run) -> None:
    # Before whitening no advantage is negative; after it the three rewards of 0 are.
    summary = run(make_rollouts(FILES), "reinforce++", positive_fraction=0.5).summary
    assert (summary["positives"], summary["negatives"], summary["positive_share"]) == (4, 3, 0.5)


def test_draws_over_the_whole_artifact_do_not_depend_on_how_it_is_cut_into_files(make_rollouts: MakeRollouts, run: Run) -> None:
    groups = {name: [("ok", 1.0), *[("ok", 0.0)] * 3] for name in "abcdef"}
    cuts = [{"part-00000.parquet": groups}, {f"part-{n:05d}.parquet": {name: groups[name]} for n, name in enumerate("fbdace")}]
    choices = {"positive_fraction": 0.5, "positive_fraction_by": "drop"}
    tables = [read_table(run(make_rollouts(cut), "topr", **choices), Shaped).sort("group_id", "sample_index") for cut in cuts]
    assert tables[0].equals(tables[1])
    assert tables[0].filter("keep", advantage=-1.0).height == 6


def test_a_setting_that_the_algorithm_cannot_have_is_refused_before_anything_is_written(
    make_rollouts: MakeRollouts, run: Run, store: Store
) -> None:
    with pytest.raises(UserError, match=r"shape\.positive_weight and negative_weight: red-weight weighs completions itself"):
        run(make_rollouts(FILES), "red-weight", positive_weight=2.0)
    assert not list(store.root.glob("shaped/*/part-*"))


ALIKE = {"part-00000.parquet": {"a": [("ok", 1.0)] * 2, "b": [("ok", 1.0)] * 2}}
FLAT = {"part-00000.parquet": {"a": [("ok", 1.0)] * 2}, "part-00001.parquet": {"b": [("ok", 0.0)] * 2}}


@pytest.mark.parametrize("algorithm", ["grpo", "raft", "topr"])
def test_the_summary_says_that_all_rewards_are_equal(make_rollouts: MakeRollouts, run: Run, algorithm: str) -> None:
    alike = run(make_rollouts(ALIKE), algorithm).summary
    assert alike["only_reward"] == 1.0
    assert silence([alike]) == "all rewards are 1"
    assert "only_reward" not in run(make_rollouts(FLAT), algorithm).summary


def test_rewards_that_differ_between_groups_teach_what_does_not_compare_within_them(
    make_rollouts: MakeRollouts, run: Run
) -> None:
    flat = make_rollouts(FLAT)
    assert silence([run(flat, "grpo").summary]) == "no reward differs within any of 2 groups"
    assert silence([run(flat, "raft").summary]) is None
    assert is_flat(run(flat, "raft").summary)
    assert silence([run(make_rollouts(FILES), "grpo").summary]) is None


def test_an_algorithm_that_goes_by_no_reward_is_not_told_of_them(make_rollouts: MakeRollouts, run: Run) -> None:
    assert silence([run(make_rollouts(ALIKE), "sft").summary]) is None
