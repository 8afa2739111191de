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
from pipeline.algorithms.cells.drift import Drift, bounded_exp
from pipeline.algorithms.cells.importance import NoImportance, Ratio
from pipeline.algorithms.cells.regularizers import EntropyBonus, ForwardKL, ReferenceKL, SquaredLogRatio, WeightedReferenceKL
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide, Ring, TrustRegion, TwoSide
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
MakeDrift = Callable[..., Drift]


def floats(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def keeps(drift_of: MakeDrift) -> Callable[..., list[bool]]:
    def run(region: TrustRegion, ratios: list[float], advantage: float) -> list[bool]:
        return region.keeps(drift_of([ratios], [advantage])).tolist()

    return run


Keeps = Callable[..., list[bool]]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [
        (+1.0, [True, True, True, False, False]),
        (-1.0, [False, False, True, True, True]),
        (0.0, [True, True, True, True, True]),
    ],
)
def test_one_side_stops_only_what_moved_the_way_its_advantage_pushes(
    advantage: float, expected: list[bool], keeps: Keeps
) -> None:
    assert keeps(OneSide(), [0.3, 0.79, 1.0, 1.21, 3.0], advantage) == expected


def test_dual_clip_also_stops_negatives_that_became_far_likelier(keeps: Keeps) -> None:
    assert keeps(OneSide(dual=3.0), [0.7, 1.0, 2.9, 3.1], -1.0) == [False, True, True, False]
    assert keeps(OneSide(dual=3.0), [3.1], 0.0) == [True]


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_two_side_keeps_what_is_near_whatever_the_advantage(advantage: float, keeps: Keeps) -> None:
    assert keeps(TwoSide(low=0.2, high=0.5), [0.79, 0.81, 1.0, 1.49, 1.51], advantage) == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [(1.0, [True, False, True, True, False, False]), (-1.0, [False, False, True, True, False, True])],
)
def test_ring_keeps_what_is_near_and_what_is_far_on_the_wrong_side(advantage: float, expected: list[bool], keeps: Keeps) -> None:
    assert keeps(Ring(), [0.39, 0.5, 0.9, 1.1, 2.0, 3.1], advantage) == expected


def test_bounds_are_inclusive(keeps: Keeps) -> None:
    region = OneSide(low=0.5, high=1.0)
    assert keeps(region, [2.0], 1.0) == keeps(region, [0.5], -1.0) == [True]
    assert keeps(TwoSide(low=0.5, high=1.0), [0.5, 2.0], 1.0) == [True, True]


def test_no_trust_region_keeps_everything(keeps: Keeps) -> None:
    assert keeps(NoTrustRegion(), [1e-8, 1.0, 1e8], 1.0) == [True, True, True]


def test_a_completion_may_be_stopped_as_a_whole(drift_of: MakeDrift) -> None:
    drift = drift_of([[1.5, 1.5], [1.5, 0.5]], [1.0, 1.0])
    assert OneSide(level="sequence").keeps(drift).tolist() == [False, False, True, True]
    assert OneSide(high=0.6, level="geometric").keeps(drift).tolist() == [True, True, True, True]


def test_weights_of_importance_cells(drift_of: MakeDrift) -> None:
    drift = drift_of([[2.0, 0.125], [0.5]], [1.0, -1.0])
    assert NoImportance().weight(drift).tolist() == [1, 1, 1]
    assert Ratio().weight(drift).tolist() == pytest.approx([2, 0.125, 0.5])
    assert Ratio(level="sequence").weight(drift).tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert Ratio(level="geometric").weight(drift).tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert Ratio(positive_high=1.5, positive_low=0.5).weight(drift).tolist() == pytest.approx([1.5, 0.5, 0.5])
    assert Ratio(negative_high=0.25).weight(drift).tolist() == pytest.approx([2, 0.125, 0.25])


def test_ratio_stays_finite_in_fp32() -> None:
    ratio = bounded_exp(torch.tensor([-math.inf, -1e4, 0.0, 1e4, math.inf]))
    assert ratio.tolist() == pytest.approx([math.exp(-20), math.exp(-20), 1, math.exp(20), math.exp(20)])


