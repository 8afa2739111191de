"""Where each method ends on a frozen snapshot of a softmax bandit (reference: oracles, sections C and H; identity 16)."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest
import torch

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.advantages import GroupMean, Signed
from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.shaping import BestOfN, ZeroVariance
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
Flow = Callable[..., list[float]]
COUNTS, REWARDS = (4, 3, 2, 1), (1.0, 0.0, 0.0, 1.0)
"""How often the data hold each arm, and whether it is solved: mu = (.4, .3, .2, .1)."""
GRADED = (1.0, 0.9, 0.2, 0.0)
"""Rewards of four arms that the data hold once each; the value of the data is .525."""


@pytest.fixture
def flow(make_tokens: MakeTokens) -> Flow:
    """flow(algorithm, counts, rewards, time, steps, start): the policy after gradient flow on the method's own advantages."""

    def run(
        algorithm: Algorithm,
        counts: Sequence[int],
        rewards: Sequence[float],
        time: float,
        steps: int = 1000,
        start: Sequence[float] | None = None,
    ) -> list[float]:
        arms = torch.tensor([arm for arm, count in enumerate(counts) for _ in range(count)])
        frame = pl.DataFrame({"group_id": ["g"] * len(arms), "reward": [rewards[arm] for arm in arms]})
        advantage = frame.select(algorithm.advantage.expression(pl.col("reward"))).to_series().to_list()
        mu = torch.tensor(counts, dtype=torch.float64) / len(arms)
        tokens = make_tokens(mu.log()[arms][:, None].tolist(), advantage)
        totals = Totals(tokens=len(arms), sequences=len(arms))
        logits = mu.log() if start is None else torch.tensor(start, dtype=torch.float64).log()
        for _ in range(steps):
            logprobs = logits.log_softmax(0)
            here = dataclasses.replace(tokens, logprobs=logprobs[arms].requires_grad_())
            (slope,) = torch.autograd.grad(algorithm.loss(here, totals).value, here.logprobs)
            by_arm = torch.zeros_like(logits).index_add(0, arms, slope)
            logits = logits - time / steps * (by_arm - logprobs.exp() * by_arm.sum())
        return logits.softmax(0).tolist()

    return run


def signed(name: str, **cells: object) -> Algorithm:
    """A method on rewards of +1 and -1."""
    return resolve(name).replace(advantage=Signed(), **cells)


def test_naive_reinforce_collapses_onto_one_arm(flow: Flow) -> None:
    assert flow(signed("reinforce"), COUNTS, REWARDS, time=1000) == pytest.approx([1, 0, 0, 0], abs=1e-6)


def test_topr_ends_at_the_data_restricted_to_solved_completions(flow: Flow) -> None:
    assert flow(resolve("topr"), COUNTS, REWARDS, time=1000) == pytest.approx([0.8001, 0.0003, 0.0003, 0.1993], abs=2e-4)


def test_imitation_of_solved_completions_ends_at_the_same_point(flow: Flow) -> None:
    positives = resolve("sft").replace(advantage=Signed(negative=0.0))
    assert flow(positives, COUNTS, REWARDS, time=1000) == pytest.approx([0.799, 0.001, 0.001, 0.199], abs=1e-3)


def test_exact_importance_sampling_follows_the_true_gradient_to_the_likelier_arm(flow: Flow) -> None:
    exact = signed("reinforce", importance=Ratio())
    found = flow(exact, COUNTS, REWARDS, time=1000)
    assert found[0] == pytest.approx(0.9981, abs=5e-4)
    assert found[0] + found[3] == pytest.approx(1, abs=1e-3)


def test_imitation_ends_at_the_data_from_anywhere(flow: Flow) -> None:
    found = flow(resolve("sft"), COUNTS, REWARDS, time=1000, steps=500, start=[0.01, 0.09, 0.1, 0.8])
    assert found == pytest.approx([0.4, 0.3, 0.2, 0.1], abs=1e-6)


def water(counts: Sequence[int], rewards: Sequence[float], baseline: float) -> list[float]:
    """(mu (r - V) - kappa)+ / (V of the data - V), with kappa such that it sums to 1."""
    mu = [count / sum(counts) for count in counts]
    pulls = [m * (reward - baseline) for m, reward in zip(mu, rewards, strict=True)]
    low, high = min(pulls) - sum(pulls), max(pulls)
    for _ in range(100):
        middle = (low + high) / 2
        above = sum(max(pull - middle, 0) for pull in pulls) > sum(pulls)
        low, high = (middle, high) if above else (low, middle)
    return [max(pull - low, 0) / sum(pulls) for pull in pulls]


