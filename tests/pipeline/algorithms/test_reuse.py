"""ReMix, SPEAR and density weighting (reference: oracles, sections F and G; identities 5 and 12)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.algorithms import Algorithm, resolve
from pipeline.algorithms.cells.advantages import SelfImitation
from pipeline.algorithms.cells.covariance import CovarianceClip, covariance
from pipeline.algorithms.cells.density import DENSITY, DensityWeight, mean_logprob
from pipeline.algorithms.cells.drift import Drift
from pipeline.algorithms.cells.regularizers import ConvexKL
from pipeline.algorithms.cells.trust_region import CenteredBand, OneSide
from pipeline.algorithms.tokens import Tokens
from pipeline.common.errors import UserError

MakeTokens = Callable[..., Tokens]
Pull = Callable[[Algorithm, Tokens], tuple[float, Tensor]]
POLICY_LOSS = {"regularizers.0.coefficient": 0.0}
"""ReMix without its KL."""


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_remix_clips_around_what_the_policy_was(advantage: float, make_tokens: MakeTokens, pull: Pull) -> None:
    # r = 1.4918 and c = 1.3499: inside [1.1499, 1.5499], though far outside [.8, 1.2].
    tokens = make_tokens([[-1.0]], [advantage], proximal=[[-1.1]], behavior=[[-1.4]])
    assert pull(resolve("remix", POLICY_LOSS), tokens)[1].tolist() == pytest.approx([-1.4918 * advantage], abs=5e-5)
    decoupled = pull(resolve("decoupled-ppo"), tokens)[1]
    torch.testing.assert_close(pull(resolve("remix", POLICY_LOSS), tokens)[1], decoupled)


@pytest.mark.parametrize(
    ("advantage", "ratio", "kept"),
    [(1.0, 1.54, True), (1.0, 1.56, False), (1.0, 0.1, True), (-1.0, 1.14, False), (-1.0, 1.16, True), (-1.0, 9.0, True)],
)
def test_the_band_of_remix(advantage: float, ratio: float, kept: bool, make_tokens: MakeTokens, pull: Pull) -> None:
    tokens = make_tokens([[-1.4 + math.log(ratio)]], [advantage], proximal=[[-1.1]], behavior=[[-1.4]])
    gradient = pull(resolve("remix", POLICY_LOSS), tokens)[1]
    assert gradient.tolist() == pytest.approx([-ratio * advantage if kept else 0.0])


def test_a_band_that_reaches_below_zero_stops_no_negative(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-9.0]], [-1.0], proximal=[[-3.0]], behavior=[[-1.0]])  # c = .135
    drift = Drift(measured=torch.tensor([-8.0], dtype=torch.float64), advantage=tokens.advantage, tokens=tokens)
    assert CenteredBand().keeps(drift).tolist() == [True]


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2), st.sampled_from([-1.0, 0.0, 2.0])), min_size=1, max_size=8),
    width=st.floats(0.05, 0.9),
)
def test_the_band_is_a_clip_around_the_proximal_policy_divided_by_the_center(
    rows: list[tuple[float, float, float]], width: float, make_tokens: MakeTokens
) -> None:
    for moved, stale, advantage in rows:
        if min(abs(math.exp(moved + stale) - math.exp(stale) - side * width) for side in (-1, 1)) < 1e-9:
            continue
        one = make_tokens([[-4.0 + moved + stale]], [advantage], proximal=[[-4.0 + stale]], behavior=[[-4.0]])
        by_data, by_policy = (
            Drift(measured=torch.tensor([value], dtype=torch.float64), advantage=one.advantage, tokens=one)
            for value in (moved + stale, moved)
        )
        clip = OneSide(low=width / math.exp(stale), high=width / math.exp(stale))
        assert CenteredBand(low=width, high=width).keeps(by_data).equal(clip.keeps(by_policy))


@pytest.mark.parametrize(
    ("step", "share"),
    [(0, 1.0), (50, 1.0), (51, 0.9), (60, 0.9), (61, 0.8), (70, 0.8), (71, 0.7), (80, 0.7), (81, 0.6), (90, 0.6), (91, 0.5)],
)
def test_remix_goes_from_the_base_model_to_the_policy_before(step: int, share: float, make_tokens: MakeTokens) -> None:
    assert ConvexKL(step=step).share == pytest.approx(share)
    assert ConvexKL(step=200).share == 0.5
    # k3 at (pi, ref) = (.5, .4) is .0231; at (.5, .5) it is 0.
    tokens = make_tokens([[math.log(0.5)]], [0.0], reference=[[math.log(0.4)]], proximal=[[math.log(0.5)]])
    term = ConvexKL(coefficient=2.0, step=step).term(tokens, torch.zeros(1))
    assert term.item() == pytest.approx(2 * share * 0.0231, abs=2e-4)


def test_remix_says_what_it_needs_and_does_not_correct_twice() -> None:
    assert set(resolve("remix").needs) == {"behavior_logprobs", "reference_logprobs", "proximal_logprobs"}
    assert set(resolve("remix", POLICY_LOSS).needs) == {"behavior_logprobs", "proximal_logprobs"}
    with pytest.raises(UserError, match="would correct for it twice"):
        resolve("remix", {"mismatch": "TruncatedImportance"})


@pytest.mark.parametrize(("step", "gamma"), [(0, 0.0), (75, 0.1464), (150, 0.5), (300, 1.0), (400, 1.0)])
def test_spear_imitates_more_as_it_goes(step: int, gamma: float) -> None:
    assert SelfImitation(step=step, warm_up=300).gamma == pytest.approx(gamma, abs=5e-5)


@pytest.mark.parametrize(("step", "expected"), [(300, [1.1, -0.2, 0.15]), (0, [0.6, -0.2, 0.05])])
def test_spear_adds_what_is_above_the_median_to_what_is_above_its_group(step: int, expected: list[float]) -> None:
    # r - P50 = (.5, -.1, .1); the second is below its group too.
    frame = pl.DataFrame({"reward": [1.0, 0.4, 0.6], "advantage": [0.6, -0.2, 0.05]})
    final = SelfImitation(step=step).finish(pl.col("advantage"), 0.0, 1.0, median=0.5)
    assert frame.select(final).to_series().to_list() == pytest.approx(expected)
    high = SelfImitation().finish(pl.col("advantage"), 0.0, 1.0, median=2.0)
    assert frame.select(high).to_series().to_list() == pytest.approx([0.6, -0.2, 0.05])


@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(-1, 1)), min_size=1, max_size=6),
    step=st.sampled_from([0, 75, 300]),
)
def test_one_advantage_has_the_gradient_of_both_of_spears_losses(
    rows: list[tuple[float, float, float]], step: int, make_tokens: MakeTokens, pull: Pull
) -> None:
    moved, advantages, above = (list(column) for column in zip(*rows, strict=True))
    gamma = SelfImitation(step=step).gamma
    both = [a + gamma * b if a > 0 and b > 0 else a for a, b in zip(advantages, above, strict=True)]
    tokens = make_tokens([[-2.0 + value] for value in moved], both, behavior=[[-2.0]] * len(rows))
    ratio = (tokens.logprobs + 2.0).exp()

    def clipped(advantage: Tensor) -> Tensor:
        return torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()

    grpo, imitation = (torch.tensor(values, dtype=torch.float64) for values in (advantages, above))
    imitation = imitation * ((grpo > 0) & (imitation > 0))
    (expected,) = torch.autograd.grad(-(clipped(grpo) + gamma * clipped(imitation)), tokens.logprobs, retain_graph=True)
    found = pull(resolve("spear", {"divisor": 1.0, "upper": 1.0}), tokens)[1]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)


def drift_at(tokens: Tokens) -> Drift:
    return Drift(measured=torch.zeros_like(tokens.logprobs), advantage=tokens.per_token(tokens.advantage), tokens=tokens)


@pytest.fixture
def settling(make_tokens: MakeTokens) -> Tokens:
    """Likely and good, unlikely and good, likely and bad, unlikely and bad."""
    return make_tokens([[-0.1], [-2.0], [-0.1], [-2.0]], [1.0, 1.0, -1.0, -1.0])


def test_covariance_of_tokens_by_hand(settling: Tokens) -> None:
    assert covariance(drift_at(settling)).tolist() == pytest.approx([0.95, -0.95, -0.95, 0.95])


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"share": 0.25}, 1),
        ({"share": 0.0}, 1),
        ({"share": 0.5}, 2),
        ({"share": 1.0}, 2),
        ({"lower": 0.96}, 0),
        ({"upper": 0.9}, 0),
    ],
)
def test_a_share_of_the_tokens_between_the_bounds_is_left_out(
    settings: dict[str, float], left_out: int, settling: Tokens
) -> None:
    keeps = CovarianceClip(**{"lower": 0.5, **settings}).keeps(drift_at(settling)).tolist()
    assert keeps.count(False) == left_out
    assert keeps[1] and keeps[2]


def test_which_token_is_left_out_is_a_matter_of_chance_that_its_completion_decides(settling: Tokens) -> None:
    random = torch.Generator().manual_seed(0)
    cell, first = CovarianceClip(lower=0.5), 0
    for _ in range(200):
        numbered = dataclasses.replace(settling, number=torch.randint(0, 2**32, (4,), generator=random))
        keeps = cell.keeps(drift_at(numbered)).tolist()
        assert keeps == cell.keeps(drift_at(numbered)).tolist()
        first += not keeps[0]
    assert 70 < first < 130


def test_places_of_one_completion_have_draws_of_their_own(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-0.1] * 50, [-2.0] * 50], [1.0, -1.0])
    keeps = CovarianceClip(lower=0.5, share=0.2).keeps(drift_at(tokens))
    assert int((~keeps).sum()) == 20
    assert 0 < int((~keeps[:50]).sum()) < 20


def test_spear_stops_what_ppo_stops_and_does_not_count_it_again(make_tokens: MakeTokens) -> None:
    tokens = make_tokens([[-0.1], [-0.1], [-2.0]], [1.0, 1.0, -1.0], behavior=[[-1.0], [-0.1], [-2.0]])
    drift = Drift(measured=tokens.logprobs.detach() - tokens.behavior, advantage=tokens.advantage, tokens=tokens)  # type: ignore[operator]
    assert CovarianceClip(lower=0.4, upper=1.0).keeps(drift).tolist() == [False, False, True]
    assert CovarianceClip(lower=5.0).keeps(drift).tolist() == [False, True, True]


def weights(cell: DensityWeight, *groups: list[float]) -> list[float]:
    rows = [(f"g{n}", value) for n, values in enumerate(groups) for value in values]
    frame = pl.DataFrame(rows, schema={"group_id": pl.String, DENSITY: pl.Float64}, orient="row")
    return frame.select(cell.weight(pl.lit(0.0))).to_series().to_list()


def test_completions_less_likely_than_their_groups_median_fade() -> None:
    expected = [math.exp(-0.3), 1.0, 1.0, math.exp(-0.2)]  # the median is -.7
    assert weights(DensityWeight(), [-1.0, -0.5, -0.2, -0.9]) == pytest.approx(expected)
    assert weights(DensityWeight(eta=2.0), [-1.0, -0.5, -0.2, -0.9]) == pytest.approx([value**2 for value in expected])
    assert weights(DensityWeight(eta=0.0), [-1.0, -0.5, -0.2, -0.9]) == [1.0] * 4
    shifted = [[-1.0, -0.5, -0.2, -0.9], [-4.0, -3.5, -3.2, -3.9], [-2.0]]
    assert weights(DensityWeight(), *shifted) == pytest.approx([*expected, *expected, 1.0])


def test_the_density_of_a_completion_is_over_the_tokens_it_drew() -> None:
    rows = [
        {"behavior_logprobs": [-1.0, -2.0, -3.0], "action_mask": None},
        {"behavior_logprobs": [-1.0, -77.0, -3.0], "action_mask": [True, False, True]},
        {"behavior_logprobs": None, "action_mask": [True]},
        {"behavior_logprobs": [-1.0], "action_mask": [False]},
    ]
    schema = {"behavior_logprobs": pl.List(pl.Float32), "action_mask": pl.List(pl.Boolean)}
    found = pl.DataFrame(rows, schema=schema).select(mean_logprob()).to_series().to_list()
    assert found == [-2.0, -2.0, None, None]


def test_density_weighting_is_reinforce_but_for_its_weights() -> None:
    density, reinforce = resolve("density-reinforce"), resolve("reinforce")
    assert density.recipe() == reinforce.recipe()
    assert density.needs == density.shaping_needs == ("behavior_logprobs",)
