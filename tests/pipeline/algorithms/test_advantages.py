"""Advantages as Polars expressions, against values worked out by hand (reference: oracles, section A)."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.algorithms.cells.advantages import Advantage, GroupMean, GroupNormalized, LeaveOneOut, RawReward, Signed, SoftValue

BASELINES = (GroupMean(), LeaveOneOut(), GroupNormalized(), GroupNormalized(ddof=0))
eighths = st.integers(-16, 16).map(lambda n: n / 8)
groups = st.lists(st.lists(eighths, min_size=1, max_size=6), min_size=1, max_size=5)


def advantages(cell: Advantage, *groups: list[float]) -> list[list[float]]:
    """Advantages of each group, computed with the groups' rows interleaved."""
    rows = [(f"g{n}", i, reward) for n, rewards in enumerate(groups) for i, reward in enumerate(rewards)]
    frame = pl.DataFrame(rows, schema={"group_id": pl.String, "sample": pl.Int64, "reward": pl.Float64}, orient="row")
    frame = frame.sort("sample", "group_id").with_columns(advantage=cell.expression(pl.col("reward")))
    return [frame.filter(group_id=f"g{n}").sort("sample")["advantage"].to_list() for n in range(len(groups))]


@pytest.mark.parametrize(
    ("cell", "rewards", "expected"),
    [
        (GroupMean(), [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        (LeaveOneOut(), [1, 0, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3]),
        (LeaveOneOut(), [2, 1, 0.5, 0.5], [4 / 3, 0, -2 / 3, -2 / 3]),
        (GroupNormalized(), [1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        (GroupNormalized(ddof=0), [1, 0, 0, 0], [1.732, -0.5773, -0.5773, -0.5773]),
        (GroupNormalized(), [1] + 7 * [0], [2.4749] + 7 * [-0.3536]),
        (GroupNormalized(ddof=0), [1] + 7 * [0], [2.6458] + 7 * [-0.378]),
        (GroupNormalized(), 4 * [1] + 4 * [0], 4 * [0.9354] + 4 * [-0.9354]),
        (GroupNormalized(ddof=0), 4 * [1] + 4 * [0], 4 * [1] + 4 * [-1]),
        (Signed(), [1, 0, 0, 0], [1, -1, -1, -1]),
        (GroupMean(shift=-0.1), [1, 0, 0, 0], [0.85, -0.15, -0.15, -0.15]),
        (SoftValue(beta=1.0), [1, 0, 0, 0], [0.6426, -0.3574, -0.3574, -0.3574]),
        (SoftValue(beta=0.1), [1, 0, 0, 0], [0.1386, -0.8614, -0.8614, -0.8614]),
        (SoftValue(beta=1e4), [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        (RawReward(baseline=0.25), [1, 0], [0.75, -0.25]),
    ],
)
def test_advantage_by_hand(cell: Advantage, rewards: list[float], expected: list[float]) -> None:
    assert advantages(cell, rewards)[0] == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize(
    ("share", "baseline", "shifted"),
    [(0.1, 0.0, 0.1), (0.1, -0.8, 0.5), (0.5, 0.6, 0.2), (0.5, 0.0, 0.5), (0.3, -1.0, 1.0), (0.3, 0.5, 0.125)],
)
def test_a_baseline_of_signed_rewards_is_another_share_of_positives(share: float, baseline: float, shifted: float) -> None:
    # p' = p (1 - c) / (1 + c (1 - 2p)): TOPR's reading of a constant baseline.
    rewards = [1.0] * round(10 * share) + [-1.0] * round(10 - 10 * share)
    values = advantages(RawReward(baseline=baseline), rewards)[0]
    assert sum(value for value in values if value > 0) / sum(map(abs, values)) == pytest.approx(shifted)


def test_epsilon_is_added_to_the_standard_deviation() -> None:
    assert advantages(GroupNormalized(epsilon=0.5), [1, 0, 0, 0])[0][0] == pytest.approx(0.75 / (0.5 + 0.5))


@pytest.mark.parametrize("cell", BASELINES)
def test_group_of_one_has_zero_advantage(cell: Advantage) -> None:
    assert advantages(cell, [0.7], [1, 0])[0] == [0.0]


@pytest.mark.parametrize("cell", BASELINES)
@pytest.mark.parametrize("rewards", [[0.25] * 3, [0.1 + 0.2, 0.3, 0.3, 0.3], [1e-9, 0.0]])
def test_group_with_equal_rewards_up_to_rounding_has_zero_advantage(cell: Advantage, rewards: list[float]) -> None:
    assert advantages(cell, rewards)[0] == [0.0] * len(rewards)


def test_methods_without_a_group_baseline_keep_pulling_on_a_group_with_equal_rewards() -> None:
    assert advantages(RawReward(), [1, 1], [0.5]) == [[1, 1], [0.5]]
    assert advantages(Signed(), [1, 1], [0.5]) == [[1, 1], [-1]]
    assert advantages(GroupMean(shift=-0.1), [1, 1], [0.5]) == [[0.1, 0.1], [0.1]]


def test_rewards_that_differ_by_more_than_rounding_are_told_apart() -> None:
    assert advantages(GroupMean(), [1e-6, 0.0])[0] == pytest.approx([5e-7, -5e-7])


@settings(deadline=None, max_examples=60)
@given(groups)
def test_each_group_is_a_world_of_its_own(rewards: list[list[float]]) -> None:
    for cell in BASELINES:
        assert advantages(cell, *rewards) == [advantages(cell, group)[0] for group in rewards]


@settings(deadline=None, max_examples=60)
@given(st.lists(eighths, min_size=2, max_size=6))
def test_leave_one_out_compares_with_the_others(rewards: list[float]) -> None:
    expected = [reward - (sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]
    assert advantages(LeaveOneOut(), rewards)[0] == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(st.lists(eighths, min_size=1, max_size=6))
def test_advantages_over_a_baseline_sum_to_zero(rewards: list[float]) -> None:
    for cell in BASELINES:
        assert math.fsum(advantages(cell, rewards)[0]) == pytest.approx(0, abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(st.lists(eighths, min_size=1, max_size=6), st.integers(1, 40).map(lambda n: n / 8), eighths)
def test_affine_changes_of_the_reward(rewards: list[float], scale: float, shift: float) -> None:
    changed = [scale * reward + shift for reward in rewards]
    for cell in (GroupMean(), LeaveOneOut()):
        scaled = [scale * value for value in advantages(cell, rewards)[0]]
        assert advantages(cell, changed)[0] == pytest.approx(scaled, abs=1e-9)
    for ddof in (0, 1):
        cell = GroupNormalized(ddof=ddof, epsilon=0.0)
        assert advantages(cell, changed)[0] == pytest.approx(advantages(cell, rewards)[0], abs=1e-9)
    assert advantages(RawReward(), changed)[0] == pytest.approx(changed)


@settings(deadline=None, max_examples=60)
@given(st.lists(eighths, min_size=2, max_size=8))
def test_population_z_score_is_at_most_the_root_of_the_others(rewards: list[float]) -> None:
    values = advantages(GroupNormalized(ddof=0, epsilon=0.0), rewards)[0]
    assert max(map(abs, values)) <= math.sqrt(len(rewards) - 1) + 1e-9