@pytest.mark.parametrize(
    ("baseline", "time", "flowed", "filled"),
    [
        (-100.0, 20, (0.2512, 0.2509, 0.2492, 0.2487), (0.2512, 0.2509, 0.2492, 0.2487)),
        (-1.0, 1000, (0.3279, 0.3115, 0.1967, 0.1639), (0.3279, 0.3115, 0.1967, 0.1639)),
        (0.0, 2000, (0.476, 0.4283, 0.095, 0.0007), (0.4762, 0.4286, 0.0952, 0.0)),
        (0.2, 2000, (0.5385, 0.4615, 0.0, 0.0), (0.5385, 0.4615, 0.0, 0.0)),
        (0.4, 10000, (0.6, 0.4, 0.0, 0.0), (0.6, 0.4, 0.0, 0.0)),
        (0.5, 10000, (0.998, 0.002, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
        (0.52, 10000, (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_asymre_fills_up_like_water_and_collapses_at_the_value_of_the_data(
    baseline: float, time: float, flowed: Sequence[float], filled: Sequence[float], flow: Flow
) -> None:
    asymre = resolve("asymre").replace(advantage=GroupMean(shift=baseline - 0.525))
    assert flow(asymre, (1, 1, 1, 1), GRADED, time=time) == pytest.approx(list(flowed), abs=1e-3)
    assert water((1, 1, 1, 1), GRADED, baseline) == pytest.approx(list(filled), abs=5e-5)


@pytest.mark.parametrize(
    ("beta", "with_value", "with_mean"), [(1.0, 0.7311, 0.7138), (0.5, 0.8808, 0.8332), (0.2, 0.9933, 0.9619)]
)
def test_oapl_ends_at_the_gibbs_policy_and_short_of_it_with_the_mean_as_baseline(
    beta: float, with_value: float, with_mean: float, flow: Flow
) -> None:
    oapl = resolve("oapl", {"advantage.beta": beta, "target.beta": beta})
    tempered = oapl.replace(advantage=GroupMean())
    for algorithm, expected in ((oapl, with_value), (tempered, with_mean)):
        found = flow(algorithm, (1, 1), (1.0, 0.0), time=200 / beta**2, steps=400)
        assert found == pytest.approx([expected, 1 - expected], abs=5e-5)
    gibbs = math.exp(1 / beta) / (math.exp(1 / beta) + 1)
    assert with_value == pytest.approx(gibbs, abs=5e-5)


@pytest.mark.parametrize(("value_beta", "policy_beta", "expected"), [(1.0, 0.5, 0.8603), (0.2, 0.5, 0.9080), (0.2, 1.0, 0.7696)])
def test_oapl_with_two_temperatures(value_beta: float, policy_beta: float, expected: float, flow: Flow) -> None:
    oapl = resolve("oapl", {"advantage.beta": value_beta, "target.beta": policy_beta})
    found = flow(oapl, (1, 1), (1.0, 0.0), time=200 / policy_beta**2, steps=400)
    assert found[0] == pytest.approx(expected, abs=5e-5)


def test_pairwise_opmd_ends_at_the_gibbs_policy_of_any_data(flow: Flow) -> None:
    tau, rewards = 0.5, (1.0, 0.0, 0.4, 0.8)
    found = flow(resolve("opmd-pairwise", {"coefficient": tau / 2}), COUNTS, rewards, time=1500)
    gibbs = [count * math.exp(reward / tau) for count, reward in zip(COUNTS, rewards, strict=True)]
    assert found == pytest.approx([weight / sum(gibbs) for weight in gibbs], abs=1e-4)


def test_clipping_stops_the_collapse_of_reinforce(flow: Flow) -> None:
    # Positives stop at r = 1.2 and negatives at r = .8, or the step after.
    found = flow(signed("rec-oneside-nois"), COUNTS, REWARDS, time=50, steps=1000)
    ratios = [p / m for p, m in zip(found, (0.4, 0.3, 0.2, 0.1), strict=True)]
    assert max(ratios) < 1.3
    assert min(ratios) > 0.7


def test_groups_without_signal_are_as_many_as_chance_says() -> None:
    # p^8 + (1 - p)^8 of the groups of 8 at p = .9, summed over all outcomes.
    outcomes = list(itertools.product((0.0, 1.0), repeat=8))
    chances = [0.9 ** sum(outcome) * 0.1 ** (8 - sum(outcome)) for outcome in outcomes]
    rows = [(str(number), reward) for number, outcome in enumerate(outcomes) for reward in outcome]
    frame = pl.DataFrame(rows, schema={"group_id": pl.String, "reward": pl.Float64}, orient="row")
    drops = frame.select("group_id", drop=ZeroVariance().drops()).group_by("group_id", maintain_order=True).first()["drop"]
    assert sum(chance for chance, drop in zip(chances, drops, strict=True) if drop) == pytest.approx(0.43046721)


@pytest.mark.parametrize(("size", "divergence"), [(4, 0.6363), (8, 1.2044), (64, 3.1745)])
def test_the_best_of_n_is_as_far_from_the_policy_as_its_theory_says(size: int, divergence: float) -> None:
    # log N - (N - 1)/N: the best of N uniform rewards u has density N u^(N-1).
    rewards = np.random.default_rng(0).random((20_000, size))
    group, sample = (places.ravel() for places in np.indices(rewards.shape))
    frame = pl.DataFrame({"group_id": group, "sample_index": sample, "reward": rewards.ravel()})
    best = frame.filter(~BestOfN().drops())["reward"].to_numpy()
    assert len(best) == len(rewards)
    assert np.mean(np.log(size * best ** (size - 1))) == pytest.approx(divergence, abs=0.02)
