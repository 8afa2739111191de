"""Identities of losses, in fp64 on flat tokens."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms import ALGORITHMS, Algorithm, resolve
from pipeline.algorithms.cells.advantages import GroupMean
from pipeline.algorithms.cells.aggregation import SequenceMean, SequenceSum, TokenMean
from pipeline.algorithms.cells.regularizers import EntropyBonus, ReferenceKL, SquaredLogRatio
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
Step = dict[str, Any]
AGGREGATIONS = (TokenMean(), SequenceMean(), SequenceSum(divisor=3.0))
REINFORCE, GRPO, NOIS, IS = (resolve(name) for name in ("reinforce", "grpo", "rec-oneside-nois", "rec-oneside-is"))
REGULARIZED = IS.replace(
    name="regularized",
    regularizers=(SquaredLogRatio(coefficient=0.1), ReferenceKL(coefficient=0.3), EntropyBonus(coefficient=0.2)),
)
GRADIENTS = {name: algorithm for name, algorithm in ALGORITHMS.items() if isinstance(algorithm, PolicyGradient)}


def each(algorithms: dict[str, Algorithm]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("algorithm", algorithms.values(), ids=algorithms.keys())


EVERY = {name: algorithm for name, algorithm in ALGORITHMS.items() if algorithm.kernel != "preference"}
EVERY["regularized"] = REGULARIZED
"""All but the methods on pairs, whose tokens are more than these."""
log_ratios = st.floats(-3, 3).filter(lambda x: min(abs(math.exp(x) - bound) for bound in (0.8, 1.2)) > 1e-6)
"""Log ratios away from the edges of the trust region, where the surrogate has no derivative."""
advantage_values = st.sampled_from([-1.5, -0.25, 0.0, 0.5, 2.0])


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Arguments of make_tokens for some sequences with arbitrary ratios, advantages, weights, groups and masks."""
    rows = draw(st.lists(st.lists(log_ratios, min_size=1, max_size=5), min_size=1, max_size=5))
    each_row = {"min_size": len(rows), "max_size": len(rows)}
    return {
        "logprobs": [[-4 + value for value in row] for row in rows],
        "behavior": [[-4.0] * len(row) for row in rows],
        "proximal": [[-4 + 0.3 * value for value in row] for row in rows],
        "reference": [[-3.5] * len(row) for row in rows],
        "advantage": draw(st.lists(advantage_values, **each_row)),
        "weight": draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), **each_row)),
        "mask": [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows],
        "entropy": [[0.3 + 0.1 * place for place in range(len(row))] for row in rows],
        "group": draw(st.lists(st.integers(0, 2), **each_row)),
        "age": draw(st.lists(st.sampled_from([0.0, 1.0, 3.0]), **each_row)),
    }


def totals_of(tokens: Tokens) -> Totals:
    return Totals(tokens=float(tokens.mask.sum()), sequences=float(len(tokens.advantage)))


def loss_and_gradient(algorithm: Algorithm, *parts: Tokens, of: Tokens | None = None) -> tuple[float, Tensor]:
    """Loss of a step given in parts, and its gradient in the logprobs and entropies of the whole."""
    whole = of or parts[0]
    loss = sum(algorithm.loss(part, totals_of(whole)).value for part in parts)
    inputs = [whole.logprobs, whole.entropy]
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    return loss.item(), torch.cat(gradients)  # type: ignore[union-attr]


PER_TOKEN = ("logprobs", "entropy", "mask", "behavior", "proximal", "reference")
PER_SEQUENCE = ("advantage", "weight", "lengths", "group", "age")


def parts_of(tokens: Tokens, order: list[int], cuts: list[int]) -> list[Tokens]:
    """The sequences in another order, cut into parts that each number their own sequences."""
    parts = []
    for start, stop in itertools.pairwise([0, *cuts, len(order)]):
        chosen = order[start:stop]
        places = [torch.nonzero(tokens.sequence == number)[:, 0] for number in chosen]
        values = {name: getattr(tokens, name)[torch.cat(places)] for name in PER_TOKEN}
        values |= {name: getattr(tokens, name)[chosen] for name in PER_SEQUENCE}
        sequence = torch.cat([torch.full_like(place, number) for number, place in enumerate(places)])
        parts.append(Tokens(sequence=sequence, **values))
    return parts


