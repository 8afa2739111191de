"""Rewards are told from what else is logged by the advantages that were made of them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.exchange.imports.by_advantage import find_rewards

GROUPS = [0] * 4 + [1] * 4
CORRECT = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
BREVITY = [0.1, 0.2, 0.3, 0.2, 0.5, 0.1, 0.2, 0.4]
LENGTH = [9.0, 4.0, 3.0, 5.0, 2.0, 9.0, 4.0, 3.0]


def advantages(total: np.ndarray, scale: Literal["group", "none"]) -> list[float]:
    """As TRL makes them, in single precision."""
    found = []
    for rewards in total.reshape(-1, 4):
        centered = rewards - rewards.mean()
        found += list(centered / (rewards.std(ddof=1) + 1e-4) if scale == "group" else centered)
    return [float(np.float32(value)) for value in found]


@pytest.mark.parametrize("scale", ["group", "none"])
def test_the_sum_that_gives_the_advantages_is_found_with_its_weights(scale: Literal["group", "none"]) -> None:
    total = np.array(CORRECT) + 0.5 * np.array(BREVITY)
    columns = {"correct": CORRECT, "brevity": BREVITY, "length": LENGTH}
    found = find_rewards(GROUPS, columns, advantages(total, scale))
    assert (found.weights, found.certain) == ({"correct": 1.0, "brevity": 0.5}, True)


def test_one_column_that_alone_gives_the_advantages_is_the_reward() -> None:
    found = find_rewards(GROUPS, {"correct": CORRECT, "length": LENGTH}, advantages(np.array(CORRECT), "group"))
    assert (found.weights, found.certain) == ({"correct": 1.0}, True)


def test_advantages_that_are_all_zero_say_nothing_and_every_column_is_taken() -> None:
    found = find_rewards(GROUPS, {"correct": [1.0] * 8, "length": LENGTH}, [0.0] * 8)
    assert (found.weights, found.certain) == ({"correct": 1.0, "length": 1.0}, False)


def test_advantages_of_something_else_are_not_explained() -> None:
    found = find_rewards(GROUPS, {"correct": CORRECT, "length": LENGTH}, advantages(np.array(BREVITY), "group"))
    assert not found.certain


@settings(max_examples=50, deadline=None)
@given(weights=st.lists(st.sampled_from([0.1, 0.2, 0.5, 1.0, 2.0]), min_size=2, max_size=3), seed=st.integers(0, 1000))
def test_any_weights_of_two_digits_come_back(weights: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = {f"r{number}": random.random(16).round(3) for number in range(len(weights))}
    total = sum(weight * column for weight, column in zip(weights, columns.values(), strict=True))
    given_as = {name: list(map(float, column)) for name, column in columns.items()}
    found = find_rewards([row // 4 for row in range(16)], given_as, advantages(np.asarray(total), "group"))
    assert found.certain and found.weights == pytest.approx(dict(zip(columns, weights, strict=True)))
