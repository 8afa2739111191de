"""Identities of the policy-gradient kernel, in fp64 on flat tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms import ALGORITHMS
from pipeline.algorithms.cells.advantages import GroupMean
from pipeline.algorithms.cells.aggregation import SequenceMean, SequenceSum, TokenMean
from pipeline.algorithms.cells.regularizers import BehaviorKL, EntropyBonus
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide
from pipeline.algorithms.grpo import GRPO
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.algorithms.rec import REC_ONESIDE_IS, REC_ONESIDE_NOIS
from pipeline.algorithms.reinforce import REINFORCE
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
AGGREGATIONS = (TokenMean(), SequenceMean(), SequenceSum(divisor=3.0))
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS.values(), ids=ALGORITHMS.keys())

log_ratios = st.floats(-3, 3).filter(lambda x: min(abs(math.exp(x) - bound) for bound in (0.8, 1.2)) > 1e-6)
"""Log ratios away from the edges of the trust region, where the surrogate has no derivative."""
sequences = st.lists(st.lists(log_ratios, min_size=1, max_size=5), min_size=1, max_size=5)
advantage_values = st.sampled_from([-1.5, -0.25, 0.0, 0.5, 2.0])


@st.composite
def steps(draw: st.DrawFn) -> dict[str, list[list[float]] | list[float]]:
    """Arguments of make_tokens for some sequences with arbitrary ratios, advantages, weights and masks."""
    rows = draw(sequences)
    count = len(rows)
    return {
        "logprobs": [[-1 + value for value in row] for row in rows],
        "behavior": [[-1.0] * len(row) for row in rows],
        "advantage": draw(st.lists(advantage_values, min_size=count, max_size=count)),
        "weight": draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=count, max_size=count)),
        "mask": [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows],
        "entropy": [[0.3 + 0.1 * place for place in range(len(row))] for row in rows],
    }


def totals_of(tokens: Tokens) -> Totals:
    return Totals(tokens=float(tokens.mask.sum()), sequences=float(len(tokens.advantage)))


def loss_and_gradient(algorithm: PolicyGradient, tokens: Tokens, totals: Totals | None = None) -> tuple[float, Tensor]:
    """Loss, and its gradient in the logprobs and entropies."""
    loss = algorithm.loss(tokens, totals or totals_of(tokens)).value
    gradients = torch.autograd.grad(loss, [tokens.logprobs, tokens.entropy], allow_unused=True, materialize_grads=True)
    return float(loss), torch.cat(gradients)


def parts_of(tokens: Tokens, order: list[int], cuts: list[int]) -> list[Tokens]:
    """The sequences in another order, cut into parts that each number their own sequences."""
    bounds = [0, *cuts, len(order)]
    parts = []
    for start, stop in zip(bounds, bounds[1:], strict=False):
        chosen = order[start:stop]
        place = torch.cat([torch.nonzero(tokens.sequence == number)[:, 0] for number in chosen])
        number = torch.cat([torch.full_like(tokens.sequence[tokens.sequence == n], i) for i, n in enumerate(chosen)])
        fields = {name: getattr(tokens, name)[place] for name in ("logprobs", "entropy", "behavior", "mask")}
        whole = {name: getattr(tokens, name)[chosen] for name in ("advantage", "weight", "lengths")}
        parts.append(Tokens(sequence=number, **fields, **whole))
    return parts


def gradient_of_parts(algorithm: PolicyGradient, tokens: Tokens, parts: list[Tokens]) -> tuple[float, Tensor]:
    """Loss and gradient in the original tokens, summed over parts, with the totals of the whole."""
    loss = sum(algorithm.loss(part, totals_of(tokens)).value for part in parts)
    gradients = torch.autograd.grad(loss, [tokens.logprobs, tokens.entropy], allow_unused=True, materialize_grads=True)
    return float(loss), torch.cat(gradients)


@settings(deadline=None, max_examples=80)
@given(step=steps())
def test_score_form_has_the_gradient_of_the_clipped_surrogate(step: dict[str, list[float]], make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**step)
    for aggregation in AGGREGATIONS:
        surrogate = loss_and_gradient(GRPO.replace(aggregation=aggregation), tokens)[1]
        score = loss_and_gradient(REC_ONESIDE_IS.replace(aggregation=aggregation), tokens)[1]
        torch.testing.assert_close(score, surrogate, rtol=1e-12, atol=1e-15)


@settings(deadline=None, max_examples=80)
@given(step=steps())
def test_where_the_policy_is_the_behavior_policy_all_methods_pull_alike(
    step: dict[str, list[float]], make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(**{**step, "behavior": step["logprobs"]})
    reference = loss_and_gradient(REINFORCE, tokens)[1]
    for algorithm in (REC_ONESIDE_NOIS, REC_ONESIDE_IS, GRPO.replace(aggregation=TokenMean())):
        torch.testing.assert_close(loss_and_gradient(algorithm, tokens)[1], reference, rtol=1e-12, atol=1e-15)


@every_algorithm
@settings(deadline=None, max_examples=30)
@given(step=steps(), data=st.data())
def test_order_and_micro_batches_change_neither_loss_nor_gradient(
    algorithm: PolicyGradient, make_tokens: MakeTokens, step: dict[str, list[float]], data: st.DataObject
) -> None:
    algorithm = algorithm.replace(regularizers=(BehaviorKL(coefficient=0.1), EntropyBonus(coefficient=0.2)))
    tokens = make_tokens(**step)
    count = len(tokens.advantage)
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    loss, gradient = gradient_of_parts(algorithm, tokens, parts_of(tokens, order, cuts))
    whole_loss, whole_gradient = loss_and_gradient(algorithm, tokens)
    assert loss == pytest.approx(whole_loss, rel=1e-12, abs=1e-14)
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-12, atol=1e-14)


@every_algorithm
@settings(deadline=None, max_examples=30)
@given(step=steps(), filler=st.sampled_from([-math.inf, 0.0, -20.0]))
def test_masked_tokens_carry_nothing_whatever_they_hold(
    algorithm: PolicyGradient, make_tokens: MakeTokens, step: dict[str, list[float]], filler: float
) -> None:
    algorithm = algorithm.replace(regularizers=(BehaviorKL(coefficient=0.1), EntropyBonus(coefficient=0.2)))
    tokens = make_tokens(**step)
    assert tokens.behavior is not None
    other = dataclasses.replace(tokens, behavior=tokens.behavior.where(tokens.mask, torch.tensor(filler, dtype=torch.float64)))
    loss, gradient = loss_and_gradient(algorithm, other)
    assert loss == loss_and_gradient(algorithm, tokens)[0]
    assert torch.equal(gradient, loss_and_gradient(algorithm, tokens)[1])
    assert not gradient.view(2, -1)[:, ~tokens.mask].any()


@every_algorithm
def test_zero_advantage_gives_zero_gradient(algorithm: PolicyGradient, make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-0.1, -3.0]], [0.0], behavior=[[-4.0, -0.2]])
    loss, gradient = loss_and_gradient(algorithm, tokens)
    assert loss == 0
    assert not gradient.any()


@every_algorithm
@pytest.mark.parametrize("advantage", [-2.0, 2.0])
def test_extreme_ratios_stay_finite_in_fp32(algorithm: PolicyGradient, advantage: float, make_tokens: MakeTokens) -> None:
    regularized = algorithm.replace(regularizers=(BehaviorKL(coefficient=1e-3),))
    tokens = make_tokens([[-0.1, -20.1, -0.1, -200.0]], [advantage], behavior=[[-20.1, -0.1, -200.0, -0.1]])
    floats = {name: getattr(tokens, name).detach().float() for name in ("logprobs", "entropy", "behavior", "advantage")}
    floats |= {name: getattr(tokens, name).float() for name in ("weight", "lengths")}
    small = dataclasses.replace(tokens, **floats)
    small.logprobs.requires_grad_()
    small.entropy.requires_grad_()
    loss, gradient = loss_and_gradient(regularized, small)
    assert math.isfinite(loss)
    assert gradient.isfinite().all()


def test_a_ratio_of_e20_pulls_only_against_its_advantage(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -21.0]], [1.0], behavior=[[-21.0, -1.0]])
    assert loss_and_gradient(REC_ONESIDE_NOIS, tokens)[1][:2].tolist() == [0.0, -0.5]
    assert loss_and_gradient(REC_ONESIDE_IS, tokens)[1][:2].tolist() == pytest.approx([0.0, -0.5 * math.exp(-20)])


def test_weight_scales_a_completion_and_zero_takes_it_out(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0], [-1.0], [-1.0]], [1.0, 1.0, -1.0], weight=[2.0, 0.0, 1.0])
    assert loss_and_gradient(REINFORCE, tokens)[1][:3].tolist() == pytest.approx([-2 / 3, 0, 1 / 3])


def test_a_trust_region_does_not_stop_a_regularizer(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0]], [1.0], behavior=[[-1.0 - math.log(4)]], entropy=[[1.5]])
    algorithm = REC_ONESIDE_NOIS.replace(regularizers=(BehaviorKL(coefficient=0.5), EntropyBonus(coefficient=0.1)))
    loss, gradient = loss_and_gradient(algorithm, tokens)
    assert loss == pytest.approx(0.5 * (1 / 4 - 1 + math.log(4)) - 0.1 * 1.5)
    assert gradient.tolist() == pytest.approx([0.5 * (1 - 1 / 4), -0.1])


def test_importance_weights_and_masks_are_constants_of_the_gradient(make_tokens: MakeTokens) -> None:
    # d/dlogp of -sg(r) A logp is -r A, not -r A (1 + logp).
    tokens = make_tokens([[-2.0]], [1.0], behavior=[[-2.0 + math.log(2)]])
    assert loss_and_gradient(REC_ONESIDE_IS, tokens)[1][0] == pytest.approx(-0.5)


def test_a_method_says_which_columns_it_needs() -> None:
    assert REINFORCE.needs == ()
    assert REINFORCE.replace(regularizers=(EntropyBonus(coefficient=0.1), BehaviorKL())).needs == ()
    for algorithm in (REC_ONESIDE_NOIS, REC_ONESIDE_IS, GRPO, REINFORCE.replace(regularizers=(BehaviorKL(coefficient=0.1),))):
        assert algorithm.needs == ("behavior_logprobs",)


def test_many_epochs_with_nothing_to_hold_the_policy_back_are_warned_of() -> None:
    assert REINFORCE.warning(epochs=1) is None
    warning = REINFORCE.warning(epochs=4)
    assert warning is not None
    assert "over 4 epochs" in warning
    assert REINFORCE.replace(regularizers=(BehaviorKL(coefficient=0.1),)).warning(epochs=4) is None
    assert REC_ONESIDE_NOIS.warning(epochs=4) is None


def test_the_surrogate_form_needs_a_one_sided_trust_region() -> None:
    with pytest.raises(ValueError, match="must be OneSide"):
        GRPO.replace(trust_region=NoTrustRegion())


def test_recipes_tell_apart_what_decides_the_loss_and_what_the_advantage() -> None:
    other_loss = GRPO.replace(trust_region=OneSide(low=0.3))
    other_advantage = GRPO.replace(advantage=GroupMean())
    assert (GRPO.recipe() != other_loss.recipe(), GRPO.shaping_recipe() == other_loss.shaping_recipe()) == (True, True)
    assert (GRPO.recipe() == other_advantage.recipe(), GRPO.shaping_recipe() != other_advantage.shaping_recipe()) == (True, True)
    assert REINFORCE.recipe() == REINFORCE.replace(name="other", regularizers=(BehaviorKL(),)).recipe()
