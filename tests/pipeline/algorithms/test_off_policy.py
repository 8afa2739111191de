"""TOPR, P3O, OPG and corrections for data of another policy (reference: oracles, sections B, F and J)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.aggregation import SequenceSum, TokenMean
from pipeline.algorithms.cells.drift import Drift
from pipeline.algorithms.cells.importance import EffectiveSampleCap, effective_sample_size
from pipeline.algorithms.cells.mismatch import InterpolatedProximal, ProximalRatio
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.algorithms.tokens import Tokens

MakeTokens = Callable[..., Tokens]
MakeDrift = Callable[..., Drift]
Pull = Callable[[Algorithm, Tokens], tuple[float, Tensor]]
SOLVED = {"logprobs": [[-0.5, -1.0, -0.2]], "behavior": [[-0.7, -0.9, -0.3]], "advantage": [1.0]}
FAILED = {"logprobs": [[-2.0, -1.5]], "behavior": [[-1.0, -1.2]], "advantage": [-1.0]}
STALE = [0.02, -0.03, 0.9, -0.01]
"""log prox/mu of a completion's tokens."""


def gradient_algorithm(name: str, **cells: Any) -> PolicyGradient:
    algorithm = resolve(name)
    assert isinstance(algorithm, PolicyGradient)
    return algorithm.replace(**cells)


TOPR = gradient_algorithm("topr")


def some_steps(make_tokens: MakeTokens) -> Tokens:
    return make_tokens(
        [[-0.5, -1.0, -0.2], [-2.0, -1.5], [-0.3, -0.1, -0.4], [-3.0]],
        [1.0, -1.0, -1.0, 1.0],
        behavior=[[-0.7, -0.9, -0.3], [-1.0, -1.2], [-0.9, -0.5, -0.2], [-1.0]],
        mask=[[True] * 3, [True] * 2, [True, True, False], [True]],
    )


@pytest.mark.parametrize(
    ("level", "failed_loss"), [("sequence", -0.9539), ("geometric", -0.5220 * 3.5), ("token", -(2 * 0.3679 + 1.5 * 0.7408))]
)
def test_topr_by_hand(level: str, failed_loss: float, make_tokens: MakeTokens, pull: Pull) -> None:
    topr = resolve("topr", {"importance.level": level}).replace(aggregation=SequenceSum())
    assert pull(topr, make_tokens(**SOLVED))[0] == pytest.approx(1.7)
    assert pull(topr, make_tokens(**FAILED))[0] == pytest.approx(failed_loss, abs=2e-4)


def test_topr_divides_by_the_length(make_tokens: MakeTokens, pull: Pull) -> None:
    assert pull(TOPR, make_tokens(**SOLVED))[0] == pytest.approx(1.7 / 3)
    assert pull(TOPR, make_tokens(**FAILED))[0] == pytest.approx(-0.4769, abs=5e-5)


def test_topr_tapers_negatives_only_and_its_taper_is_a_constant_of_the_gradient(make_tokens: MakeTokens, pull: Pull) -> None:
    assert pull(TOPR, make_tokens(**SOLVED))[1].tolist() == pytest.approx([-1 / 3] * 3)
    assert pull(TOPR, make_tokens(**FAILED))[1].tolist() == pytest.approx([math.exp(-1.3) / 2] * 2)
    unlikely = make_tokens(**{**FAILED, "logprobs": [[-200.0, -100.0]]})
    assert pull(TOPR, unlikely)[1].tolist() == pytest.approx([0, 0], abs=2e-9)


@pytest.mark.parametrize(("ratios", "expected"), [([1, 1, 1, 1], 1.0), ([4, 1, 1, 1], 0.6447), ([1e9, 1, 1, 1], 0.25)])
def test_effective_sample_size_by_hand(ratios: list[float], expected: float, drift_of: MakeDrift) -> None:
    drift = drift_of([ratios[:1], ratios[1:]], [1.0, -1.0])
    assert float(effective_sample_size(drift)) == pytest.approx(expected, abs=5e-5)
    cap = min(ratios[0], expected)
    assert EffectiveSampleCap().weight(drift).tolist() == pytest.approx([cap, *[expected] * 3], abs=5e-5)


def test_effective_sample_size_is_over_tokens_that_count(drift_of: MakeDrift) -> None:
    drift = drift_of([[4.0, 1.0, 9.0], [1.0, 1.0]], [1.0, -1.0], mask=[[True, True, False], [True, True]])
    assert float(effective_sample_size(drift)) == pytest.approx(49 / (4 * 19))
    nothing = drift_of([[2.0]], [1.0], mask=[[False]])
    assert float(effective_sample_size(nothing)) == 0


def test_p3o_caps_ratios_and_pulls_back_as_the_data_become_stale(make_tokens: MakeTokens, pull: Pull) -> None:
    # Ratios 4, 1, 1, 1. At r = 1 the pull back, (1 - ESS)(1 - 1/r), vanishes.
    tokens = make_tokens([[-1.0 + math.log(4), -1.0], [-1.0, -1.0]], [1.0, -1.0], behavior=[[-1.0] * 2] * 2)
    ess = 49 / (4 * 19)
    expected = [-ess + (1 - ess) * (1 - 1 / 4), -ess, ess, ess]
    assert (4 * pull(resolve("p3o"), tokens)[1]).tolist() == pytest.approx(expected)


