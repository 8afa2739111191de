"""What becomes of each completion, on frames of a few rows."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from pipeline.algorithms import ALGORITHMS, resolve
from pipeline.algorithms.cells.advantages import RawReward
from pipeline.algorithms.cells.density import DENSITY
from pipeline.config.shape import ShapeConfig
from pipeline.shape.choices import shape_rows, shaped_table
from schemas import Shaped

Row = tuple[str, int, str, float | None, int]
LIMIT = 10
SHAPINGS = list({str(algorithm.shaping_recipe()): name for name, algorithm in ALGORITHMS.items()}.values())
"""One method of each kind of shaping."""
TYPES = {"group_id": pl.String, "sample_index": pl.Int32, "status": pl.String, "reward": pl.Float64, "tokens": pl.UInt32}


def group(*completions: tuple[str, float | None], name: str = "g", tokens: int = 3) -> list[Row]:
    return [(name, sample, status, reward, tokens) for sample, (status, reward) in enumerate(completions)]


def shaped(rows: list[Row], algorithm: str = "reinforce", seed: int = 0, advantage: Any = None, **choices: Any) -> pl.DataFrame:
    cells = resolve(algorithm) if advantage is None else resolve(algorithm).replace(advantage=advantage)
    frame = pl.DataFrame(rows, schema=TYPES, orient="row")
    frame = frame.with_columns(drawn=pl.col("tokens"), max_tokens=pl.lit(LIMIT), **{DENSITY: pl.lit(-1.0)})
    return shaped_table(shape_rows(frame, ShapeConfig(**choices), cells, seed), cells)


def fates(rows: list[Row], **choices: Any) -> list[float | str]:
    """Each row's advantage if it is kept, or else why it was dropped."""
    frame = shaped(rows, **choices)
    return [row["advantage"] if row["keep"] else row["drop_reason"] for row in frame.iter_rows(named=True)]


def test_graded_completions_are_kept_with_weight_one() -> None:
    frame = shaped(group(("ok", 1.0), ("ok", 0.0)))
    assert frame.to_dicts() == [
        {"group_id": "g", "sample_index": 0, "advantage": 0.5, "weight": 1.0, "keep": True, "drop_reason": None},
        {"group_id": "g", "sample_index": 1, "advantage": -0.5, "weight": 1.0, "keep": True, "drop_reason": None},
    ]


def test_dropped_completions_have_neither_advantage_nor_weight() -> None:
    frame = shaped(group(("ok", 1.0), ("engine_error", None)), advantage=RawReward(baseline=-5))
    assert frame.row(1, named=True) == {
        "group_id": "g", "sample_index": 1, "advantage": 0.0, "weight": 0.0, "keep": False, "drop_reason": "engine_error",
    }  # fmt: skip


def test_completions_without_a_reward_are_left_out_of_their_groups_statistics() -> None:
    rows = group(("ok", 1.0), ("ok", 0.0), ("reward_error", None), ("engine_error", None))
    assert fates(rows) == [0.5, -0.5, "reward_error", "engine_error"]


def test_a_failed_reward_may_count_as_zero() -> None:
    rows = group(("ok", 1.0), ("ok", 0.5), ("reward_error", None), ("engine_error", None))
    assert fates(rows, reward_error="zero_reward") == [0.5, 0.0, -0.5, "engine_error"]


def test_truncated_completions_are_kept_unless_told_otherwise() -> None:
    assert fates(group(("ok", 1.0), ("truncated", 0.5))) == [0.25, -0.25]


def test_truncated_completions_that_are_dropped_stay_in_their_groups_statistics() -> None:
    assert fates(group(("ok", 1.0), ("ok", 0.0), ("truncated", 0.5)), truncated="drop") == [0.5, -0.5, "truncated"]


def test_truncated_completions_may_count_as_zero() -> None:
    assert fates(group(("ok", 1.0), ("truncated", 1.0)), truncated="zero_reward") == [0.5, -0.5]