@pytest.mark.parametrize(
    ("estimator", "expected", "slope"),
    [
        ("k1", (0.2231, -0.2231), (1.0, 1.0)),
        ("k2", (0.0249, 0.0249), (0.2231, -0.2231)),
        ("k3", (0.0231, 0.0269), (1 - 0.8, 1 - 1.25)),
    ],
)
def test_reference_kl_by_hand(
    estimator: str, expected: tuple[float, float], slope: tuple[float, float], make_tokens: MakeTokens
) -> None:
    # (pi, ref) = (.5, .4) and (.4, .5)
    tokens = make_tokens([[math.log(0.5), math.log(0.4)]], [0.0], reference=[[math.log(0.4), math.log(0.5)]])
    term = ReferenceKL(coefficient=2.0, estimator=estimator).term(tokens, floats(0, 0))  # type: ignore[arg-type]
    assert term.tolist() == pytest.approx([2 * value for value in expected], abs=2e-4)
    (gradient,) = torch.autograd.grad(term.sum(), tokens.logprobs)
    assert gradient.tolist() == pytest.approx([2 * value for value in slope], abs=2e-4)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_weighted_estimate_has_the_gradient_of_the_reverse_kl_whoever_drew_the_tokens(
    estimator: str, make_tokens: MakeTokens
) -> None:
    """All four tokens of a vocabulary, each weighed by the probability with which mu draws it: the mean is exact."""
    scores = torch.tensor([0.3, -1.0, 0.8, 0.1], requires_grad=True)
    reference = floats(0.1, 0.2, 0.3, 0.4)
    mu = floats(0.55, 0.25, 0.15, 0.05)
    logprobs = scores.log_softmax(0)
    exact = (logprobs.exp() * (logprobs - reference.log())).sum()
    (expected,) = torch.autograd.grad(exact, scores, retain_graph=True)
    tokens = make_tokens([[value] for value in logprobs.tolist()], [0.0] * 4, reference=[[p] for p in reference.log().tolist()])
    for cell, right in ((WeightedReferenceKL, True), (ReferenceKL, False)):
        term = cell(coefficient=1.0, estimator=estimator).term(tokens, tokens.logprobs - mu.log())  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad((mu * term).sum(), tokens.logprobs, retain_graph=True)
        (found,) = torch.autograd.grad(logprobs, scores, gradient, retain_graph=True)
        assert torch.allclose(found, expected, atol=1e-6) is right
        if right and estimator != "k2":
            assert (mu * term).sum().item() == pytest.approx(exact.item(), abs=1e-6)


def test_a_weighted_estimate_needs_the_ratio() -> None:
    assert WeightedReferenceKL().needs == ("behavior_logprobs", "reference_logprobs")


@settings(deadline=None, max_examples=60)
@given(value=st.floats(-19, 19))
def test_k3_is_never_negative_and_zero_only_where_the_policies_agree(value: float, make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-20.0]], [0.0], reference=[[-20.0 + value]])
    term = ReferenceKL(coefficient=1.0).term(tokens, floats(0)).item()
    assert term >= 0
    assert term > 0 or abs(value) < 1e-3


def test_squared_log_ratio_of_tokens_and_of_completions(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -1.0], [-1.0]], [0.0, 0.0])
    log_ratio = floats(0.5, -0.1, 0.3)
    assert SquaredLogRatio(coefficient=2.0).term(tokens, log_ratio).tolist() == pytest.approx([0.5, 0.02, 0.18])
    assert SquaredLogRatio(coefficient=2.0, level="sequence").term(tokens, log_ratio).tolist() == pytest.approx(
        [0.16, 0.16, 0.18]
    )


def test_entropy_and_likelihood_may_be_rewarded(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -3.0]], [0.0], entropy=[[0.5, 2.0]])
    assert EntropyBonus(coefficient=0.1).term(tokens, floats(0, 0)).tolist() == pytest.approx([-0.05, -0.2])
    assert ForwardKL(coefficient=0.1).term(tokens, floats(0, 0)).tolist() == pytest.approx([0.1, 0.3])


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


def test_group_mean_is_over_the_completions_of_each_group(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0]] * 4, [0.0] * 4, group=[0, 1, 0, 1])
    assert tokens.group_mean(floats(1, 10, 3, 20)).tolist() == [2, 15, 2, 15]
