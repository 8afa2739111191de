"""BAPO and M2PO: bounds that depend on every token of the step (reference: oracles, sections D and E)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.balance import BalancedBand
from pipeline.algorithms.cells.drift import Drift
from pipeline.algorithms.cells.trust_region import SecondMoment
from pipeline.algorithms.tokens import Tokens

MakeTokens = Callable[..., Tokens]
MakeDrift = Callable[..., Drift]
Pull = Callable[[Algorithm, Tokens], tuple[float, Tensor]]
RATIOS = [1.6, 1.1, 0.9, 0.5, 0.65, 0.8 + 1e-9, 1.05, 1.3]
"""The sixth is just inside c_low = .8, which is on the search's way."""
SIGNS = [1.0] * 3 + [-1.0] * 5
DISTANCES = [0.1, 0.6, -0.5, 0.3, -0.4, -0.05]
"""log ratios of M2PO's example; harmful are the tokens 0, 1, 2 and 5."""
DIRECTIONS = [1.0, 1.0, -1.0, -1.0, 1.0, -1.0]


@pytest.fixture
def drift(drift_of: MakeDrift) -> Drift:
    """BAPO's example: eight completions of one token."""
    return drift_of([[ratio] for ratio in RATIOS], SIGNS)


@pytest.mark.parametrize(
    ("low", "high", "value", "gradient"),
    [
        (0.6, 1.2, 0.4211, 0.3448),
        (0.6, 1.5, 0.4430, 0.3448),
        (0.6, 3.0, 0.4500, 0.4865),
        (0.7, 1.2, 0.4129, 0.3883),
        (0.9, 1.2, 0.3879, 0.4598),
        (0.9, 3.0, 0.4162, 0.6050),
    ],
)
def test_share_of_positives_by_hand(low: float, high: float, value: float, gradient: float, drift: Drift) -> None:
    assert BalancedBand().measure(drift, low, high) == pytest.approx(value, abs=5e-5)
    assert BalancedBand(contribution="gradient").measure(drift, low, high) == pytest.approx(gradient, abs=5e-5)


def test_three_readings_of_the_balance(drift: Drift) -> None:
    # P = 1.2 + 1.1 + .9 = 3.2 and N = .6 + .65 + .8 + 1.05 + 1.3 = 4.4 between .6 and 1.2.
    assert BalancedBand(balance="share").measure(drift, 0.6, 1.2) == pytest.approx(3.2 / 7.6)
    assert BalancedBand(balance="pos_neg").measure(drift, 0.6, 1.2) == pytest.approx(3.2 / 4.4)
    assert BalancedBand(balance="net").measure(drift, 0.6, 1.2) == pytest.approx(3.2 / 1.2)


def test_a_step_without_negatives_is_balanced(drift_of: MakeDrift) -> None:
    drift = drift_of([[1.1], [0.7]], [1.0, 2.0])
    measures = [BalancedBand(balance=balance).measure(drift, 0.6, 1.2) for balance in ("share", "pos_neg", "net")]
    assert measures == [1, math.inf, 1]
    assert BalancedBand().measure(drift_of([[1.1]], [0.0]), 0.6, 1.2) == math.inf
    assert BalancedBand(target=0.9).bounds(drift) == (0.6, 1.2)


@pytest.mark.parametrize(
    ("target", "value", "gradient", "low_first_value", "low_first_gradient"),
    [
        (0.40, (0.6, 1.2), (0.6, 1.6), (0.6, 1.2), (0.82, 1.2)),
        (0.43, (0.6, 1.35), (0.6, 1.6), (0.9, 3.0), (0.82, 1.2)),
        (0.45 - 1e-6, (0.6, 1.6), (0.6, 1.6), (0.9, 3.0), (0.82, 1.2)),
        (0.46, (0.9, 3.0), (0.6, 1.6), (0.9, 3.0), (0.9, 1.6)),
    ],
)
def test_bounds_are_searched_until_the_share_is_reached(
    target: float,
    value: tuple[float, float],
    gradient: tuple[float, float],
    low_first_value: tuple[float, float],
    low_first_gradient: tuple[float, float],
    drift: Drift,
) -> None:
    readings: list[dict[str, Any]] = [
        {},
        {"contribution": "gradient"},
        {"order": "low_first"},
        {"order": "low_first", "contribution": "gradient"},
    ]
    for changes, expected in zip(readings, (value, gradient, low_first_value, low_first_gradient), strict=True):
        assert BalancedBand(target=target, **changes).bounds(drift) == pytest.approx(expected), changes