def test_empty_completions_are_dropped_and_left_out_of_the_statistics() -> None:
    rows = [*group(("ok", 1.0), ("ok", 0.0)), ("g", 2, "ok", 1.0, 0)]
    assert fates(rows) == [0.5, -0.5, "empty"]


def test_groups_with_equal_rewards_are_kept_unless_told_otherwise() -> None:
    rows = group(("ok", 1.0), ("ok", 1.0)) + group(("ok", 1.0), ("ok", 0.0), name="h")
    assert fates(rows) == [0.0, 0.0, 0.5, -0.5]
    assert fates(rows, zero_variance="drop") == ["zero_variance", "zero_variance", 0.5, -0.5]


def test_equal_rewards_are_judged_after_the_choices_that_change_them() -> None:
    rows = group(("ok", 0.0), ("truncated", 1.0))
    assert fates(rows, truncated="zero_reward", zero_variance="drop") == ["zero_variance", "zero_variance"]
    assert fates(group(("ok", 1.0), ("reward_error", None)), zero_variance="drop") == ["zero_variance", "reward_error"]


def test_small_groups_are_dropped_by_their_usable_completions() -> None:
    rows = group(("ok", 1.0), ("ok", 0.0), ("reward_error", None)) + group(("ok", 1.0), ("ok", 0.0), ("ok", 0.0), name="h")
    assert fates(rows, min_group=3)[:3] == ["small_group", "small_group", "reward_error"]
    assert fates(rows, min_group=3)[3:] == pytest.approx([2 / 3, -1 / 3, -1 / 3])


def test_a_truncated_completion_counts_towards_the_size_of_its_group() -> None:
    assert fates(group(("ok", 1.0), ("truncated", 0.0)), min_group=2, truncated="drop") == [0.5, "truncated"]


def test_no_rows_are_shaped_into_no_rows() -> None:
    assert shaped([]).columns == list(Shaped.columns())


def test_a_method_may_leave_completions_out_before_advantages_are_computed() -> None:
    rows = group(("ok", 1.0), ("ok", 0.0), ("ok", 1.0)) + group(("ok", 0.0), ("ok", 0.0), name="h")
    assert fates(rows, algorithm="raft") == [1.0, "not_solved", 1.0, "not_solved", "not_solved"]
    assert fates(rows, algorithm="best-of-n") == [1.0, "not_best", "not_best", 1.0, "not_best"]
    assert fates(rows, algorithm="reinforce-rej")[3:] == ["not_mixed", "not_mixed"]


def test_red_drop_draws_differently_by_seed_and_by_group() -> None:
    one = group(("ok", 1.0), *[("ok", 0.0)] * 7)
    draws = {str(fates(one, algorithm="red-drop", seed=seed)) for seed in range(20)}
    draws |= {str(fates(group(*[row[2:4] for row in one], name=name), algorithm="red-drop")) for name in "abcdefgh"}
    assert len(draws) == 7
    assert fates(one, algorithm="red-drop", seed=5) == fates(one, algorithm="red-drop", seed=5)


def test_red_weight_counts_good_completions_more() -> None:
    frame = shaped(group(("ok", 1.0), *[("ok", 0.0)] * 3), algorithm="red-weight")
    assert frame["weight"].to_list() == pytest.approx([2.117, *[0.7788] * 3], abs=1e-3)


def test_dapo_takes_points_off_long_completions() -> None:
    # The last fifth of the limit of 10 costs up to 1: 8 tokens nothing, 9 a half, 10 and more all.
    rows = [("g", sample, "ok", float(sample < 4), tokens) for sample, tokens in enumerate([4, 8, 9, 10, 9])]
    frame = shaped(rows, algorithm="dapo", advantage=RawReward())
    assert frame["advantage"].to_list() == [1.0, 1.0, 0.5, 0.0, -0.5]


