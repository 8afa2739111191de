"""Identities between methods, on random inputs in fp64, of losses and of gradients.

They are numbered as in the list that the project was planned with. The rest of it: 6 (monotone bounds) is in
test_adaptive_bounds.py, 13 (packed and padded rows through a model) in test_whole_step.py, 15 (affine rewards) in
test_advantages.py, and 16 as flows of a bandit with published end points in test_bandit.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, note, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms import ALGORITHMS, Algorithm, resolve
from pipeline.algorithms.cells.aggregation import SequenceMean, SequenceSum, TokenMean
from pipeline.algorithms.cells.drift import Drift
from pipeline.algorithms.cells.importance import Ratio
from pipeline.algorithms.cells.mismatch import ProximalRatio
from pipeline.algorithms.cells.regularizers import EntropyBonus, ForwardKL, ReferenceKL, SquaredLogRatio, WeightedReferenceKL
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide, SecondMoment
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.algorithms.tokens import Tokens, Totals

MakeTokens = Callable[..., Tokens]
Step = dict[str, Any]
ROOT = Path(__file__).resolve().parents[3]
AGGREGATIONS = (TokenMean(), SequenceMean(), SequenceSum(divisor=3.0))
GRADIENTS = {name: algorithm for name, algorithm in ALGORITHMS.items() if isinstance(algorithm, PolicyGradient)}
REGULARIZERS = (
    SquaredLogRatio(),
    ReferenceKL(coefficient=0.3),
    WeightedReferenceKL(coefficient=0.3),
    EntropyBonus(coefficient=0.2),
    ForwardKL(),
)
EVERY = {**ALGORITHMS, "regularized": GRADIENTS["rec-oneside-is"].replace(regularizers=REGULARIZERS)}
REINFORCE, GRPO, IS = (GRADIENTS[name] for name in ("reinforce", "grpo", "rec-oneside-is"))
PAIRWISE = ("dpo", "ipo", "ipo-md", "slic")

log_ratios = st.floats(-3, 3).filter(lambda x: min(abs(math.exp(x) - bound) for bound in (0.8, 1.2)) > 1e-6)
"""Log ratios away from the edges of the trust region, where the surrogate has no derivative."""
advantage_values = st.sampled_from([-1.5, -0.25, 0.0, 0.5, 2.0])
identity = settings(deadline=None, max_examples=15)


@st.composite
def steps(draw: st.DrawFn, advantages: st.SearchStrategy[float] = advantage_values) -> Step:
    """Arguments of make_tokens for some sequences with arbitrary ratios, advantages, weights, groups, masks and pairs."""
    rows = draw(st.lists(st.lists(log_ratios, min_size=1, max_size=5), min_size=1, max_size=5))
    each_row = {"min_size": len(rows), "max_size": len(rows)}
    ends = list(itertools.permutations(range(len(rows)), 2))
    pairs = draw(st.lists(st.sampled_from(ends), max_size=4, unique=True)) if ends else []
    return {
        "logprobs": [[-4 + value for value in row] for row in rows],
        "behavior": [[-4.0] * len(row) for row in rows],
        "proximal": [[-4 + 0.3 * value for value in row] for row in rows],
        "reference": [[-3.5] * len(row) for row in rows],
        "advantage": draw(st.lists(advantages, **each_row)),
        "weight": draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), **each_row)),
        "mask": [draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row))) for row in rows],
        "entropy": [[0.3 + 0.1 * place for place in range(len(row))] for row in rows],
        "group": draw(st.lists(st.integers(0, 2), **each_row)),
        "age": draw(st.lists(st.sampled_from([0.0, 1.0, 3.0]), **each_row)),
        "pairs": [list(pair) for pair in pairs],
        "preference": [draw(st.sampled_from([0.5, 0.8, 1.0])) for _ in pairs],
    }


def totals_of(tokens: Tokens) -> Totals:
    return Totals(tokens=float(tokens.mask.sum()), sequences=float(len(tokens.advantage)))


def loss_and_gradient(algorithm: Algorithm, *parts: Tokens, of: Tokens | None = None) -> tuple[float, Tensor]:
    """Loss of a step given in parts, and its gradient in the logprobs and entropies of the whole."""
    whole = of or parts[0]
    loss = sum((algorithm.loss(part, totals_of(whole)).value for part in parts), torch.zeros((), dtype=torch.float64))
    inputs = [whole.logprobs, whole.entropy]
    if not loss.requires_grad:
        return loss.item(), torch.zeros(2 * len(whole.logprobs), dtype=torch.float64)
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)
    return loss.item(), torch.cat(gradients)


def assert_same(one: Algorithm, other: Algorithm, tokens: Tokens, *, scale: float = 1.0, values: bool = False) -> None:
    """Both pull alike: `one` and `scale` times the other. `values`: and have the same loss."""
    (loss, gradient), (other_loss, other_gradient) = (loss_and_gradient(algorithm, tokens) for algorithm in (one, other))
    torch.testing.assert_close(gradient, scale * other_gradient, rtol=1e-10, atol=1e-13)
    if values:
        assert loss == pytest.approx(scale * other_loss, rel=1e-10, abs=1e-12)


PER_TOKEN = ("logprobs", "entropy", "mask", "behavior", "proximal", "reference")
ROWS_OF_TOKENS = ("logprobs", "behavior", "proximal", "reference", "entropy")
PER_SEQUENCE = ("advantage", "weight", "lengths", "group", "number", "age")


def parts_of(tokens: Tokens, order: list[int], cuts: list[int]) -> list[Tokens]:
    """The sequences in another order, cut into parts that each number their own sequences; pairs where both ends are."""
    assert tokens.pairs is not None and tokens.preference is not None
    parts = []
    for start, stop in itertools.pairwise([0, *cuts, len(order)]):
        chosen = order[start:stop]
        places = [torch.nonzero(tokens.sequence == number)[:, 0] for number in chosen]
        values = {name: getattr(tokens, name)[torch.cat(places)] for name in PER_TOKEN}
        values |= {name: getattr(tokens, name)[chosen] for name in PER_SEQUENCE}
        here = [[end in chosen for end in pair].count(True) == 2 for pair in tokens.pairs.tolist()]
        ends = [[chosen.index(end) for end in pair] for pair, is_here in zip(tokens.pairs.tolist(), here, strict=True) if is_here]
        values["pairs"] = torch.tensor(ends, dtype=torch.int64).reshape(-1, 2)
        values["preference"] = tokens.preference[torch.tensor(here, dtype=torch.bool)]
        sequence = torch.cat([torch.full_like(place, number) for number, place in enumerate(places)])
        parts.append(Tokens(sequence=sequence, **values))
    return parts


@identity
@given(step=steps())
def test_01_score_form_has_the_gradient_of_the_clipped_surrogate(step: Step, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**step)
    for aggregation in AGGREGATIONS:
        assert_same(IS.replace(aggregation=aggregation), GRPO.replace(aggregation=aggregation), tokens)


@identity
@given(step=steps())
def test_02_where_the_policy_drew_the_data_all_methods_pull_alike(step: Step, make_tokens: MakeTokens) -> None:
    drawn = dict.fromkeys(("behavior", "proximal", "reference"), step["logprobs"])
    tokens = make_tokens(**{**step, **drawn})
    changed = {"spear": resolve("spear", {"upper": 1.0})}  # no token is left out
    for name in GRADIENTS.keys() - {"opg"}:  # weighs by the probability itself
        note(name)
        algorithm = changed.get(name, GRADIENTS[name])
        assert_same(algorithm.replace(aggregation=TokenMean()), REINFORCE, tokens)  # type: ignore[call-arg]


@identity
@given(step=steps(st.sampled_from([-1.0, 1.0])))
def test_03_topr_has_imitation_reinforce_and_importance_sampling_as_limits(step: Step, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**step)

    def topr(a_positive: float, b_positive: float, a_negative: float, b_negative: float) -> Algorithm:
        bounds = {"positive_low": a_positive, "positive_high": b_positive}
        return resolve("topr", {**bounds, "negative_low": a_negative, "negative_high": b_negative})

    solved = dataclasses.replace(tokens, weight=tokens.weight * (tokens.advantage > 0))
    imitation = loss_and_gradient(resolve("raft"), dataclasses.replace(solved, advantage=torch.ones_like(tokens.advantage)))
    torch.testing.assert_close(loss_and_gradient(topr(1, 1, 0, 0), tokens)[1], imitation[1], rtol=1e-12, atol=1e-15)
    by_completion = REINFORCE.replace(aggregation=SequenceMean())
    assert_same(topr(1, 1, 1, 1), by_completion, tokens)
    for high in (1.0, 1e9):
        weighed = by_completion.replace(importance=Ratio(level="sequence", positive_high=high, negative_high=high))
        assert_same(topr(0, high, 0, high), weighed, tokens)
    moved = tokens.per_sequence(tokens.logprobs - tokens.behavior)  # type: ignore[operator]
    value = -(tokens.weight * moved.exp() * tokens.advantage / tokens.lengths.clamp(min=1)).mean()
    (expected,) = torch.autograd.grad(value, tokens.logprobs)
    torch.testing.assert_close(loss_and_gradient(topr(0, 1e9, 0, 1e9), tokens)[1][: len(expected)], expected)


@identity
@given(step=steps(), tau=st.floats(0.01, 5))
def test_04_asymre_is_reinforce_with_a_pull_to_the_data(step: Step, tau: float, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**{**step, "weight": [1.0] * len(step["weight"])})
    lowered = dataclasses.replace(tokens, advantage=tokens.advantage + tau)  # the baseline less tau
    pulled = loss_and_gradient(REINFORCE.replace(regularizers=(ForwardKL(coefficient=tau),)), tokens)
    torch.testing.assert_close(loss_and_gradient(resolve("asymre"), lowered)[1], pulled[1], rtol=1e-11, atol=1e-14)
    assert_same(resolve("asymre"), REINFORCE, tokens, values=True)  # the shift is in the advantage
    far = dataclasses.replace(tokens, advantage=tokens.advantage + 1e9)
    imitation = dataclasses.replace(tokens, advantage=torch.ones_like(tokens.advantage))
    found, expected = (loss_and_gradient(resolve(name), part)[1] for name, part in (("asymre", far), ("sft", imitation)))
    torch.testing.assert_close(found / 1e9, expected, rtol=1e-8, atol=1e-15)


@identity
@given(step=steps(), low=st.floats(0.05, 0.9), high=st.floats(0.05, 2))
def test_05_methods_around_the_proximal_policy_are_ppo_where_it_drew_the_data(
    step: Step, low: float, high: float, make_tokens: MakeTokens
) -> None:
    ratios = [math.exp(value + 4) for row in step["logprobs"] for value in row]
    assume(all(min(abs(ratio - 1 + low), abs(ratio - 1 - high)) > 1e-9 for ratio in ratios))
    clip = {"trust_region.low": low, "trust_region.high": high}
    ppo = resolve("grpo", clip).replace(aggregation=TokenMean())
    tokens = make_tokens(**{**step, "proximal": step["behavior"]})
    assert_same(resolve("decoupled-ppo", clip), ppo, tokens, values=True)
    assert_same(resolve("remix", {**clip, "regularizers.0.coefficient": 0.0}), ppo, tokens)
    fresh = make_tokens(**{**step, "age": [1.0] * len(step["age"])})
    assert_same(resolve("a-3po", clip), ppo, fresh, values=True)


@identity
@given(step=steps())
def test_05_a_correction_for_the_mismatch_is_never_applied_twice(step: Step, make_tokens: MakeTokens) -> None:
    unclipped = IS.replace(trust_region=NoTrustRegion())
    assert_same(unclipped.replace(mismatch=ProximalRatio()), unclipped, make_tokens(**step))  # pi/prox x prox/mu = pi/mu
    nothing_to_correct = make_tokens(**{**step, "proximal": step["behavior"]})
    for name in GRADIENTS.keys() - {"a-3po", "remix"}:
        note(name)
        corrected = resolve(name, {"mismatch": "MaskedImportance"})
        assert_same(corrected, GRADIENTS[name], nothing_to_correct, values=True)


@identity
@given(step=steps(), low=st.floats(0.05, 0.9), high=st.floats(0.05, 2), target=st.floats(0, 1))
def test_06_bapo_with_bounds_that_cannot_move_is_the_fixed_clip(
    step: Step, low: float, high: float, target: float, make_tokens: MakeTokens
) -> None:
    bounds = {"low_start": 1 - low, "low_end": 1 - low, "high_start": 1 + high, "high_end": 1 + high, "target": target}
    fixed = GRADIENTS["bapo"].replace(trust_region=OneSide(low=low, high=high))
    assert_same(resolve("bapo", bounds), fixed, make_tokens(**step), values=True)


@identity
@given(step=steps(), slack=st.floats(1.001, 10))
def test_07_m2po_leaves_a_step_alone_that_fits_its_budget_or_is_harmless(
    step: Step, slack: float, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(**step)
    assert tokens.behavior is not None
    moved = (tokens.logprobs - tokens.behavior).detach()
    harmful = (moved * tokens.per_token(tokens.advantage) > 0) & tokens.mask
    unclipped = GRADIENTS["m2po"].replace(trust_region=NoTrustRegion())
    moment = float((moved[harmful] ** 2).mean()) if harmful.any() else 0.0
    assert_same(resolve("m2po", {"budget": slack * moment}), unclipped, tokens, values=True)
    against = dataclasses.replace(
        tokens, behavior=tokens.logprobs.detach() + moved.abs() * tokens.per_token(tokens.advantage).sign()
    )
    assert_same(resolve("m2po", {"budget": 1e-9}), unclipped, against, values=True)
    drift = Drift(measured=moved, advantage=tokens.per_token(tokens.advantage), tokens=tokens)
    assert SecondMoment(budget=slack * moment).keeps(drift).all()


@identity
@given(step=steps(), tau=st.floats(0.01, 5))
def test_08_opmd_is_reinforce_without_tau_and_at_the_data(step: Step, tau: float, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**{**step, "weight": [1.0] * len(step["weight"])})
    at_data = dataclasses.replace(tokens, behavior=tokens.logprobs.detach())
    for name in ("opmd", "opmd-pairwise"):
        reinforce = REINFORCE.replace(aggregation=resolve(name).aggregation)  # type: ignore[attr-defined]
        assert_same(resolve(name, {"coefficient": 0.0}), reinforce, tokens, values=True)
        assert_same(resolve(name, {"coefficient": tau / 2}), reinforce, at_data)
    squares = ((tokens.advantage - tau * tokens.per_sequence(tokens.logprobs - tokens.behavior)) ** 2).mean()  # type: ignore[operator]
    (expected,) = torch.autograd.grad(squares / (2 * tau), tokens.logprobs, retain_graph=True)
    kimi = resolve("opmd", {"coefficient": tau / 2, "level": "sequence"}).replace(aggregation=SequenceSum())
    torch.testing.assert_close(loss_and_gradient(kimi, tokens)[1][: len(expected)], expected, rtol=1e-10, atol=1e-12)


@identity
@given(step=steps())
def test_09_luffys_shaping_is_importance_sampling_of_an_expert_that_is_certain_or_nothing(
    step: Step, make_tokens: MakeTokens
) -> None:
    # gamma p / (p + gamma)^2: gamma times it tends to p, the ratio to a policy that gives the token probability 1; and to 0.
    tokens = make_tokens(**{**step, "behavior": [[0.0] * len(row) for row in step["behavior"]]})
    luffy, files = resolve("luffy", files=[str(ROOT / "examples/own_cell.py")]), [str(ROOT / "examples/own_cell.py")]
    sampled = REINFORCE.replace(importance=Ratio(), aggregation=luffy.aggregation)  # type: ignore[attr-defined]
    wide, narrow = (loss_and_gradient(resolve("luffy", {"gamma": gamma}, files), tokens)[1] for gamma in (1e9, 1e-12))
    torch.testing.assert_close(1e9 * wide, loss_and_gradient(sampled, tokens)[1], rtol=1e-8, atol=1e-12)
    assert float(narrow.abs().max()) < 1e-11


@identity
@given(step=steps(), data=st.data())
def test_10_soft_labels_mix_hard_ones_and_do_not_see_which_end_is_named_first(
    step: Step, data: st.DataObject, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(**step)
    assert tokens.pairs is not None and tokens.preference is not None
    chosen = dataclasses.replace(tokens, preference=torch.ones_like(tokens.preference))
    rejected = dataclasses.replace(tokens, preference=torch.zeros_like(tokens.preference))
    p = data.draw(st.floats(0, 1))
    mixed = dataclasses.replace(tokens, preference=torch.full_like(tokens.preference, p))
    swapped = dataclasses.replace(mixed, pairs=tokens.pairs.flip(1), preference=1 - mixed.preference)
    for name in PAIRWISE:
        algorithm = resolve(name)
        parts = [loss_and_gradient(algorithm, part) for part in (mixed, chosen, rejected, swapped)]
        assert parts[0][0] == pytest.approx(p * parts[1][0] + (1 - p) * parts[2][0], rel=1e-11, abs=1e-12)
        torch.testing.assert_close(parts[0][1], p * parts[1][1] + (1 - p) * parts[2][1], rtol=1e-10, atol=1e-12)
        assert parts[3][0] == pytest.approx(parts[0][0], rel=1e-12)
        torch.testing.assert_close(parts[3][1], parts[0][1], rtol=1e-10, atol=1e-12)


@identity
@given(margin=st.floats(-5, 5), p=st.floats(0, 1), tau=st.floats(0.05, 5), beta=st.floats(0.01, 2))
def test_11_slopes_of_preference_losses_at_their_points_of_rest(
    margin: float, p: float, tau: float, beta: float, make_tokens: MakeTokens
) -> None:
    def slope(name: str, h: float, preference: float = 1.0, **changes: float) -> float:
        tokens = make_tokens([[-1.0 + h], [-1.0]], [1.0, -1.0], reference=[[-1.0]] * 2, pairs=[[0, 1]], preference=[preference])
        return loss_and_gradient(resolve(name, changes), tokens)[1][0].item()

    assert slope("dpo", 0.0, beta=beta) == pytest.approx(-beta / 2)
    assert slope("ipo", 1 / (2 * tau), tau=tau) == pytest.approx(0, abs=1e-9)
    for name in ("ipo", "ipo-md"):
        assert slope(name, (2 * p - 1) / (2 * tau), p, tau=tau) == pytest.approx(0, abs=1e-9)
        assert slope(name, margin, 0.5, tau=tau) * margin >= 0  # a tie pulls the margin to 0
    at_reference = make_tokens([[-1.0]] * 3, [1.0, -1.0, -1.0], reference=[[-1.0]] * 3)
    balanced = resolve("kto", {"beta": beta, "desirable": 2.0})  # w_D n_D = w_U n_U
    assert loss_and_gradient(balanced, at_reference)[1].sum().item() == pytest.approx(0, abs=1e-12)


@identity
@given(step=steps(), scale=st.floats(0.1, 5))
def test_12_opa_dpo_without_its_anchor_is_dpo_and_spear_without_its_parts_is_ppo(
    step: Step, scale: float, make_tokens: MakeTokens
) -> None:
    tokens = make_tokens(**{**step, "proximal": step["reference"]})
    bare = {"anchors.0.coefficient": 0.0}
    assert_same(resolve("opa-dpo", {**bare, "beta": 0.1}), resolve("dpo"), tokens, values=True)
    assert_same(resolve("opa-dpo", {**bare, "beta": 0.1 * scale}), resolve("dpo", {"beta": 0.1 * scale}), tokens, values=True)
    clipped = IS.replace(aggregation=resolve("spear").aggregation)  # type: ignore[attr-defined]
    assert_same(resolve("spear", {"lower": 2.0, "upper": 2.0}), clipped, tokens, values=True)


@identity
@given(step=steps(), data=st.data())
def test_13_order_and_micro_batches_change_neither_loss_nor_gradient(
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


@identity
@given(step=steps(), filler=st.sampled_from([-math.inf, 0.0, -50.0]))
def test_13_masked_tokens_carry_nothing_whatever_they_hold(make_tokens: MakeTokens, step: Step, filler: float) -> None:
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


@identity
@given(step=steps(), data=st.data())
def test_13_what_a_tool_writes_between_drawn_tokens_changes_nothing(
    make_tokens: MakeTokens, step: Step, data: st.DataObject
) -> None:
    """Tokens that nobody drew are put anywhere, as many as one likes: every drawn token's share of the loss stays what it was."""
    drawn = {**step, "mask": [[True] * len(row) for row in step["logprobs"]]}
    more = {name: [list(row) for row in drawn[name]] for name in (*ROWS_OF_TOKENS, "mask")}
    places = [list(range(len(row))) for row in drawn["logprobs"]]
    for row in range(len(places)):
        for _ in range(data.draw(st.integers(0, 3))):
            place = data.draw(st.integers(0, len(places[row])))
            for name in ROWS_OF_TOKENS:
                more[name][row].insert(place, data.draw(st.sampled_from([-9.0, -0.5, 0.0])))
            more["mask"][row].insert(place, False)
            places[row].insert(place, -1)
    tokens, longer = make_tokens(**drawn), make_tokens(**{**drawn, **more})
    was_drawn = longer.mask
    for name, algorithm in EVERY.items():
        note(name)
        loss, gradient = loss_and_gradient(algorithm, longer)
        expected_loss, expected = loss_and_gradient(algorithm, tokens)
        assert loss == pytest.approx(expected_loss, rel=1e-11, abs=1e-13)
        torch.testing.assert_close(gradient.view(2, -1)[:, was_drawn], expected.view(2, -1), rtol=1e-11, atol=1e-13)
        assert not gradient.view(2, -1)[:, ~was_drawn].any()


