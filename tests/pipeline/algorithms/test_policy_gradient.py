"""The policy-gradient kernel, in fp64 on flat tokens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.algorithms import ALGORITHMS, Algorithm, resolve
from pipeline.algorithms.cells.advantages import GroupMean
from pipeline.algorithms.cells.importance import Ratio, SequenceProbability
from pipeline.algorithms.cells.regularizers import EntropyBonus, ReferenceKL, SquaredLogRatio
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
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


def totals_of(tokens: Tokens) -> Totals:
    return Totals(tokens=float(tokens.mask.sum()), sequences=float(len(tokens.advantage)))


def loss_and_gradient(algorithm: Algorithm, tokens: Tokens) -> tuple[float, Tensor]:
    """Loss of a step, and its gradient in the logprobs and entropies."""
    loss = algorithm.loss(tokens, totals_of(tokens)).value
    inputs = [tokens.logprobs, tokens.entropy]
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return loss.item(), torch.cat(gradients)


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


@pytest.mark.parametrize(
    ("name", "settings", "warns"),
    [
        ("topr", {"negative_low": 1.0}, True),
        ("topr", {"negative_low": 0.1}, True),
        ("topr", {}, False),
        ("cispo", {"negative_low": 1.28}, True),
        ("cispo", {"negative_high": 0.5}, False),
        ("rec-oneside-nois", {"low": 1.0}, True),
        ("rec-oneside-nois", {"low": 0.99}, False),
        ("rec-twoside-nois", {"low": 1e9}, True),
        ("rec-oneside-is", {"low": 1e9}, False),
        ("grpo", {"low": 1e9}, False),
        ("w-reinforce", {}, True),
        ("w-reinforce", {"negative": 0.0}, False),
        ("asymre", {"shift": 0.0}, True),
    ],
)
def test_a_warning_follows_from_the_bounds_that_are_set(name: str, settings: dict[str, float], warns: bool) -> None:
    assert (resolve(name, settings).warning(epochs=4) is not None) is warns


def test_a_loss_without_logprobs_of_the_behavior_refuses_a_cell_that_reads_the_ratio(make_tokens: MakeTokens) -> None:
    tokens = dataclasses.replace(make_tokens([[-1.0, -2.0]], [1.0]), behavior=None)
    totals = Totals(tokens=2, sequences=1)
    assert REINFORCE.loss(tokens, totals).value.item() == pytest.approx(1.5)
    with pytest.raises(ValueError, match="reads the ratio pi/mu without saying so"):
        NOIS.loss(tokens, totals)


def test_the_surrogate_form_needs_a_one_sided_trust_region() -> None:
    with pytest.raises(ValueError, match="must be OneSide"):
        GRPO.replace(trust_region=NoTrustRegion())
    with pytest.raises(ValueError, match="must be OneSide"):
        GRPO.replace(trust_region=OneSide(level="geometric"))


def test_the_surrogate_form_has_no_other_importance_than_its_ratio() -> None:
    assert GRPO.replace(importance=Ratio()) == GRPO
    for importance in (Ratio(level="sequence"), SequenceProbability()):
        with pytest.raises(ValueError, match="use an algorithm in score form, such as rec-oneside-is"):
            GRPO.replace(importance=importance)
        GRPO.replace(importance=importance, surrogate=False)


def test_recipes_tell_apart_what_decides_the_loss_and_what_the_advantage() -> None:
    other_loss = GRPO.replace(trust_region=OneSide(low=0.3))
    other_advantage = GRPO.replace(advantage=GroupMean())
    assert (GRPO.recipe() != other_loss.recipe(), GRPO.shaping_recipe() == other_loss.shaping_recipe()) == (True, True)
    assert (GRPO.recipe() == other_advantage.recipe(), GRPO.shaping_recipe() != other_advantage.shaping_recipe()) == (True, True)
    assert REINFORCE.recipe() == REINFORCE.replace(name="other", regularizers=(EntropyBonus(),)).recipe()
