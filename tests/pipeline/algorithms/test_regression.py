"""OAPL, A*-PO and OPMD: log ratios fitted to advantages (reference: oracles, section H; identities 4 and 8)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.aggregation import SequenceSum
from pipeline.algorithms.tokens import Tokens

MakeTokens = Callable[..., Tokens]
Pull = Callable[[Algorithm, Tokens], tuple[float, Tensor]]
ADVANTAGE = [0.55, 0.05, -0.2, -0.4]
"""r - mean(r) of four completions of one group."""


@pytest.fixture
def group(make_tokens: MakeTokens) -> Tokens:
    """One group of four completions, one of whose tokens does not count."""
    return make_tokens(
        [[-0.5, -1.0, -0.2], [-2.0, -1.5], [-0.3, -0.1, -0.4], [-3.0]],
        ADVANTAGE,
        behavior=[[-0.7, -0.9, -0.3], [-1.0, -1.2], [-0.9, -0.5, -9.0], [-1.0]],
        reference=[[-0.6, -1.1, -0.3], [-1.5, -1.3], [-0.5, -0.6, -9.0], [-2.0]],
        mask=[[True] * 3, [True] * 2, [True, True, False], [True]],
    )


def at_the_data(tokens: Tokens) -> Tokens:
    """The same step where the policy is the behavior policy."""
    return dataclasses.replace(tokens, behavior=tokens.logprobs.detach(), reference=tokens.logprobs.detach())


def moved(tokens: Tokens) -> Tensor:
    """log pi/mu of each completion."""
    assert tokens.behavior is not None
    return tokens.per_sequence(tokens.logprobs - tokens.behavior)


def gradient_of(loss: Tensor, tokens: Tokens) -> Tensor:
    return torch.autograd.grad(loss, tokens.logprobs)[0]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_oapl_by_hand(make_tokens: MakeTokens, pull: Pull) -> None:
    # Values of NeMo-RL's tests: errors (.5 x .3 - 1) and (.5 x .7 + .5).
    behavior = [[0.1, -0.3], [0.1, 0.2]]
    tokens = make_tokens([[0.2, -0.1], [0.4, 0.6]], [1.0, -0.5], behavior=behavior)
    assert pull(resolve("oapl", {"target.beta": 0.5}), tokens)[0] == pytest.approx(0.7225)
    alone = make_tokens([[0.6, 0.2]], [0.0], behavior=[[0.0, 0.0]])
    assert pull(resolve("oapl", {"length_normalized": True}), alone)[0] == pytest.approx(0.16)


def test_a_completions_weight_counts_in_a_regression(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = make_tokens([[0.3], [0.7]], [1.0, -0.5], behavior=[[0.0], [0.0]], weight=[2.0, 0.0])
    assert pull(resolve("oapl"), tokens)[0] == pytest.approx(2 * (0.3 - 1) ** 2 / 2)


@pytest.mark.parametrize(("name", "beta"), [("oapl", 1.0), ("oapl", 0.3), ("a*-po", 1e-3)])
def test_at_the_anchor_a_regression_pulls_like_reinforce(name: str, beta: float, group: Tokens, pull: Pull) -> None:
    reinforce = resolve("reinforce").replace(aggregation=SequenceSum())
    found = pull(resolve(name, {"target.beta": beta}), at_the_data(group))[1]
    assert_close(found, 2 * beta * pull(reinforce, group)[1])


def test_a_star_po_is_anchored_at_the_reference(group: Tokens, pull: Pull) -> None:
    anchored = dataclasses.replace(group, behavior=group.reference)
    star, oapl = resolve("a*-po", {"target.beta": 0.7}), resolve("oapl", {"target.beta": 0.7})
    assert pull(star, group)[0] == pytest.approx(pull(oapl, anchored)[0])
    assert pull(star, group)[0] != pytest.approx(pull(oapl, group)[0])


@pytest.mark.parametrize("tau", [0.02, 0.2, 1.0])
def test_pairwise_opmd_is_the_sum_over_pairs(tau: float, group: Tokens, pull: Pull) -> None:
    # (1/K^2) sum over i < j of (a_i - a_j)^2 / (2 tau), with a_i = r_i - tau log pi(y_i)/mu(y_i).
    a = group.advantage + 3.0 - tau * moved(group)
    squares = sum(((a[i] - a[j]) ** 2 for i, j in itertools.combinations(range(4), 2)), torch.zeros(()))
    found = pull(resolve("opmd-pairwise", {"coefficient": tau / 2}), group)[1]
    assert_close(found, gradient_of(squares / 16 / (2 * tau), group))


def test_pairwise_opmd_compares_within_groups_only(group: Tokens, pull: Pull) -> None:
    opmd = resolve("opmd-pairwise")
    parted = dataclasses.replace(group, group=torch.tensor([0, 1, 0, 1]))
    delta = moved(group)
    variances = [delta[places].var(correction=0) for places in ([0, 2], [1, 3])]
    expected = pull(resolve("reinforce").replace(aggregation=SequenceSum()), group)[1] + gradient_of(
        0.1 * torch.stack(variances).mean(), group
    )
    assert_close(pull(opmd, parted)[1], expected)


def test_a_group_of_one_is_compared_with_nothing(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = make_tokens([[-0.5, -1.0]], [0.0], behavior=[[-2.0, -0.1]])
    loss, gradient = pull(resolve("opmd-pairwise"), tokens)
    assert (loss, gradient.tolist()) == (0, [0, 0])


def test_leaving_completions_out_is_a_weighted_pairwise_loss(group: Tokens, pull: Pull) -> None:
    # Pairs weighted w_i w_j with w in {0, 1}: REINFORCE on the kept ones, with the mean of the kept ones as baseline.
    kept, tau = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64), 0.2
    at_data = at_the_data(group)
    a = group.advantage - tau * moved(at_data)
    pairs = itertools.combinations(range(4), 2)
    squares = sum((kept[i] * kept[j] * (a[i] - a[j]) ** 2 for i, j in pairs), torch.zeros(()))
    baseline = (kept * group.advantage).sum() / kept.sum()
    dropped = dataclasses.replace(at_data, advantage=group.advantage - baseline, weight=kept)
    reinforce = resolve("reinforce").replace(aggregation=SequenceSum())
    expected = gradient_of(squares / (2 * tau * kept.sum()), at_data) / 4
    assert_close(pull(reinforce, dropped)[1], expected)