@identity
@given(step=steps())
def test_credits_that_are_all_their_completions_advantage_are_its_advantage(make_tokens: MakeTokens, step: Step) -> None:
    tokens = make_tokens(**step)
    spread = dataclasses.replace(tokens, credit=tokens.per_token(tokens.advantage), advantage=torch.zeros_like(tokens.advantage))
    for name, algorithm in GRADIENTS.items():
        note(name)
        loss, gradient = loss_and_gradient(algorithm, spread)
        expected_loss, expected = loss_and_gradient(algorithm, tokens)
        assert loss == expected_loss
        assert torch.equal(gradient, expected)


@identity
@given(step=steps(), divisor=st.floats(0.5, 2000))
def test_14_aggregations_are_the_means_that_they_are_named_for(step: Step, divisor: float, make_tokens: MakeTokens) -> None:
    tokens = make_tokens(**step)
    loss = (tokens.per_token(tokens.advantage) * tokens.logprobs).where(tokens.mask, torch.zeros((), dtype=torch.float64))
    kept = [loss[(tokens.sequence == number) & tokens.mask] for number in range(len(tokens.advantage))]
    count = max(sum(map(len, kept)), 1)
    expected = {
        TokenMean(): torch.cat(kept).sum() / count,
        SequenceMean(): torch.stack([row.sum() / max(len(row), 1) for row in kept]).mean(),
        SequenceSum(divisor=divisor): torch.stack([row.sum() for row in kept]).mean() / divisor,
    }
    for aggregation, value in expected.items():
        found = aggregation.total(loss, tokens, totals_of(tokens))
        assert found.item() == pytest.approx(value.item(), rel=1e-12, abs=1e-14)
        slopes = [torch.autograd.grad(one, tokens.logprobs, retain_graph=True)[0] for one in (found, value)]
        torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-15)


