"""The figures of a step, by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.algorithms import resolve
from pipeline.algorithms.tokens import Tokens, Totals
from pipeline.train.metrics import StepRecord
from pipeline.train.snapshot import TrainingCompletion

NAN = float("nan")
TOTALS = Totals(tokens=3, sequences=2)


def part(
    ratios: Sequence[Sequence[float]], advantage: Sequence[float], rewards: Sequence[float]
) -> tuple[Tokens, list[TrainingCompletion]]:
    """Sequences with log pi = -1 and these ratios; a ratio of NaN is a masked token whose log mu is -inf."""
    sizes = [len(row) for row in ratios]
    flat = torch.tensor([ratio for row in ratios for ratio in row], dtype=torch.float64)
    mask = ~flat.isnan()
    sequence = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    tokens = Tokens(
        logprobs=torch.full_like(flat, -1.0).requires_grad_(),
        entropy=torch.arange(len(flat), dtype=torch.float64),
        behavior=torch.where(mask, -1 - flat.log(), -math.inf),
        mask=mask,
        sequence=sequence,
        advantage=torch.tensor(advantage, dtype=torch.float64),
        weight=torch.ones(len(sizes), dtype=torch.float64),
        lengths=torch.zeros(len(sizes), dtype=torch.float64).index_add(0, sequence, mask.double()),
    )
    completions = [
        TrainingCompletion("g", n, np.zeros(len(row), np.int32), None, ~np.isnan(row), advantage=advantage[n], reward=rewards[n])
        for n, row in enumerate(ratios)
    ]
    return tokens, completions


def record(*parts: tuple[Tokens, list[TrainingCompletion]], has_behavior: bool = True) -> StepRecord:
    record = StepRecord(has_behavior)
    for tokens, completions in parts:
        record.add(tokens, resolve("rec-oneside-nois" if has_behavior else "reinforce").loss(tokens, TOTALS), completions)
    return record


def row_of(*parts: tuple[Tokens, list[TrainingCompletion]], has_behavior: bool = True) -> dict[str, Any]:
    completions = [completion for _, some in parts for completion in some]
    return record(*parts, has_behavior=has_behavior).row(1, completions)


FIRST = part([[2.0, 0.5]], [1.0], [1.0])
SECOND = part([[3.0, NAN]], [-1.0], [NAN])


def test_figures_by_hand() -> None:
    row = row_of(FIRST, SECOND)
    assert (row["groups"], row["completions"], row["tokens"]) == (1, 2, 3)
    # Ratio 2 has A > 0 and is stopped: -(.5's log pi) and +(3's) remain, 1 each, over 3 tokens.
    assert row["loss"] == pytest.approx((1 - 1) / 3)
    assert row["reward_mean"] == 1.0
    assert row["advantage_mean"] == 0.0
    assert row["completion_tokens_mean"] == 2.0
    assert row["entropy"] == pytest.approx((0 + 1 + 0) / 3)
    assert row["kl_behavior"] == pytest.approx(((2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2)) + (3 - 1 - math.log(3))) / 3)
    assert row["clip_fraction_positive"] == 0.5
    assert row["clip_fraction_negative"] == 0.0
    # Sequence ratios 2 x .5 = 1 and 3.
    assert row["ess"] == pytest.approx((1 + 3) ** 2 / (2 * (1 + 9)))


def test_quantiles_of_the_ratio() -> None:
    row = row_of(FIRST, SECOND)
    names = ("ratio_q01", "ratio_q10", "ratio_q50", "ratio_q90", "ratio_q99", "ratio_max")
    assert [row[name] for name in names] == pytest.approx([0.53, 0.8, 2.0, 2.8, 2.98, 3.0])


def test_figures_do_not_depend_on_the_micro_batches() -> None:
    together = part([[2.0, 0.5], [3.0, NAN]], [1.0, -1.0], [1.0, NAN])
    apart, whole = row_of(SECOND, FIRST), row_of(together)
    assert {**apart, "entropy": 0} == pytest.approx({**whole, "entropy": 0})


def test_without_behavior_logprobs_there_are_no_ratio_figures() -> None:
    tokens, completions = FIRST
    row = row_of((dataclasses.replace(tokens, behavior=None), completions), has_behavior=False)
    absent = {name for name, value in row.items() if value is None}
    assert absent == {
        "kl_behavior", "ess", "ratio_q01", "ratio_q10", "ratio_q50", "ratio_q90", "ratio_q99", "ratio_max",
        "clip_fraction_negative", "logprob_difference_mean", "logprob_difference_max",
    }  # fmt: skip


def test_shares_of_no_tokens_and_means_of_no_rewards_are_null() -> None:
    row = row_of(SECOND)
    assert row["clip_fraction_positive"] is None
    assert row["reward_mean"] is None


def test_ess_is_one_when_all_completions_count_the_same_and_one_nth_when_one_outweighs_all() -> None:
    assert row_of(part([[2.0], [2.0]], [1.0, 1.0], [0, 0]))["ess"] == pytest.approx(1.0)
    assert row_of(part([[1e6], [1e-6]], [1.0, 1.0], [0, 0]))["ess"] == pytest.approx(0.5)


def test_ess_of_long_completions_does_not_overflow() -> None:
    row = row_of(part([[math.exp(5)] * 400, [math.exp(-5)] * 400], [1.0, -1.0], [0, 0]))
    assert row["ess"] == pytest.approx(0.5)


def test_difference_to_the_stored_logprobs_is_over_tokens_that_count() -> None:
    found = record(FIRST, SECOND).logprob_difference()
    assert found == pytest.approx(((2 * math.log(2) + math.log(3)) / 3, math.log(3)))


def test_difference_to_the_stored_logprobs_is_over_what_the_parent_drew() -> None:
    tokens, completions = FIRST
    replayed = tokens, [dataclasses.replace(one, from_parent=False) for one in completions]
    assert record(replayed, SECOND).logprob_difference() == pytest.approx((math.log(3), math.log(3)))
    assert record(replayed).logprob_difference() is None


def test_age_is_counted_from_the_policy_that_training_started_from() -> None:
    tokens, (fresh,) = FIRST
    record = StepRecord(has_behavior=True, iteration=5)
    completions = [dataclasses.replace(fresh, policy_version=version) for version in (5, 5, 2)]
    for completion in completions:
        record.add(tokens, resolve("rec-oneside-nois").loss(tokens, TOTALS), [completion])
    row = record.row(1, completions)
    assert (row["age_mean"], row["age_max"]) == (1.0, 3)


def test_what_is_left_out_counts_as_data_and_not_in_figures_of_the_policy() -> None:
    dead = TrainingCompletion("g", 9, np.zeros(3, np.int32), None, np.ones(3, np.bool_), reward=0.0, live=False)
    _, completions = FIRST
    row, alone = record(FIRST).row(1, [*completions, dead]), row_of(FIRST)
    assert (row["completions"], row["computed"], row["left_out"], row["tokens"]) == (2, 1, 1, 5)
    assert (row["reward_mean"], row["advantage_mean"], row["completion_tokens_mean"]) == (0.5, 0.5, 2.5)
    names = ("loss", "entropy", "kl_behavior", "ratio_q50", "ess", "clip_fraction_positive")
    assert {name: row[name] for name in names} == {name: alone[name] for name in names}


def test_a_step_in_which_nothing_is_computed_has_no_figures_of_the_policy() -> None:
    dead = TrainingCompletion("g", 0, np.zeros(3, np.int32), None, np.ones(3, np.bool_), reward=0.0, live=False)
    nothing = StepRecord(has_behavior=True)
    row = nothing.row(1, [dead])
    assert (row["computed"], row["left_out"], row["tokens"], row["loss"]) == (0, 1, 3, 0.0)
    assert {name for name in ("entropy", "kl_behavior", "ess", "clip_fraction_positive") if row[name] is not None} == set()
    assert nothing.logprob_difference() is None
