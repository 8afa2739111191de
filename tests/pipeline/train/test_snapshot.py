"""Rollouts joined with their advantages and laid out for training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipeline.common.errors import DataError, UserError
from pipeline.run.parts import Part
from pipeline.train.credit import with_credit
from pipeline.train.layout import left_out
from pipeline.train.snapshot import TrainingCompletion, TrainingSnapshot

Rows = list[dict[str, Any]]


def contents(snapshot: TrainingSnapshot) -> dict[str, Any]:
    """Everything there is, by group."""

    def plain(completion: TrainingCompletion) -> dict[str, Any]:
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(completion).items()}

    groups = {name: snapshot[number] for number, name in enumerate(snapshot.groups)}
    return {name: (group.prompt.tolist(), [plain(one) for one in group.completions]) for name, group in groups.items()}


def changed(rows: Rows, **changes: Any) -> Rows:
    return [{**row, **changes} for row in rows]


def test_a_group_is_joined_with_its_advantages(bench: Any, rows: Rows) -> None:
    rollouts = bench.rollouts(rows)
    advantage = pl.col("sample_index") * 0.5 - 1
    snapshot = bench.snapshot(rollouts, bench.shaped(rollouts, advantage=advantage, weight=pl.col("sample_index") + 1))
    assert snapshot.completions == len(rows)
    assert snapshot.tokens == sum(len(row["completion_token_ids"]) for row in rows)
    assert sorted(snapshot.groups) == [f"g{number}" for number in range(8)]
    assert snapshot.sizes == [3] * 8
    found = contents(snapshot)
    for number in range(8):
        prompt, completions = found[f"g{number}"]
        assert prompt == rows[3 * number]["prompt_token_ids"]
        for row, one in zip(rows[3 * number : 3 * number + 3], completions, strict=True):
            assert one["tokens"] == row["completion_token_ids"]
            assert one["behavior"] == pytest.approx(row["behavior_logprobs"], rel=1e-6)
            assert one["mask"] == (row["action_mask"] or [True] * len(one["tokens"]))
            assert (one["sample_index"], one["reward"], one["temperature"]) == (
                row["sample_index"],
                row["reward"],
                row["temperature"],
            )
            assert (one["advantage"], one["weight"]) == (row["sample_index"] * 0.5 - 1, row["sample_index"] + 1)


def test_what_prompts_of_their_own_cost_is_counted(bench: Any, rows: Rows) -> None:
    """The rows of `rows` have 8 groups of 3 completions."""
    rollouts = bench.rollouts(rows)
    prompts = sum(len(row["prompt_token_ids"]) for row in rows)
    tokens = sum(len(row["completion_token_ids"]) for row in rows)
    snapshot = bench.snapshot(rollouts, bench.shaped(rollouts, advantage=pl.col("sample_index") + 1))
    assert snapshot.times_alone == pytest.approx((prompts + tokens) / (prompts / 3 + tokens))


def test_tokens_of_tools_are_masked_out(bench: Any, rows: Rows) -> None:
    completions = contents(bench.snapshot(bench.rollouts(rows)))["g4"][1]
    assert [one["mask"][:2] for one in completions] == [[True, False]] * 3
    assert [one["behavior"][1] for one in completions] == [-77.0] * 3


def test_only_kept_completions_are_there(bench: Any, rows: Rows) -> None:
    rollouts = bench.rollouts(rows, files=4)
    in_first_file = pl.col("group_id").is_in(["g0", "g1"])
    keep = ~in_first_file & ((pl.col("group_id") != "g2") | (pl.col("sample_index") == 1))
    snapshot = bench.snapshot(rollouts, bench.shaped(rollouts, keep=keep))
    assert sorted(snapshot.groups) == ["g2", "g3", "g4", "g5", "g6", "g7"]
    everything, found = contents(bench.snapshot(rollouts)), contents(snapshot)
    assert found["g2"] == (everything["g2"][0], everything["g2"][1][1:2])
    assert all(found[name] == everything[name] for name in ("g3", "g4", "g7"))


def test_the_order_of_files_and_rows_does_not_matter(bench: Any, rows: Rows) -> None:
    snapshots = [
        bench.snapshot(bench.rollouts(rows, files=files, backwards=backwards)) for files, backwards in ((1, False), (3, True))
    ]
    assert contents(snapshots[0]) == contents(snapshots[1])


def test_a_reward_that_is_not_known_is_nan(bench: Any, rows: Rows) -> None:
    failed = {"reward": None, "status": "reward_error", "error": "no grade"}
    snapshot = bench.snapshot(bench.rollouts([{**rows[0], **failed}, *rows[1:]]))
    assert math.isnan(contents(snapshot)["g0"][1][0]["reward"])


def test_greedy_completions_are_taken_at_temperature_one(bench: Any, rows: Rows) -> None:
    snapshot = bench.snapshot(bench.rollouts(changed(rows, temperature=0.0)), algorithm="sft")
    assert {one["temperature"] for _, group in contents(snapshot).values() for one in group} == {1.0}


REFUSED = {
    "have none": {"behavior_logprobs": None},
    "at temperature 0": {"temperature": 0.0},
    "with top_p, top_k or min_p": {"top_p": 0.9},
    "top_p, top_k or min_p, and": {"top_k": 40},
    "and the cut support was not recorded": {"min_p": 0.05},
    "hold raw logprobs at a temperature that is not 1": {"logprobs_mode": "raw_logprobs", "temperature": 0.7},
    "hold logprobs of an unknown mode": {"logprobs_mode": "unknown"},
    "do not say at which temperature": {"temperature": None},
    "temperature, top_p, top_k and min_p they": {"top_k": None, "logprobs_mode": "raw_logprobs"},
}


@pytest.mark.parametrize(("problem", "change"), REFUSED.items(), ids=[" ".join(change) for change in REFUSED.values()])
def test_logprobs_of_another_density_are_refused_where_a_ratio_is_needed(
    problem: str, change: dict[str, Any], bench: Any, rows: Rows
) -> None:
    rollouts = bench.rollouts([{**rows[0], **change}, *rows[1:]])
    with pytest.raises(UserError) as error:
        bench.snapshot(rollouts, algorithm="rec-oneside-nois")
    assert problem in str(error.value)
    assert "rec-oneside-nois needs behavior_logprobs, but 1 of 24 kept completions" in str(error.value)


@pytest.mark.parametrize("change", REFUSED.values(), ids=" ".join)
def test_methods_without_a_ratio_train_on_them(change: dict[str, Any], bench: Any, rows: Rows) -> None:
    snapshot = bench.snapshot(bench.rollouts([{**rows[0], **change}, *rows[1:]]), algorithm="reinforce")
    assert not snapshot.has_behavior
    assert {str(one["behavior"]) for _, group in contents(snapshot).values() for one in group} == {"None"}


@pytest.mark.parametrize("change", REFUSED.values(), ids=" ".join)
def test_rows_that_are_not_kept_do_not_matter(change: dict[str, Any], bench: Any, rows: Rows) -> None:
    rollouts = bench.rollouts([{**rows[0], **change}, *rows[1:]])
    snapshot = bench.snapshot(rollouts, bench.shaped(rollouts, keep=(pl.col("group_id") != "g0") | (pl.col("sample_index") > 0)))
    assert snapshot.has_behavior
    assert snapshot.completions == len(rows) - 1


def test_raw_logprobs_at_temperature_one_are_those_of_the_sampling_density(bench: Any, rows: Rows) -> None:
    assert bench.snapshot(bench.rollouts(changed(rows[:3], logprobs_mode="raw_logprobs"), files=1)).has_behavior


def test_an_empty_selection_is_a_snapshot_of_nothing(bench: Any) -> None:
    rollouts = bench.rollouts()
    shaped = bench.shaped(rollouts, keep=pl.lit(False))
    snapshot = bench.snapshot(rollouts, shaped)
    assert (snapshot.groups, snapshot.completions, snapshot.live, snapshot.longest, snapshot.tokens_of_groups) == (
        [],
        0,
        0,
        0,
        [],
    )
    assert left_out([Part(rollouts, shaped)], snapshot) == {"zero_variance": 24}


def test_what_is_dead_is_the_algorithms_to_say(bench: Any) -> None:
    rollouts = bench.rollouts()
    first = pl.col("sample_index") == 0
    none = {"advantage": pl.lit(0.0), "weight": pl.when(first).then(0.0).otherwise(1.0)}
    shaped = bench.shaped(rollouts, advantage=pl.when(first).then(0.5).otherwise(0.0))
    assert bench.snapshot(rollouts, shaped, "rec-oneside-is").live == 8
    assert bench.snapshot(rollouts, shaped, "opmd").live == 24
    assert bench.snapshot(rollouts, bench.shaped(rollouts, **none), "oapl", reference=bench.scores(rollouts)).live == 16
    group = bench.snapshot(rollouts, shaped, "rec-oneside-is")[0]
    assert [completion.sample_index for completion in group.live] == [0]
    assert len(group.completions) == 3
    dead = bench.shaped(rollouts, **none)
    assert left_out([Part(rollouts, dead)], bench.snapshot(rollouts, dead)) == {"dead": 24}


def test_shaped_rows_of_other_rollouts_are_refused(bench: Any, rows: Rows) -> None:
    with pytest.raises(DataError, match="3 of its rows are not in"):
        bench.snapshot(bench.rollouts(rows[3:]), bench.shaped(bench.rollouts(rows)))


def test_scores_are_joined_by_role(bench: Any, rows: Rows) -> None:
    rollouts = bench.rollouts(rows, files=3, backwards=True)
    scores = bench.scores(rollouts)
    keep = pl.col("sample_index") > 0
    found = contents(bench.snapshot(rollouts, bench.shaped(rollouts, keep=keep), reference=scores, proximal=scores))
    for _, group in found.values():
        for one in group:
            mine = [
                (score, stored) for score, stored, own in zip(one["reference"], one["behavior"], one["mask"], strict=True) if own
            ]
            assert [score for score, _ in mine] == pytest.approx([stored for _, stored in mine], abs=1e-5)
            assert one["proximal"] == one["reference"]


def test_scores_of_other_rollouts_are_refused(bench: Any, rows: Rows) -> None:
    scores = bench.scores(bench.rollouts(rows[3:], files=1))
    with pytest.raises(DataError, match="3 completions have no reference logprobs"):
        bench.snapshot(bench.rollouts(rows, files=1), reference=scores)


def older(rows: Rows, version: int = 0) -> Rows:
    """The same completions by another policy."""
    return changed(rows, policy_id="another", policy_version=version)


def replayed(bench: Any, rollouts: Any, **columns: Any) -> Part:
    return Part(rollouts, bench.shaped(rollouts, **columns))


def test_several_rollouts_are_opened_together(bench: Any, rows: Rows) -> None:
    fresh, old = bench.rollouts(rows[:12]), bench.rollouts(older(rows[12:], 3), files=3)
    snapshot = bench.snapshot(fresh, replayed=[replayed(bench, old, weight=pl.lit(0.5))])
    alone, found = contents(bench.snapshot(fresh)), contents(snapshot)
    assert {name: found[name] for name in alone} == alone
    behind = {name.removeprefix(f"{old.id[:16]}/"): group for name, group in found.items() if name not in alone}
    assert sorted(behind) == ["g4", "g5", "g6", "g7"]
    for _, completions in behind.values():
        assert {(one["policy_version"], one["from_parent"], one["weight"]) for one in completions} == {(3, False, 0.5)}
    of_old = contents(bench.snapshot(old))
    for name, (prompt, completions) in behind.items():
        assert (prompt, [one["tokens"] for one in completions]) == (of_old[name][0], [one["tokens"] for one in of_old[name][1]])
    assert [snapshot.from_parent[number] for number, name in enumerate(snapshot.groups)] == [
        "/" not in name for name in snapshot.groups
    ]


def test_groups_of_the_same_name_stay_apart(bench: Any, rows: Rows) -> None:
    fresh, old = bench.rollouts(rows), bench.rollouts(older(rows))
    snapshot = bench.snapshot(fresh, replayed=[replayed(bench, old)])
    assert sorted(snapshot.groups) == sorted([f"g{n}" for n in range(8)] + [f"{old.id[:16]}/g{n}" for n in range(8)])
    assert snapshot.sizes == [3] * 16


def test_what_a_mixture_drew_is_not_compared_with_the_policys_own_logprobs(bench: Any, rows: Rows) -> None:
    assert any(bench.snapshot(bench.rollouts(rows)).from_parent)
    assert not any(bench.snapshot(bench.rollouts(rows, mixture={"share": 0.125})).from_parent)


def test_the_order_of_replayed_rollouts_does_not_matter(bench: Any, rows: Rows) -> None:
    fresh = bench.rollouts(rows[:6])
    parts = [replayed(bench, bench.rollouts(older(rows[9:15]))), replayed(bench, bench.rollouts(older(rows[15:])))]
    assert contents(bench.snapshot(fresh, replayed=parts)) == contents(bench.snapshot(fresh, replayed=parts[::-1]))


def test_a_part_of_which_nothing_is_kept_adds_nothing(bench: Any, rows: Rows) -> None:
    fresh, old = bench.rollouts(rows[:6]), bench.rollouts(older(rows[6:]))
    nothing = {"keep": pl.lit(False)}
    assert contents(bench.snapshot(fresh, replayed=[replayed(bench, old, **nothing)])) == contents(bench.snapshot(fresh))
    assert len(bench.snapshot(fresh, bench.shaped(fresh, **nothing), replayed=[replayed(bench, old)]).groups) == 6
    both = bench.snapshot(fresh, bench.shaped(fresh, **nothing), replayed=[replayed(bench, old, **nothing)])
    assert both.completions == 0


def test_replayed_rollouts_without_a_usable_ratio_are_refused_or_leave_all_without_one(bench: Any, rows: Rows) -> None:
    fresh, old = bench.rollouts(rows[:6]), bench.rollouts(older(changed(rows[6:], behavior_logprobs=None)))
    with pytest.raises(UserError, match=f"{old.path}: rec-oneside-is needs behavior_logprobs, but 18 of 18"):
        bench.snapshot(fresh, replayed=[replayed(bench, old)])
    snapshot = bench.snapshot(fresh, algorithm="reinforce", replayed=[replayed(bench, old)])
    assert not snapshot.has_behavior


def test_tokens_have_the_advantage_of_their_turn_and_void_turns_carry_no_loss() -> None:
    rows = pl.DataFrame({"group_id": ["g", "g"], "sample_index": [0, 1], "mask": [[True, True, False, True], [True]]})
    credits = pl.DataFrame(
        [("g", 0, 0, 0, 2, 0.5, True), ("g", 0, 2, 3, 1, 0.0, False), ("g", 1, 0, 0, 1, -1.0, True)],
        schema=["group_id", "sample_index", "turn", "start", "length", "advantage", "keep"],
        orient="row",
    )
    found = with_credit(rows, credits)
    assert found["credit"].to_list() == [[0.5, 0.5, 0.0, 0.0], [-1.0]]
    assert found["mask"].to_list() == [[True, True, False, False], [True]]
    with pytest.raises(DataError, match="1 completions have no credits"):
        with_credit(rows, credits[:2])
