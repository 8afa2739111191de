"""Online IPO, IPO-MD and Nash-MD, step after step on what the policy, or its mixture with the reference, draws by lot.

A model of two or three tokens whose completions are one token. Where they come to rest is known: the Nash policy of the game that
the preferences and the distance to the reference make (arXiv:2403.08635, propositions 4.1 and 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.tokens import Tokens
from pipeline.generate.mixture.logits import mixed_logits

Pull = Callable[[Algorithm, Tokens], tuple[float, Tensor]]
TAU, STEPS, DRAWS = 0.1, 600, 64
BETTER = [[0.5, 0.7], [0.3, 0.5]]
CIRCLE = [[0.5, 5 / 9, 4 / 9], [4 / 9, 0.5, 5 / 9], [5 / 9, 4 / 9, 0.5]]


def rest(wins: list[list[float]], start: list[float], share: float, make_tokens: Callable[..., Tokens], pull: Pull) -> Tensor:
    """The policy's probabilities, averaged over the last half of the steps. The reference is uniform.

    Args:
        share: beta of the mixture that draws: 0 is online IPO.
    """
    draw, ipo_md = torch.Generator().manual_seed(0), resolve("ipo-md", {"tau": TAU})
    logits, uniform = torch.tensor(start, dtype=torch.float64).log(), torch.zeros(1, len(start))
    mean = torch.zeros_like(logits)
    for step in range(STEPS):
        policy = logits.softmax(0)
        drawn_by = mixed_logits(logits[None], uniform, share)[0].softmax(0)
        answers = torch.multinomial(drawn_by, DRAWS, replacement=True, generator=draw).tolist()
        pairs = [[number, number + 1] for number in range(0, DRAWS, 2)]
        tokens = make_tokens(
            [[math.log(policy[answer])] for answer in answers],
            [0.0] * DRAWS,
            reference=[[-math.log(len(start))]] * DRAWS,
            pairs=pairs,
            preference=[wins[answers[i]][answers[j]] for i, j in pairs],
        )
        by_token = torch.zeros_like(logits).index_add(0, torch.tensor(answers), pull(ipo_md, tokens)[1].double())
        logits = logits - 0.1 * (by_token - policy * by_token.sum())  # through log softmax
        mean += logits.softmax(0) * (step >= STEPS // 2) / (STEPS // 2)
    return mean


def rest_of_nash_md(
    wins: list[list[float]], start: list[float], share: float, make_tokens: Callable[..., Tokens], pull: Pull, cap: float = 10.0
) -> Tensor:
    """As `rest`, by the policy gradient: every answer plays against all others of its step, which the mixture drew too."""
    draw, nash_md = torch.Generator().manual_seed(0), resolve("nash-md", {"tau": TAU, "cap": cap})
    logits, uniform = torch.tensor(start, dtype=torch.float64).log(), torch.zeros(1, len(start))
    table, mean = torch.tensor(wins, dtype=torch.float64), torch.zeros_like(logits)
    for step in range(STEPS):
        policy = logits.softmax(0)
        drawn_by = mixed_logits(logits[None], uniform, share)[0].softmax(0)
        answers = torch.multinomial(drawn_by, DRAWS, replacement=True, generator=draw)
        rates = (table[answers][:, answers].sum(1) - 0.5) / (DRAWS - 1)
        tokens = make_tokens(
            [[math.log(policy[answer])] for answer in answers],
            (rates - 0.5).tolist(),
            behavior=[[math.log(drawn_by[answer])] for answer in answers],
            reference=[[-math.log(len(start))]] * DRAWS,
        )
        by_token = torch.zeros_like(logits).index_add(0, answers, pull(nash_md, tokens)[1].double())
        logits = logits - 2.0 * (by_token - policy * by_token.sum())
        mean += logits.softmax(0) * (step >= STEPS // 2) / (STEPS // 2)
    return mean


@pytest.mark.parametrize("share", [0.0, 0.125, 0.5], ids=["self-play", "Nash-MD", "Nash-MD, half of the reference"])
def test_nash_md_comes_to_rest_where_ipo_md_does(share: float, make_tokens: Any, pull: Pull) -> None:
    """Of two answers sigmoid(.2 / tau) = .8808, and in the circle the game's Nash policy, which gives them equally often."""
    assert rest_of_nash_md(BETTER, [0.3, 0.7], share, make_tokens, pull)[0].item() == pytest.approx(0.8808, abs=0.01)
    found = rest_of_nash_md(CIRCLE, [0.6, 0.3, 0.1], share, make_tokens, pull)
    assert found.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_a_cap_that_cuts_everything_plays_for_the_mixture_and_not_for_the_policy(make_tokens: Any, pull: Pull) -> None:
    """With one w for all the gradient is that of completions of pi', whose rest is another one."""
    found = rest_of_nash_md(BETTER, [0.3, 0.7], 0.5, make_tokens, pull, cap=1e-3)
    assert abs(found[0].item() - 0.8808) > 0.001


@pytest.mark.parametrize("share", [0.0, 0.125, 0.5], ids=["online IPO", "IPO-MD", "IPO-MD, half of the reference"])
def test_of_two_answers_the_better_one_is_given_as_often_as_its_margin_says(share: float, make_tokens: Any, pull: Pull) -> None:
    """h* = .2 / tau = 2 and pi = sigmoid(2), whatever draws; the mixture with half of the reference is sigmoid(1)."""
    found = rest(BETTER, [0.3, 0.7], share, make_tokens, pull)
    assert found[0].item() == pytest.approx(0.8808, abs=1e-3)
    mixed = mixed_logits(found.log()[None], torch.zeros(1, 2), 0.5)[0].softmax(0)
    assert mixed[0].item() == pytest.approx(0.7311, abs=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5], ids=["online IPO", "IPO-MD"])
def test_answers_that_beat_one_another_in_a_circle_are_given_equally_often(share: float, make_tokens: Any, pull: Pull) -> None:
    """On a snapshot of (.6, .3, .1) the rest is (.366, .248, .387); drawn anew in every step it is the game's Nash policy."""
    found = rest(CIRCLE, [0.6, 0.3, 0.1], share, make_tokens, pull)
    assert found.tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