@settings(deadline=None, max_examples=40)
@given(step=steps())
def test_score_form_has_the_gradient_of_the_clipped_surrogate(step: Step, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**step)
    for aggregation in AGGREGATIONS:
        surrogate = loss_and_gradient(GRPO.replace(aggregation=aggregation), tokens)[1]
        score = loss_and_gradient(IS.replace(aggregation=aggregation), tokens)[1]
        torch.testing.assert_close(score, surrogate, rtol=1e-12, atol=1e-15)


@settings(deadline=None, max_examples=12)
@given(step=steps())
def test_where_the_policy_is_the_behavior_policy_all_methods_pull_alike(step: Step, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**{**step, "behavior": step["logprobs"], "proximal": step["logprobs"]})
    expected = loss_and_gradient(REINFORCE, tokens)[1]
    for name, algorithm in GRADIENTS.items():
        if name != "opg":  # weighs by the probability itself
            note(name)
            found = loss_and_gradient(algorithm.replace(aggregation=TokenMean()), tokens)[1]
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


@settings(deadline=None, max_examples=12)
@given(step=steps(), data=st.data())
def test_order_and_micro_batches_change_neither_loss_nor_gradient(
    make_tokens: MakeTokens, step: Step, data: st.DataObject
) -> None:
    tokens = make_tokens(**step)
    count = len(tokens.advantage)
    order = data.draw(st.permutations(range(count)))
    cuts = sorted(data.draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
    whole, parts = parts_of(tokens, order, []), parts_of(tokens, order, cuts)
    for name, algorithm in EVERY.items():
        note(name)
        loss, gradient = loss_and_gradient(algorithm, *(whole if algorithm.whole_step else parts), of=tokens)
        expected_loss, expected = loss_and_gradient(algorithm, tokens)
        assert loss == pytest.approx(expected_loss, rel=1e-11, abs=1e-13)
        torch.testing.assert_close(gradient, expected, rtol=1e-11, atol=1e-13)


@settings(deadline=None, max_examples=12)
@given(step=steps(), filler=st.sampled_from([-math.inf, 0.0, -50.0]))
def test_masked_tokens_carry_nothing_whatever_they_hold(make_tokens: MakeTokens, step: Step, filler: float) -> None:
    tokens = make_tokens(**step)
    names = ("behavior", "proximal", "reference")
    filled = {name: getattr(tokens, name).masked_fill(~tokens.mask, filler) for name in names}
    for name, algorithm in EVERY.items():
        note(name)
        loss, gradient = loss_and_gradient(algorithm, dataclasses.replace(tokens, **filled))
        expected_loss, expected = loss_and_gradient(algorithm, tokens)
        assert loss == expected_loss
        assert torch.equal(gradient, expected)
        assert not gradient.view(2, -1)[:, ~tokens.mask].any()


@each({name: algorithm for name, algorithm in GRADIENTS.items() if not any(r.coefficient for r in algorithm.regularizers)})
def test_zero_advantage_gives_zero_gradient(algorithm: PolicyGradient, make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-0.1, -3.0]], [0.0], behavior=[[-4.0, -0.2]])
    loss, gradient = loss_and_gradient(algorithm, tokens)
    assert loss == 0
    assert not gradient.any()


def test_a_ratio_of_e20_pulls_only_against_its_advantage(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -21.0]], [1.0], behavior=[[-21.0, -1.0]])
    assert loss_and_gradient(NOIS, tokens)[1][:2].tolist() == [0.0, -0.5]
    assert loss_and_gradient(IS, tokens)[1][:2].tolist() == pytest.approx([0.0, -0.5 * math.exp(-20)])


