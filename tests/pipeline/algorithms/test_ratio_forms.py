"""CISPO, GSPO, GMPO and the smooth gates of SAPO and VESPO (reference: oracles, section J)."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.drift import Drift
from pipeline.algorithms.cells.importance import ClippedGeometricRatio, GammaGate, SigmoidGate
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
MakeDrift = Callable[..., Drift]
Pull = Callable[[Algorithm, Tokens], tuple[float, Tensor]]
RATIOS = (1.10, 0.95, 1.30, 0.90)
"""Of one completion: product 1.2227, geometric mean 1.0515."""


def with_ratios(make_tokens: MakeTokens, *rows: tuple[float, ...], advantage: list[float]) -> Tokens:
    logprobs = [[-1 + math.log(ratio) for ratio in row] for row in rows]
    return make_tokens(logprobs, advantage, behavior=[[-1.0] * len(row) for row in rows])


def gradient_of(objective: Tensor, tokens: Tokens) -> Tensor:
    """Of a loss that is minus the mean of an objective over completions."""
    return torch.autograd.grad(-objective.mean(), tokens.logprobs)[0]


def log_ratios(tokens: Tokens) -> Tensor:
    assert tokens.behavior is not None
    return tokens.logprobs - tokens.behavior


def test_cispo_truncates_ratios_and_never_masks_a_token(make_tokens: MakeTokens, pull: Pull) -> None:
    for advantage in (1.0, -2.0):
        tokens = with_ratios(make_tokens, (0.01, 0.9, 1.28, 50.0), advantage=[advantage])
        expected = [-advantage * weight for weight in (0.01, 0.9, 1.28, 1.28)]
        assert (4 * pull(resolve("cispo"), tokens)[1]).tolist() == pytest.approx(expected)


def test_levels_of_the_ratio_by_hand(drift_of: MakeDrift) -> None:
    drift = drift_of([list(RATIOS)], [1.0])
    assert drift.ratio_of("sequence").tolist() == pytest.approx([1.22265] * 4)
    assert drift.ratio_of("geometric").tolist() == pytest.approx([1.05154] * 4, abs=5e-6)


@pytest.mark.parametrize(("advantage", "expected"), [(1.0, 0.0), (-1.0, 1.05154 / 4)])
def test_gspo_stops_or_weighs_a_completion_as_a_whole(
    advantage: float, expected: float, make_tokens: MakeTokens, pull: Pull
) -> None:
    tokens = with_ratios(make_tokens, RATIOS, advantage=[advantage])
    assert pull(resolve("gspo"), tokens)[1].tolist() == pytest.approx([expected] * 4, abs=5e-6)


@pytest.mark.parametrize("advantage", [[1.0, -1.0], [-0.5, 2.0]])
def test_gspo_has_the_gradient_of_its_clipped_objective(advantage: list[float], make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = with_ratios(make_tokens, RATIOS, (0.9, 0.8, 0.97), advantage=advantage)
    s = (tokens.per_sequence(log_ratios(tokens)) / tokens.lengths).exp()
    for low, high in ((3e-4, 4e-4), (0.2, 0.1), (0.02, 0.02)):
        objective = torch.minimum(s * tokens.advantage, s.clamp(1 - low, 1 + high) * tokens.advantage)
        expected = torch.autograd.grad(-objective.mean(), tokens.logprobs, retain_graph=True)[0]
        gspo = resolve("gspo", {"trust_region.low": low, "trust_region.high": high})
        torch.testing.assert_close(pull(gspo, tokens)[1], expected, rtol=1e-12, atol=1e-15)


def test_weight_of_gmpo_by_hand(drift_of: MakeDrift) -> None:
    drift = drift_of([[math.exp(0.6), math.exp(-0.8)], [math.exp(0.6), math.exp(-0.8)]], [1.0, -1.0])
    expected = [0, math.exp((0.4 - 0.8) / 2), math.exp((0.6 - 0.4) / 2), 0]  # what is clipped counts, and does not pull
    assert ClippedGeometricRatio().weight(drift).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("limit", [0.05, 0.4, 1.2])
@pytest.mark.parametrize("advantage", [[1.0, -1.0], [-0.5, 2.0], [0.0, 1.0]])
def test_gmpo_has_the_gradient_of_its_clipped_objective(
    advantage: list[float], limit: float, make_tokens: MakeTokens, pull: Pull
) -> None:
    tokens = with_ratios(make_tokens, (1.6, 0.5, 1.1), (0.4, 3.0, 0.9, 1.3), advantage=advantage)
    moved = log_ratios(tokens)
    clipped = torch.where(tokens.per_token(tokens.advantage) > 0, moved.clamp(max=limit), moved.clamp(min=-limit))
    objective = (tokens.per_sequence(clipped) / tokens.lengths).exp() * tokens.advantage
    gmpo = resolve("gmpo", {"limit": limit})
    torch.testing.assert_close(pull(gmpo, tokens)[1], gradient_of(objective, tokens), rtol=1e-12, atol=1e-15)


def test_tokens_that_gmpo_clips_are_reported_as_stopped(make_tokens: MakeTokens) -> None:
    tokens = with_ratios(make_tokens, (1.6, 0.5, 1.1), (0.4, 3.0, 0.9), advantage=[1.0, -1.0])
    stopped = resolve("gmpo").loss(tokens, Totals(tokens=6, sequences=2)).stopped
    assert stopped.tolist() == [True, False, False, True, False, False]


def test_soft_gate_of_sapo_by_hand(drift_of: MakeDrift) -> None:
    ratios, weights = [0.5, 1.0, 1.5, 2.0, 4.0], [0.47, 1.0, 1.41, 1.5729, 0.7228]
    assert SigmoidGate().weight(drift_of([ratios], [1.0])).tolist() == pytest.approx(weights, abs=5e-5)
    alike = SigmoidGate(negative_temperature=1.0)
    assert alike.weight(drift_of([ratios], [-1.0])).tolist() == pytest.approx(weights, abs=5e-5)
    sharper = SigmoidGate().weight(drift_of([ratios], [-1.0]))
    assert all(a < b for a, b in zip(sharper[[0, 2, 3, 4]].tolist(), [0.47, 1.41, 1.5729, 0.7228], strict=True))
    assert sharper[1].item() == pytest.approx(1.0)


def test_sapo_has_the_gradient_of_its_objective(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = with_ratios(make_tokens, (0.5, 1.0, 1.5), (4.0, 0.1), advantage=[1.0, -2.0])
    tau = tokens.per_token(torch.tensor([1.0, 1.05], dtype=torch.float64))
    gate = 4 / tau * (tau * (log_ratios(tokens).exp() - 1)).sigmoid()
    objective = tokens.per_sequence(gate * tokens.per_token(tokens.advantage)) / tokens.lengths
    torch.testing.assert_close(pull(resolve("sapo"), tokens)[1], gradient_of(objective, tokens), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("advantage", "table"),
    [
        (1.0, {0.25: 0.593, 0.5: 1.1204, 2 / 3: 1.2081, 1.0: 1.0, 2.0: 0.1991}),
        (-1.0, {0.5: 0.3398, 1.0: 1.0, 1.5: 1.2416, 2.0: 1.0827, 4.0: 0.1586}),
    ],
)
def test_gate_of_vespo_by_hand(advantage: float, table: dict[float, float], drift_of: MakeDrift) -> None:
    for ratio, weight in table.items():
        drift = drift_of([[2.0, ratio / 2]], [advantage])  # the completion's ratio is the product of its tokens'
        assert GammaGate().weight(drift).tolist() == pytest.approx([weight] * 2, abs=5e-5)


@pytest.mark.parametrize(("advantage", "peak"), [(1.0, 2 / 3), (-1.0, 3 / 2)])
def test_gate_of_vespo_is_largest_at_k_over_lambda(advantage: float, peak: float, drift_of: MakeDrift) -> None:
    at, below, above = (GammaGate().weight(drift_of([[ratio]], [advantage])).item() for ratio in (peak, 0.99 * peak, 1.01 * peak))
    assert at > max(below, above)


def test_gate_of_vespo_closes_on_both_ends(drift_of: MakeDrift) -> None:
    for advantage in (1.0, -1.0):
        far = drift_of([[1e5, 1e5], [1e-5, 1e-5]], [advantage, advantage])
        assert GammaGate().weight(far).max().item() < 1e-6
