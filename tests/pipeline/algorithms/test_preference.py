"""DPO, IPO, SLiC and KTO (reference: oracles, section I; identities 10 and 11)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.advantages import Signed
from pipeline.algorithms.preference import Hinge, Logistic, Preference, SquaredMargin
from pipeline.algorithms.tokens import Tokens

MakeTokens = Callable[..., Tokens]
Pull = Callable[[Algorithm, Tokens], tuple[float, Tensor]]
PAIRWISE = ("dpo", "ipo", "slic")


def pair(make_tokens: MakeTokens, margin: float, preference: float = 1.0) -> Tokens:
    """A chosen completion of two tokens and a rejected one of a single token, with h = margin."""
    reference = [[-1.0, -2.0], [-0.5]]
    logprobs = [[-1.0 + margin, -1.9], [-0.4]]
    return make_tokens(logprobs, [1.0, -1.0], reference=reference, pairs=[[0, 1]], preference=[preference])


def labelled(make_tokens: MakeTokens, *deltas: float, good: list[bool], **columns: Any) -> Tokens:
    advantage = [1.0 if one else -1.0 for one in good]
    return make_tokens([[-1.0 + delta] for delta in deltas], advantage, reference=[[-1.0]] * len(deltas), **columns)


@pytest.mark.parametrize(
    ("name", "loss", "slope"),
    [("dpo", 0.668460, -0.048750), ("ipo", 20.25, 2 * (0.5 - 5)), ("slic", 0.95, -0.1)],
)
def test_pairwise_losses_by_hand(name: str, loss: float, slope: float, make_tokens: MakeTokens, pull: Pull) -> None:
    found, gradient = pull(resolve(name), pair(make_tokens, margin=0.5))
    assert found == pytest.approx(loss, abs=5e-7)
    assert gradient.tolist() == pytest.approx([slope, slope, -slope], abs=5e-6)


def test_slopes_at_no_margin(make_tokens: MakeTokens, pull: Pull) -> None:
    at_zero = pair(make_tokens, margin=0.0)
    assert pull(resolve("dpo", {"beta": 0.3}), at_zero)[1].tolist() == pytest.approx([-0.15, -0.15, 0.15])
    assert pull(resolve("slic", {"beta": 0.3}), at_zero)[1].tolist() == pytest.approx([-0.3, -0.3, 0.3])
    assert pull(resolve("ipo", {"tau": 0.3}), at_zero)[1].tolist() == pytest.approx([-1 / 0.3, -1 / 0.3, 1 / 0.3])


def test_ipo_rests_at_its_margin_and_pulls_back_beyond(make_tokens: MakeTokens, pull: Pull) -> None:
    ipo = resolve("ipo", {"tau": 0.25})
    loss, gradient = pull(ipo, pair(make_tokens, margin=2.0))
    assert [loss, *gradient.tolist()] == pytest.approx([0, 0, 0, 0], abs=1e-12)
    assert pull(ipo, pair(make_tokens, margin=2.5))[1][0].item() > 0


def test_slic_rests_beyond_its_margin(make_tokens: MakeTokens, pull: Pull) -> None:
    loss, gradient = pull(resolve("slic"), pair(make_tokens, margin=10.1))
    assert (loss, gradient.tolist()) == (0, [0, 0, 0])


@pytest.mark.parametrize(("margin", "preference"), [(0.0, 0.5), (0.2 / 0.1, 0.7), (-0.2 / 0.1, 0.3)])
def test_ipo_with_a_soft_label_rests_at_its_share_of_the_margin(
    margin: float, preference: float, make_tokens: MakeTokens, pull: Pull
) -> None:
    # h* = (2 p - 1) / (2 tau); the policy on two answers is then sigmoid(h*) = .8808 at p = .7.
    gradient = pull(resolve("ipo", {"tau": 0.1}), pair(make_tokens, margin, preference))[1]
    assert gradient.tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert 1 / (1 + math.exp(-0.2 / 0.1)) == pytest.approx(0.8808, abs=5e-5)


def test_ipo_on_all_pairs_of_the_data_rests_where_it_should(make_tokens: MakeTokens, pull: Pull) -> None:
    # Three answers that beat one another in a circle, 5 times out of 9; the data hold 6, 3 and 1 of them. The policy at rest
    # is ref x exp(mean over the data of p / tau), though no answer is better than the others.
    wins = torch.tensor([[0.5, 5 / 9, 4 / 9], [4 / 9, 0.5, 5 / 9], [5 / 9, 4 / 9, 0.5]], dtype=torch.float64)
    answers = [0] * 6 + [1] * 3 + [2]
    rest = (wins @ torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64) / 0.1).softmax(0)
    assert rest.tolist() == pytest.approx([0.3656, 0.2478, 0.3865], abs=5e-5)
    pairs = [[i, j] for i in range(10) for j in range(10)]
    tokens = make_tokens(
        [[rest[answer].log().item()] for answer in answers],
        [0.0] * 10,
        reference=[[-math.log(3)]] * 10,
        pairs=pairs,
        preference=[wins[answers[i], answers[j]].item() for i, j in pairs],
    )
    gradient = pull(resolve("ipo", {"tau": 0.1}), tokens)[1]
    assert gradient.tolist() == pytest.approx([0] * 10, abs=1e-12)


@pytest.mark.parametrize("name", PAIRWISE)
def test_a_label_of_one_is_a_hard_label_and_others_are_mixtures(name: str, make_tokens: MakeTokens, pull: Pull) -> None:
    cell = {"dpo": Logistic(), "ipo": SquaredMargin(), "slic": Hinge()}[name]
    one, other = (cell.loss(torch.tensor(margin)).item() for margin in (0.8, -0.8))
    assert pull(resolve(name), pair(make_tokens, 0.8))[0] == pytest.approx(one)
    assert pull(resolve(name), pair(make_tokens, 0.8, 0.7))[0] == pytest.approx(0.7 * one + 0.3 * other)


def test_margins_may_be_means_over_tokens(make_tokens: MakeTokens, pull: Pull) -> None:
    # Delta is (.5 + .1) / 2 of the chosen, whose third token does not count, and .1 of the rejected.
    tokens = make_tokens(
        [[-0.5, -1.9, -9.0], [-0.4]],
        [1.0, -1.0],
        reference=[[-1.0, -2.0, -math.inf], [-0.5]],
        mask=[[True, True, False], [True]],
        pairs=[[0, 1]],
    )
    assert pull(resolve("ipo", {"length_normalized": True}), tokens)[0] == pytest.approx((0.2 - 5) ** 2)
    assert pull(resolve("ipo"), tokens)[0] == pytest.approx((0.5 - 5) ** 2)


@pytest.mark.parametrize("name", PAIRWISE)
def test_the_loss_is_the_mean_over_pairs_in_any_order(name: str, make_tokens: MakeTokens, pull: Pull) -> None:
    logprobs, reference = [[-1.0, -0.5], [-2.0], [-0.3], [-1.5]], [[-1.1, -0.9], [-1.0], [-0.5], [-1.2]]
    pairs, preference = [[0, 1], [2, 3], [0, 3]], [1.0, 0.8, 0.6]
    tokens = make_tokens(logprobs, [0.0] * 4, reference=reference, pairs=pairs, preference=preference)
    alone = [
        pull(resolve(name), make_tokens(logprobs, [0.0] * 4, reference=reference, pairs=[ends], preference=[p]))
        for ends, p in zip(pairs, preference, strict=True)
    ]
    loss, gradient = pull(resolve(name), tokens)
    assert loss == pytest.approx(sum(one[0] for one in alone) / 3)
    torch.testing.assert_close(gradient, torch.stack([one[1] for one in alone]).mean(0))
    order = [3, 1, 0, 2]  # where each completion goes
    place = {old: new for new, old in enumerate(order)}
    permuted = make_tokens(
        [logprobs[i] for i in order],
        [0.0] * 4,
        reference=[reference[i] for i in order],
        pairs=[[place[a], place[b]] for a, b in pairs[::-1]],
        preference=preference[::-1],
    )
    assert pull(resolve(name), permuted)[0] == pytest.approx(loss)


def test_a_step_without_pairs_has_no_loss(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = make_tokens([[-1.0]], [0.0], pairs=[])
    for name in PAIRWISE:
        loss, gradient = pull(resolve(name), tokens)
        assert (loss, gradient.tolist()) == (0, [0])


@pytest.mark.parametrize(("tau", "rest", "share"), [(1.0, 0.2, 0.5498), (0.1, 2.0, 0.8808)])
@pytest.mark.parametrize("counts", [(1, 1), (19, 7)])
def test_ipo_md_of_two_answers_rests_at_its_margin_whatever_mixture_drew_them(
    tau: float, rest: float, share: float, counts: tuple[int, int], make_tokens: MakeTokens, pull: Pull
) -> None:
    # p = .7: h* = .2/tau. At tau = .1, 19 and 7 of 26 are drawn by the mixture of beta = .5: .7311.
    answers = [0] * counts[0] + [1] * counts[1]
    policy = [1 / (1 + math.exp(-rest)), 1 / (1 + math.exp(rest))]
    assert policy[0] == pytest.approx(share, abs=5e-5)
    pairs = [[i, j] for i in range(len(answers)) for j in range(len(answers)) if i != j]
    wins = {(0, 1): 0.7, (1, 0): 0.3, (0, 0): 0.5, (1, 1): 0.5}
    tokens = make_tokens(
        [[math.log(policy[answer])] for answer in answers],
        [0.0] * len(answers),
        reference=[[math.log(0.5)]] * len(answers),
        pairs=pairs,
        preference=[wins[answers[i], answers[j]] for i, j in pairs],
    )
    assert pull(resolve("ipo-md", {"tau": tau}), tokens)[1].tolist() == pytest.approx([0] * len(answers), abs=1e-12)


def test_ipo_md_on_its_own_answers_to_a_circle_of_preferences_rests_where_they_are_equal(
    make_tokens: MakeTokens, pull: Pull
) -> None:
    wins = [[0.5, 5 / 9, 4 / 9], [4 / 9, 0.5, 5 / 9], [5 / 9, 4 / 9, 0.5]]
    pairs = [[i, j] for i in range(3) for j in range(3) if i != j]
    columns = {"reference": [[-math.log(3)]] * 3, "pairs": pairs, "preference": [wins[i][j] for i, j in pairs]}
    tokens = make_tokens([[-math.log(3)]] * 3, [0.0] * 3, **columns)
    assert pull(resolve("ipo-md", {"tau": 0.1}), tokens)[1].tolist() == pytest.approx([0] * 3, abs=1e-12)


def test_ipo_md_takes_all_pairs_with_soft_labels_and_ties() -> None:
    algorithm = resolve("ipo-md")
    assert isinstance(algorithm, Preference)
    rows = pl.DataFrame({"group_id": ["g"] * 3, "sample_index": [0, 1, 2], "reward": [1.0, 0.0, 1.0]})
    pairs = algorithm.pairing.pairs(rows.with_columns(pl.col("sample_index").cast(pl.Int32)))
    found = pairs.select("chosen_index", "rejected_index", "preference", "margin").rows()
    likely = pytest.approx(1 / (1 + math.exp(-1)))
    assert found == [(0, 1, likely, 1.0), (2, 1, likely, 1.0), (0, 2, 0.5, 0.0)]
    without = algorithm.replace(pairing=dataclasses.replace(algorithm.pairing, ties=False)).pairing.pairs(rows)
    assert len(without) == 2


def test_opa_dpo_by_hand(make_tokens: MakeTokens, pull: Pull) -> None:
    # h = .5 and Delta(chosen) = .6; the reference is the policy at the start, not the base model.
    tokens = pair(make_tokens, margin=0.5)
    tokens = dataclasses.replace(tokens, proximal=tokens.reference, reference=None)
    loss, gradient = pull(resolve("opa-dpo"), tokens)
    assert loss == pytest.approx(0.668460 + math.log1p(math.exp(-0.06)), abs=5e-7)
    anchor = -0.1 / (1 + math.exp(0.06))
    assert gradient.tolist() == pytest.approx([-0.048750 + anchor, -0.048750 + anchor, 0.048750], abs=5e-6)
    shifted = resolve("opa-dpo", {"offset": 1.0, "slope": 0.2, "anchors.0.coefficient": 0.5})
    expected = 0.668460 + 0.5 * math.log1p(math.exp(-0.12 + 1.0))
    assert pull(shifted, tokens)[0] == pytest.approx(expected, abs=5e-7)


def test_tokens_of_a_revision_weigh_in_the_margin_and_in_the_anchor(make_tokens: MakeTokens, pull: Pull) -> None:
    # Delta of the chosen is 2 x .5 + .1, that of the rejected .1: h = 1. Weights of k make beta k times it.
    tokens = pair(make_tokens, margin=0.5)
    tokens = dataclasses.replace(tokens, proximal=tokens.reference, reference=None)
    weighed = dataclasses.replace(tokens, token_weight=torch.tensor([2.0, 1.0, 1.0], dtype=tokens.logprobs.dtype))
    expected = math.log1p(math.exp(-0.1 * 1.0)) + math.log1p(math.exp(-0.1 * 1.1))
    assert pull(resolve("opa-dpo"), weighed)[0] == pytest.approx(expected)
    ones = dataclasses.replace(tokens, token_weight=torch.ones(3, dtype=tokens.logprobs.dtype))
    assert pull(resolve("opa-dpo"), ones)[0] == pull(resolve("opa-dpo"), tokens)[0]
    alike = dataclasses.replace(tokens, token_weight=torch.full((3,), 2.5, dtype=tokens.logprobs.dtype))
    bare = {"anchors.0.coefficient": 0.0}
    assert pull(resolve("opa-dpo", bare), alike)[0] == pytest.approx(pull(resolve("opa-dpo", {**bare, "beta": 0.25}), tokens)[0])
    against_base = dataclasses.replace(weighed, reference=tokens.proximal)
    assert pull(resolve("dpo"), against_base)[0] == pytest.approx(0.668460, abs=5e-7)  # DPO itself reads no weights


def test_any_method_on_pairs_may_be_anchored(make_tokens: MakeTokens, pull: Pull) -> None:
    anchored = pull(resolve("slic", {"anchors.0.coefficient": 1.0}), pair(make_tokens, margin=0.5))[0]
    assert anchored == pytest.approx(0.95 + math.log1p(math.exp(-0.06)))


def test_kto_by_hand(make_tokens: MakeTokens, pull: Pull) -> None:
    # z0 = (.5 - .1) / 2 = .2: 1 - sigmoid(.1 (.5 - .2)), and 1 - sigmoid(.1 (.2 + .3)) where Delta = -.3 and z0 is the same.
    good = pull(resolve("kto"), labelled(make_tokens, 0.5, -0.1, good=[True, True], weight=[1.0, 0.0]))[0]
    assert 2 * good == pytest.approx(0.492501, abs=5e-7)
    bad = pull(resolve("kto"), labelled(make_tokens, -0.3, 0.7, good=[False, True], weight=[1.0, 0.0]))[0]
    assert 2 * bad == pytest.approx(0.487503, abs=5e-7)


def test_the_reference_point_of_kto_is_never_negative_and_may_be_zero(make_tokens: MakeTokens, pull: Pull) -> None:
    low = labelled(make_tokens, -0.5, -0.1, good=[True, False])
    zero = resolve("kto", {"reference_point": "zero"})
    assert pull(resolve("kto"), low)[0] == pull(zero, low)[0]
    high = labelled(make_tokens, 5.0, 1.0, good=[True, False])
    expected = (1 - 1 / (1 + math.exp(-0.5)) + 1 - 1 / (1 + math.exp(0.1))) / 2
    assert pull(zero, high)[0] == pytest.approx(expected)
    assert pull(resolve("kto"), high)[0] != pytest.approx(expected, abs=1e-3)


def test_the_reference_point_is_a_constant_of_the_gradient(make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = labelled(make_tokens, 0.6, -0.2, good=[True, True])  # z0 = .2
    shares = [1 / (1 + math.exp(-0.1 * x)) for x in (0.4, -0.4)]
    expected = [-0.1 * share * (1 - share) / 2 for share in shares]
    assert pull(resolve("kto"), tokens)[1].tolist() == pytest.approx(expected)


def test_kto_weighs_good_and_bad_apart(make_tokens: MakeTokens, pull: Pull) -> None:
    at_reference = labelled(make_tokens, 0.0, 0.0, 0.0, good=[True, False, False])
    assert pull(resolve("kto"), at_reference)[0] == pytest.approx(0.5)
    kto = resolve("kto", {"desirable": 4.0, "undesirable": 0.5})
    assert (12 * pull(kto, at_reference)[1]).tolist() == pytest.approx([-0.4, 0.05, 0.05])
    balanced = resolve("kto", {"desirable": 2.0})  # w_D n_D = w_U n_U
    assert pull(balanced, at_reference)[1].sum().item() == pytest.approx(0)


def test_kto_takes_its_labels_from_whether_a_completion_is_solved() -> None:
    assert resolve("kto").advantage == Signed()
    assert not hasattr(resolve("kto"), "pairing")


def test_opa_dpo_needs_the_policy_at_the_start_and_no_other_reference() -> None:
    assert resolve("opa-dpo").needs == ("proximal_logprobs",)
    assert resolve("opa-dpo").whole_step


@pytest.mark.parametrize("name", [*PAIRWISE, "ipo-md", "kto"])
def test_preferences_need_a_reference_and_all_of_the_step(name: str) -> None:
    assert resolve(name).needs == ("reference_logprobs",)
    assert resolve(name).whole_step