@pytest.mark.parametrize(("share", "pos_neg"), [(0.43, 0.43 / 0.57), (0.45, 0.8182)])
def test_share_and_quotient_are_two_names_of_one_target(share: float, pos_neg: float, drift: Drift) -> None:
    assert BalancedBand(target=pos_neg - 1e-4, balance="pos_neg").bounds(drift) == BalancedBand(target=share - 1e-5).bounds(drift)


def test_the_search_meets_its_ends_exactly(drift_of: MakeDrift) -> None:
    hopeless = drift_of([[1.0]], [-1.0])
    assert BalancedBand().bounds(hopeless) == pytest.approx((0.9, 3.0), abs=1e-12)
    assert BalancedBand(low_end=0.6, high_end=1.2).bounds(hopeless) == (0.6, 1.2)
    assert BalancedBand(low_end=0.5, high_end=1.0).bounds(hopeless) == (0.6, 1.2)
    assert BalancedBand(low_start=0.8, low_end=0.95, low_step=0.05, high_step=0.1, high_end=2.0).bounds(hopeless) == (
        pytest.approx(0.95),
        pytest.approx(2.0),
    )


def test_bapo_stops_what_is_outside_the_bounds_it_found(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = make_tokens([[-1.0 + math.log(ratio)] for ratio in RATIOS], SIGNS, behavior=[[-1.0]] * 8)
    gradient = pull(resolve("bapo", {"target": 0.43}), tokens)[1]  # bounds (.6, 1.35)
    assert (8 * gradient).tolist() == pytest.approx([0, -1.1, -0.9, 0, 0.65, 0.8, 1.05, 1.3])


log_ratios = st.floats(-1.5, 1.5)
tokens_of_a_step = st.lists(st.tuples(log_ratios, st.sampled_from([-2.0, -0.5, 0.0, 0.7, 1.0])), min_size=1, max_size=8)


@settings(deadline=None, max_examples=60)
@given(tokens_of_a_step)
def test_the_share_of_positives_is_monotone_in_each_bound(drift_of: MakeDrift, tokens: list[tuple[float, float]]) -> None:
    drift = drift_of([[math.exp(log_ratio)] for log_ratio, _ in tokens], [advantage for _, advantage in tokens])
    value, gradient = BalancedBand(), BalancedBand(contribution="gradient")
    for bounds in ([(0.6, 1.2), (0.6, 1.7), (0.6, 3.0)], [(0.9, 1.2), (0.9, 3.0)]):
        for (low, high), (_, higher) in itertools.pairwise(bounds):
            assert value.measure(drift, low, higher) >= value.measure(drift, low, high) - 1e-12
            assert gradient.measure(drift, low, higher) >= gradient.measure(drift, low, high) - 1e-12
    for low, higher in ((0.6, 0.75), (0.75, 0.9)):
        assert value.measure(drift, higher, 1.2) <= value.measure(drift, low, 1.2) + 1e-12
        assert gradient.measure(drift, higher, 1.2) >= gradient.measure(drift, low, 1.2) - 1e-12


@pytest.mark.parametrize("balance", ["share", "pos_neg", "net"])
def test_a_step_whose_tokens_are_all_clipped_is_not_balanced(balance: Any, drift_of: MakeDrift) -> None:
    # The only positive stands at 1.5 and the only negative at .5: nothing pulls until c_high has come as far as 1.5.
    band = BalancedBand(balance=balance, contribution="gradient")
    clipped = drift_of([[1.49999], [0.5]], [1.0, -1.0])
    assert band.measure(clipped, 0.6, 1.2) == 0
    assert band.bounds(clipped) == pytest.approx((0.6, 1.5))
    assert band.keeps(clipped).tolist() == [True, False]


def test_a_step_without_advantages_is_left_as_it_is(drift_of: MakeDrift) -> None:
    for contribution in ("value", "gradient"):
        assert BalancedBand(contribution=contribution).bounds(drift_of([[1.5], [0.5]], [0.0, -0.0])) == (0.6, 1.2)


def distances(drift_of: MakeDrift, values: list[float], directions: list[float]) -> Drift:
    """Completions of one token with these log ratios, to the last bit."""
    drift = drift_of([[1.0]] * len(values), directions)
    return dataclasses.replace(drift, measured=torch.tensor(values, dtype=torch.float64))


def test_m2po_masks_the_farthest_harmful_tokens(drift_of: MakeDrift) -> None:
    keeps = SecondMoment().keeps(distances(drift_of, DISTANCES, DIRECTIONS))
    assert keeps.tolist() == [True, False, False, True, True, True]


@pytest.mark.parametrize(
    ("budget", "masked"), [(0.156, []), (0.155, [1]), (0.087, [1, 2]), (0.006, [0, 1, 2]), (0.002, [0, 1, 2, 5])]
)
def test_m2po_masks_no_more_than_its_budget_asks_for(budget: float, masked: list[int], drift_of: MakeDrift) -> None:
    # Second moments: of all four .15563; without .6, .0875; without .5 too, .00625; of .05 alone, .0025.
    keeps = SecondMoment(budget=budget).keeps(distances(drift_of, DISTANCES, DIRECTIONS))
    assert torch.nonzero(~keeps)[:, 0].tolist() == masked


def test_m2po_leaves_tokens_alone_that_moved_against_their_advantage(drift_of: MakeDrift) -> None:
    assert SecondMoment().keeps(distances(drift_of, [-3.0, 3.0, 5.0], [1.0, -1.0, 0.0])).all()


def test_m2po_does_not_count_tokens_that_carry_no_loss(drift_of: MakeDrift) -> None:
    drift = drift_of([[math.exp(3.0), math.exp(0.1)]], [1.0], mask=[[False, True]])
    assert SecondMoment().keeps(drift).tolist() == [True, True]


def test_m2po_keeps_masked_tokens_in_the_denominator(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = make_tokens([[-1.0 + value] for value in DISTANCES], DIRECTIONS, behavior=[[-1.0]] * 6)
    gradient = pull(resolve("m2po"), tokens)[1]
    ratios = [math.exp(value) for value in DISTANCES]
    assert (6 * gradient).tolist() == pytest.approx([-ratios[0], 0, 0, ratios[3], -ratios[4], ratios[5]])


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from([-0.5, -0.3, -0.2, -0.05, 0.1, 0.2, 0.3, 0.6]), st.sampled_from([-1.0, 1.0])), min_size=1),
    st.sampled_from([0.005, 0.04, 0.0625, 0.2]),
    st.data(),
)
def test_m2po_fits_its_budget_in_any_order(
    drift_of: MakeDrift, tokens: list[tuple[float, float]], budget: float, data: st.DataObject
) -> None:
    cell = SecondMoment(budget=budget)
    order = data.draw(st.permutations(range(len(tokens))))
    keeps = cell.keeps(distances(drift_of, *map(list, zip(*tokens, strict=True)))).tolist()
    permuted = cell.keeps(distances(drift_of, *map(list, zip(*(tokens[i] for i in order), strict=True)))).tolist()
    assert permuted == [keeps[i] for i in order]
    harmful = [(abs(value), kept) for (value, direction), kept in zip(tokens, keeps, strict=True) if value * direction > 0]
    inside = [distance for distance, kept in harmful if kept]
    outside = [distance for distance, kept in harmful if not kept]
    assert not inside or sum(d * d for d in inside) / len(inside) <= budget + 1e-12
    assert not outside or max(inside, default=0) < min(outside)
    if outside:  # the next distance would not have fit
        more = inside + [d for d in outside if d == min(outside)]
        assert sum(d * d for d in more) / len(more) > budget - 1e-12