def test_opg_by_hand(make_tokens: MakeTokens, pull: Pull) -> None:
    for sign in (1.0, -1.0):
        tokens = make_tokens([[-0.2, -0.8]], [sign])
        assert pull(resolve("opg"), tokens)[1].tolist() == pytest.approx([-sign * math.exp(-0.5) / 2] * 2)
    assert math.exp(-0.5) == pytest.approx(0.6065, abs=5e-5)


def test_opg_has_the_gradient_of_the_completions_mean_probability(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = some_steps(make_tokens)
    p = (tokens.per_sequence(tokens.logprobs) / tokens.lengths).exp()
    loss = torch.where(tokens.advantage > 0, 1 - p, p).mean()
    (expected,) = torch.autograd.grad(loss, tokens.logprobs)
    torch.testing.assert_close(pull(resolve("opg"), tokens)[1], expected)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (ProximalRatio(), [1.0202, 0.9704, 2.4596, 0.99]),
        (ProximalRatio(high=2.0), [1.0202, 0.9704, 2.0, 0.99]),
        (ProximalRatio(mode="mask", high=2.0), [1.0202, 0.9704, 0.0, 0.99]),
        (ProximalRatio(mode="mask", low=1.0, high=2.0), [1.0202, 0.0, 0.0, 0.0]),
        (ProximalRatio(level="sequence", high=2.0), [2.0] * 4),
        (ProximalRatio(level="sequence", mode="mask", high=3.0), [2.4109] * 4),
        (ProximalRatio(level="sequence", mode="mask", high=2.0), [0.0] * 4),
        (ProximalRatio(level="geometric"), [1.2461] * 4),
    ],
)
def test_weights_of_truncated_and_masked_importance_sampling(
    cell: ProximalRatio, expected: list[float], make_tokens: MakeTokens
) -> None:
    tokens = make_tokens([[-0.5] * 4], [1.0], behavior=[[-1.0] * 4], proximal=[[-1 + stale for stale in STALE]])
    assert cell.weight(tokens).tolist() == pytest.approx(expected, abs=6e-5)


def test_masked_tokens_do_not_count_in_the_completions_weight(make_tokens: MakeTokens) -> None:
    tokens = make_tokens(
        [[-0.5] * 3], [1.0], behavior=[[-1.0, -1.0, -math.inf]], proximal=[[-0.9, -0.8, -5.0]], mask=[[True, True, False]]
    )
    assert ProximalRatio(level="sequence").weight(tokens)[0].item() == pytest.approx(math.exp(0.3))


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_decoupled_ppo_by_hand(advantage: float, make_tokens: MakeTokens, pull: Pull) -> None:
    # prox/mu = e^.3 and u = e^.1, which the clip around prox leaves alone though pi/mu = 1.49 is far outside it.
    tokens = make_tokens([[-1.0]], [advantage], proximal=[[-1.1]], behavior=[[-1.4]])
    loss, gradient = pull(resolve("decoupled-ppo"), tokens)
    assert loss == pytest.approx(-1.4918 * advantage, abs=5e-5)
    assert gradient.tolist() == pytest.approx([-1.4918 * advantage], abs=5e-5)


def test_decoupled_ppo_clips_around_the_proximal_policy(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = make_tokens([[-1.0]], [1.0], proximal=[[-1.3]], behavior=[[-1.0]])
    loss, gradient = pull(resolve("decoupled-ppo"), tokens)
    assert loss == pytest.approx(-1.2 * math.exp(-0.3))
    assert gradient.tolist() == [0]


@pytest.mark.parametrize("changes", [{}, {"trust_region.low": 0.1, "trust_region.high": 0.5}, {"dual": 1.5}])
def test_decoupled_ppo_is_ppo_where_the_proximal_policy_drew_the_data(
    changes: dict[str, float], make_tokens: MakeTokens, pull: Pull
) -> None:
    tokens = some_steps(make_tokens)
    tokens = dataclasses.replace(tokens, proximal=tokens.behavior)
    ppo = resolve("grpo", changes).replace(aggregation=TokenMean())
    found, expected = pull(resolve("decoupled-ppo", changes), tokens), pull(ppo, tokens)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0.0, (-1.0, -2.0, -3.0)),
        (1.0, (-1.0, -2.0, -3.0)),
        (2.0, (-1.25, -2.25, -3.25)),
        (4.0, (-1.375, -2.375, -3.375)),
    ],
)
def test_a_3po_interpolates_the_proximal_policy_by_age(
    age: float, expected: tuple[float, ...], make_tokens: MakeTokens, pull: Pull
) -> None:
    tokens = make_tokens([[-1.5, -2.5, -3.5]], [1.0], behavior=[[-1.0, -2.0, -3.0]], age=[age])
    cell = InterpolatedProximal()
    assert cell.anchor(tokens).tolist() == pytest.approx(list(expected))
    assert cell.weight(tokens).tolist() == pytest.approx([math.exp(expected[0] + 1)] * 3)
    assert not cell.anchor(tokens).requires_grad


Level = Literal["token", "sequence", "geometric"]


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_a_correction_scales_the_pull_of_a_token_by_its_weight(level: Level, make_tokens: MakeTokens, pull: Pull) -> None:
    columns: dict[str, Any] = {"behavior": [[-1.0] * 4], "proximal": [[-1 + stale for stale in STALE]]}
    tokens = make_tokens([[-1.0] * 4], [1.0], **columns)
    cell = ProximalRatio(level=level, high=2.0)
    found = pull(gradient_algorithm("reinforce", mismatch=cell), tokens)[1]
    torch.testing.assert_close(found, -cell.weight(tokens) / 4)