statuses = st.sampled_from(["ok", "truncated", "reward_error", "engine_error"])
rewards = st.sampled_from([0.0, 0.5, 1.0])
choices = st.fixed_dictionaries(
    {
        "zero_variance": st.sampled_from(["keep", "drop"]),
        "truncated": st.sampled_from(["keep", "drop", "zero_reward"]),
        "reward_error": st.sampled_from(["drop", "zero_reward"]),
        "min_group": st.integers(1, 3),
    }
)


@st.composite
def rollouts(draw: st.DrawFn) -> list[Row]:
    rows = []
    for name in ("a", "b", "c"):
        for sample in range(draw(st.integers(1, 4))):
            status, reward = draw(statuses), draw(rewards)
            rows.append((name, sample, status, None if status.endswith("error") else reward, draw(st.integers(0, 2))))
    return rows


@settings(deadline=None, max_examples=60)
@given(rows=rollouts(), choices=choices, data=st.data())
def test_the_order_of_rows_does_not_matter(rows: list[Row], choices: dict[str, Any], data: st.DataObject) -> None:
    other = data.draw(st.permutations(rows))
    by_row = shaped(other, **choices).rows()
    assert [row[:2] for row in by_row] == [row[:2] for row in other]
    assert sorted(map(str, by_row)) == sorted(map(str, shaped(rows, **choices).rows()))


@settings(deadline=None, max_examples=10)
@given(rows=rollouts(), choices=choices, data=st.data())
def test_nor_does_it_for_any_method(rows: list[Row], choices: dict[str, Any], data: st.DataObject) -> None:
    other = data.draw(st.permutations(rows))
    for name in SHAPINGS:
        note(name)
        frames = [shaped(order, name, **choices).sort("group_id", "sample_index") for order in (rows, other)]
        assert_frame_equal(*frames, rel_tol=1e-6)


@settings(deadline=None, max_examples=10)
@given(rows=rollouts(), choices=choices)
def test_every_outcome_of_every_method_fits_the_schema(rows: list[Row], choices: dict[str, Any]) -> None:
    for name in SHAPINGS:
        note(name)
        frame = shaped(rows, name, **choices)
        assert Shaped.check(frame).bad.is_empty()
        assert dict(frame.schema) == {name: column.dtype for name, column in Shaped.columns().items()}
        assert not frame.filter(~pl.col("keep") & ((pl.col("advantage") != 0) | (pl.col("weight") != 0))).height


@settings(deadline=None, max_examples=60)
@given(rows=rollouts(), choices=choices)
def test_unless_truncated_ones_are_dropped_kept_advantages_of_a_group_sum_to_zero(
    rows: list[Row], choices: dict[str, Any]
) -> None:
    frame = shaped(rows, **{**choices, "truncated": "keep"})
    sums = frame.group_by("group_id").agg(pl.col("advantage").sum())["advantage"]
    assert sums.abs().max() < 1e-6  # type: ignore[operator]


def test_calls_of_tools_earn_a_bonus_up_to_a_limit() -> None:
    """b = 0.1 and at most 3 calls: rewards 0, 1, 0 and 1 become 0, 1.2, 0.3 and 1; their mean is 0.625."""
    rows = group(("ok", 0.0), ("ok", 1.0), ("ok", 0.0), ("ok", 1.0))
    frame = pl.DataFrame(rows, schema=TYPES, orient="row").with_columns(
        drawn=pl.col("tokens"), max_tokens=pl.lit(LIMIT), calls=pl.Series([0, 2, 9, 0], dtype=pl.UInt32)
    )
    choices = ShapeConfig(tool_bonus=0.1, tool_bonus_calls=3)
    found = shape_rows(frame, choices, resolve("rec-oneside-nois"), 0)
    assert found["advantage"].to_list() == pytest.approx([-0.625, 0.575, -0.325, 0.375])
    assert found["grade"].to_list() == [0.0, 1.0, 0.0, 1.0]