def test_weight_scales_a_completion_and_zero_takes_it_out(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0], [-1.0], [-1.0]], [1.0, 1.0, -1.0], weight=[2.0, 0.0, 1.0])
    assert loss_and_gradient(REINFORCE, tokens)[1][:3].tolist() == pytest.approx([-2 / 3, 0, 1 / 3])


def test_a_trust_region_does_not_stop_a_regularizer(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0]], [1.0], behavior=[[-1.0 - math.log(4)]], entropy=[[1.5]])
    algorithm = NOIS.replace(regularizers=(SquaredLogRatio(coefficient=0.5), EntropyBonus(coefficient=0.1)))
    loss, gradient = loss_and_gradient(algorithm, tokens)
    assert loss == pytest.approx(0.5 * math.log(4) ** 2 - 0.1 * 1.5)
    assert gradient.tolist() == pytest.approx([math.log(4), -0.1])


def test_importance_weights_are_constants_of_the_gradient(make_tokens: MakeTokens) -> None:
    # d/dlogp of -sg(r) A logp is -r A, not -r A (1 + logp).
    tokens = make_tokens([[-2.0]], [1.0], behavior=[[-2.0 + math.log(2)]])
    assert float(loss_and_gradient(IS, tokens)[1][0]) == pytest.approx(-0.5)


def test_a_method_says_which_columns_it_needs() -> None:
    assert REINFORCE.needs == ()
    assert REINFORCE.replace(regularizers=(EntropyBonus(coefficient=0.1), SquaredLogRatio(coefficient=0.0))).needs == ()
    assert REINFORCE.replace(regularizers=(SquaredLogRatio(),)).needs == ("behavior_logprobs",)
    assert {algorithm.needs for algorithm in (NOIS, IS, GRPO)} == {("behavior_logprobs",)}
    assert REGULARIZED.needs == ("behavior_logprobs", "reference_logprobs")


@each({name: algorithm for name, algorithm in EVERY.items() if "behavior_logprobs" not in algorithm.needs})
def test_a_method_that_needs_no_stored_logprobs_trains_without(algorithm: Algorithm, make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-1.0, -2.0], [-0.5]], [1.0, -1.0])
    bare = dataclasses.replace(tokens, behavior=None, proximal=None)
    found = loss_and_gradient(algorithm, bare)
    assert found[0] == loss_and_gradient(algorithm, tokens)[0]
    assert torch.equal(found[1], loss_and_gradient(algorithm, tokens)[1])


def test_many_epochs_with_nothing_to_hold_the_policy_back_are_warned_of() -> None:
    assert REINFORCE.warning(epochs=1) is None
    warning = REINFORCE.warning(epochs=4)
    assert warning is not None
    assert "over 4 epochs" in warning
    assert REINFORCE.replace(regularizers=(SquaredLogRatio(),)).warning(epochs=4) is None
    assert [resolve(name).warning(epochs=4) for name in ("rec-oneside-nois", "grpo", "asymre", "sft", "topr")] == [None] * 5


def test_the_surrogate_form_needs_a_one_sided_trust_region() -> None:
    with pytest.raises(ValueError, match="must be OneSide"):
        GRPO.replace(trust_region=NoTrustRegion())
    with pytest.raises(ValueError, match="must be OneSide"):
        GRPO.replace(trust_region=OneSide(level="geometric"))


def test_recipes_tell_apart_what_decides_the_loss_and_what_the_advantage() -> None:
    other_loss = GRPO.replace(trust_region=OneSide(low=0.3))
    other_advantage = GRPO.replace(advantage=GroupMean())
    assert (GRPO.recipe() != other_loss.recipe(), GRPO.shaping_recipe() == other_loss.shaping_recipe()) == (True, True)
    assert (GRPO.recipe() == other_advantage.recipe(), GRPO.shaping_recipe() != other_advantage.shaping_recipe()) == (True, True)
    assert REINFORCE.recipe() == REINFORCE.replace(name="other", regularizers=(EntropyBonus(),)).recipe()