arms = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 8).map(lambda n: n / 8)), min_size=2, max_size=5)


@identity
@given(arms=arms, beta=st.floats(0.2, 3), tau=st.floats(0.2, 3))
def test_16_methods_rest_where_their_theory_says(
    arms: list[tuple[int, float]], beta: float, tau: float, make_tokens: MakeTokens
) -> None:
    counts, rewards = (torch.tensor(values, dtype=torch.float64) for values in zip(*arms, strict=True))
    mu, drawn = counts / counts.sum(), torch.repeat_interleave(torch.arange(len(arms)), counts.long())

    def slope_in_logits(algorithm: Algorithm, policy: Tensor, advantage: Tensor) -> float:
        logprobs, behavior = (values.log()[drawn][:, None].tolist() for values in (policy, mu))
        tokens = make_tokens(logprobs, advantage[drawn].tolist(), behavior=behavior)
        by_token = loss_and_gradient(algorithm, tokens)[1][: len(drawn)]
        by_arm = torch.zeros_like(mu).index_add(0, drawn, by_token)
        return float((by_arm - policy * by_arm.sum()).abs().max())

    value = beta * (mu * (rewards / beta).exp()).sum().log()
    gibbs = mu * (rewards / beta).exp() / (mu * (rewards / beta).exp()).sum()
    assert slope_in_logits(resolve("oapl", {"target.beta": beta}), gibbs, rewards - value) < 1e-9
    tempered = mu * (rewards / tau).exp() / (mu * (rewards / tau).exp()).sum()
    mean = (mu * rewards).sum()
    assert slope_in_logits(resolve("opmd-pairwise", {"coefficient": tau / 2}), tempered, rewards - mean) < 1e-9
    assert slope_in_logits(resolve("sft"), mu, torch.ones_like(mu)) < 1e-12
    solved = rewards >= 0.5
    if solved.any() and not solved.all():  # negatives are almost gone
        rest = torch.where(solved, mu, 1e-12 * mu)
        assert slope_in_logits(resolve("topr"), rest / rest.sum(), torch.where(solved, 1.0, -1.0).double()) < 1e-8
