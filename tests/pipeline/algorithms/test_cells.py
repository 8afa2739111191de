"""Importance, trust regions, regularizers and aggregations, one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms.cells.aggregation import Aggregation, SequenceMean, SequenceSum, TokenMean
from pipeline.algorithms.cells.importance import NoImportance, TokenRatio, ratio_of
from pipeline.algorithms.cells.regularizers import BehaviorKL, EntropyBonus
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide, TrustRegion, TwoSide
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def keeps(region: TrustRegion, ratios: tuple[float, ...], advantage: float) -> list[bool]:
    log_ratio = floats(*ratios).log()
    return region.keeps(log_ratio, torch.full_like(log_ratio, advantage)).tolist()


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        (+1.0, [True, True, True, False, False]),
        (-1.0, [False, False, True, True, True]),
        (0.0, [True, True, True, True, True]),
    ],
)
def test_one_side_stops_only_what_moved_the_way_its_advantage_pushes(advantage: float, expected: list[bool]) -> None:
    assert keeps(OneSide(), (0.3, 0.79, 1.0, 1.21, 3.0), advantage) == expected


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_two_side_keeps_what_is_near_whatever_the_advantage(advantage: float) -> None:
    assert keeps(TwoSide(low=0.2, high=0.5), (0.79, 0.81, 1.0, 1.49, 1.51), advantage) == [False, True, True, True, False]


def test_bounds_are_inclusive() -> None:
    region = OneSide(low=0.5, high=1.0)
    assert keeps(region, (2.0,), 1.0) == keeps(region, (0.5,), -1.0) == [True]
    assert keeps(TwoSide(low=0.5, high=1.0), (0.5, 2.0), 1.0) == [True, True]


def test_no_trust_region_keeps_everything() -> None:
    assert keeps(NoTrustRegion(), (1e-9, 1.0, 1e9), 1.0) == [True, True, True]


def test_weights_of_importance_cells() -> None:
    log_ratio = floats(0.0, math.log(2), -math.log(4))
    sequence = torch.tensor([0, 0, 1])
    assert NoImportance().weight(log_ratio, sequence).tolist() == [1, 1, 1]
    assert TokenRatio().weight(log_ratio, sequence).tolist() == pytest.approx([1, 2, 0.25])


def test_ratio_stays_finite_in_fp32() -> None:
    ratio = ratio_of(torch.tensor([-math.inf, -1e4, 0.0, 1e4, math.inf]))
    assert ratio.tolist() == pytest.approx([math.exp(-20), math.exp(-20), 1, math.exp(20), math.exp(20)])


def test_behavior_kl_by_hand(make_tokens: MakeTokens) -> None:
    # pi = .5, mu = .4 and pi = .4, mu = .5: k3 = .0231 and .0269; its derivative is 1 - 1/r = 1 - mu/pi.
    log_ratio = floats(math.log(0.5 / 0.4), math.log(0.4 / 0.5)).requires_grad_()
    term = BehaviorKL(coefficient=2.0).term(make_tokens([[-1.0, -1.0]], [0.0]), log_ratio)
    assert term.tolist() == pytest.approx([2 * 0.0231, 2 * 0.0269], abs=1e-4)
    term.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == pytest.approx([2 * (1 - 0.8), 2 * (1 - 1.25)])


@settings(deadline=None, max_examples=60)
@given(st.floats(-19, 19))
def test_behavior_kl_is_never_negative_and_zero_only_where_the_policies_agree(value: float) -> None:
    term = float(BehaviorKL(coefficient=1.0).term(None, floats(value)))  # type: ignore[arg-type]
    assert term >= 0
    if abs(value) > 1e-3:
        assert term > 0


def test_entropy_bonus_rewards_entropy(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -1.0]], [0.0], entropy=[[0.5, 2.0]])
    assert EntropyBonus(coefficient=0.1).term(tokens, floats(0, 0)).tolist() == pytest.approx([-0.05, -0.2])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        (TokenMean(), 7 / 5),
        (SequenceMean(), (1 + 3) / 2),
        (SequenceSum(), (4 + 3) / 2),
        (SequenceSum(divisor=8), 7 / (2 * 8)),
    ],
)
def test_aggregation_of_four_ones_and_one_three(aggregation: Aggregation, expected: float, make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0] * 4, [-1.0]], [0.0, 0.0])
    total = aggregation.total(floats(1, 1, 1, 1, 3), tokens, Totals(tokens=5, sequences=2))
    assert float(total) == pytest.approx(expected)


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean(), SequenceSum()])
def test_aggregation_of_completions_without_tokens_is_zero(aggregation: Aggregation, make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -1.0]], [1.0], mask=[[False, False]])
    assert float(aggregation.total(floats(0, 0), tokens, Totals(tokens=0, sequences=1))) == 0


def test_per_sequence_sums_only_tokens_that_count(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -1.0], [-1.0]], [0.0, 0.0], mask=[[True, False], [True]])
    assert tokens.per_sequence(floats(1, math.inf, 5)).tolist() == [1, 5]
    assert tokens.per_token(floats(7, 9)).tolist() == [7, 7, 9]
