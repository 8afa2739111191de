"""pass@k and bootstrap intervals."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.estimators import bootstrap_interval, pass_at_k


def one(solved: int, samples: int, k: int) -> float:
    return float(pass_at_k(np.array([solved]), np.array([samples]), k)[0])


@pytest.mark.parametrize(
    ("solved", "samples", "k", "expected"),
    [
        (0, 4, 2, 0.0),
        (1, 4, 2, 1 / 2),  # 1 - C(3,2)/C(4,2) = 1 - 3/6
        (2, 4, 2, 5 / 6),
        (3, 4, 2, 1.0),
        (1, 8, 8, 1.0),
        (3, 10, 1, 3 / 10),
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(solved: int, samples: int, k: int, expected: float) -> None:
    assert one(solved, samples, k) == pytest.approx(expected)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_k_subsets_with_a_solution(outcomes: list[bool], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(outcomes)))
    subsets = list(combinations(outcomes, k))
    assert one(sum(outcomes), len(outcomes), k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_one_is_the_mean() -> None:
    solved = np.array([0, 3, 8])
    assert pass_at_k(solved, np.full(3, 8), 1).tolist() == pytest.approx([0, 3 / 8, 1])


def test_pass_at_k_grows_with_k_and_is_exact_for_large_counts() -> None:
    values = [one(7, 40, k) for k in range(1, 41)]
    assert values == sorted(values)
    assert values[32] < 1 == values[33]  # of 34 completions at least one is among the 7 solved
    assert one(1, 5000, 2500) == 0.5


def test_interval_is_the_same_for_the_same_seed_only() -> None:
    values = np.random.default_rng(0).random(40)
    assert bootstrap_interval(values, 200, seed=1) == bootstrap_interval(values, 200, seed=1)
    assert bootstrap_interval(values, 200, seed=1) != bootstrap_interval(values, 200, seed=2)


def test_interval_of_equal_values_is_a_point() -> None:
    assert bootstrap_interval(np.full(10, 0.25), 100, seed=0) == (0.25, 0.25)
    assert bootstrap_interval(np.array([0.5]), 100, seed=0) == (0.5, 0.5)


def test_interval_has_the_width_of_the_normal_one() -> None:
    values = (np.arange(400) % 2).astype(np.float64)
    low, high = bootstrap_interval(values, 2000, seed=0)
    half = 1.96 * 0.5 / np.sqrt(400)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.005)


def test_a_lower_level_gives_a_narrower_interval() -> None:
    values = np.random.default_rng(0).random(40)
    wide, narrow = bootstrap_interval(values, 500, seed=0), bootstrap_interval(values, 500, seed=0, level=0.5)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
