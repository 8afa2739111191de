"""Training on several rollouts artifacts at once, on a tiny random model."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import UserError
from pipeline.run.parts import Part
from pipeline.run.process import Reporter
from pipeline.store import Artifact, read_table
from schemas import Metrics

Rows = list[dict[str, Any]]


class Noting(Reporter):
    """Keeps what it is told, and ends the training when it reports a step."""

    def __init__(self, end_at: int | None = None) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.notes: list[str] = []
        self.end_at = end_at

    def note(self, message: str) -> None:
        self.notes.append(message)

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        if done == self.end_at:
            raise KeyboardInterrupt


def by_another(rows: Rows, version: int = 0) -> Rows:
    """The same completions as if another policy had drawn them: their logprobs are not the trainer's."""
    return [
        {
            **row,
            "policy_id": "another",
            "policy_version": version,
            "behavior_logprobs": [min(logprob - 1.0, 0.0) for logprob in row["behavior_logprobs"]],
        }
        for row in rows
    ]


@pytest.fixture
def replaying(bench: Any, rows: Rows) -> dict[str, Any]:
    """Four fresh groups and four replayed ones."""
    old = bench.rollouts(by_another(rows[12:]))
    return {"rollouts": bench.rollouts(rows[:12]), "replayed": [Part(old, bench.shaped(old))]}


def test_one_training_takes_fresh_and_replayed_groups_in_each_epoch(bench: Any, replaying: dict[str, Any]) -> None:
    reporter = Noting()
    checkpoint = bench.train(reporter, **replaying)
    metrics = read_table(checkpoint, Metrics)
    assert metrics.group_by("epoch").agg(pl.col("groups").sum())["groups"].to_list() == [8, 8, 8]
    assert [parent.role for parent in checkpoint.manifest.content.parents][3:] == ["replay 1 rollouts", "replay 1 shaped"]
    assert checkpoint.summary["completions"] == 24
    # The replayed logprobs are off by a whole nat; only the fresh ones are compared.
    assert metrics["logprob_difference_mean"][0] < 1e-4
    assert reporter.notes == []


def test_the_age_of_each_step_is_recorded(bench: Any, rows: Rows) -> None:
    """Training makes version 1, so the fresh rows of version 0 have age 0; the replayed ones claim to be of the future."""
    old = bench.rollouts(by_another(rows[12:], version=2))
    metrics = read_table(bench.train(rollouts=bench.rollouts(rows[:12]), replayed=[Part(old, bench.shaped(old))]), Metrics)
    of_all = (metrics["age_mean"] * metrics["completions"]).sum() / metrics["completions"].sum()
    assert of_all == pytest.approx(-1.0)
    assert set(metrics["age_max"]) <= {0, -2}


def test_stored_logprobs_are_compared_even_if_the_first_step_has_none_of_the_parents(bench: Any, rows: Rows) -> None:
    old = bench.rollouts(by_another(rows[3:], version=1))
    given = {"replayed": [Part(old, bench.shaped(old))], "batch_completions": 3}
    fresh = bench.rollouts(rows[:3], files=1)
    for seed in range(20):  # the order of groups is drawn: one in which the first step is not one of the parent's
        metrics = read_table(bench.train(rollouts=fresh, seed=seed, **given), Metrics)
        if metrics["age_max"][0] == -1:
            break
    assert metrics["age_max"][0] == -1
    assert metrics["logprob_difference_mean"][0] < 1e-4
    wrong = [{**row, "behavior_logprobs": [logprob - 1.0 for logprob in row["behavior_logprobs"]]} for row in rows[:3]]
    with pytest.raises(UserError, match="differ from the stored ones by"):
        bench.train(rollouts=bench.rollouts(wrong, files=1), **given)


def test_rollouts_of_other_policies_alone_are_trained_on_with_a_note(bench: Any, rows: Rows) -> None:
    reporter = Noting()
    checkpoint = bench.train(reporter, rollouts=bench.rollouts(by_another(rows)))
    assert any("no completion is by the policy that training starts from" in note for note in reporter.notes)
    assert checkpoint.summary["logprob_difference_mean"] is None


def test_a_training_with_replay_that_was_killed_ends_with_the_same_bytes(
    bench: Any, replaying: dict[str, Any], train_spec: Callable[..., Artifact], tmp_path: Any
) -> None:
    spec = bench.spec(**replaying)
    whole = train_spec({**spec, "store": str(tmp_path / "elsewhere")})
    for end_at in (1, 3, 5):
        with pytest.raises(KeyboardInterrupt):
            train_spec(spec, Noting(end_at))
    again = train_spec(spec)
    assert again.id == whole.id


def test_a_weight_of_replayed_completions_scales_their_part_of_the_gradient(bench: Any, rows: Rows) -> None:
    fresh, old = bench.rollouts(rows[:12]), bench.rollouts(by_another(rows[12:]))
    silent = Part(old, bench.shaped(old, weight=pl.lit(0.0)))
    settings = {"epochs": 1, "batch_completions": 24, "algorithm": "reinforce", "max_grad_norm": 1e9}
    weighed = read_table(bench.train(rollouts=fresh, replayed=[silent], **settings), Metrics)
    alone = read_table(bench.train(rollouts=fresh, **settings), Metrics)
    # The mean is over all tokens of the step, the silent ones included.
    tokens = weighed["tokens"][0] / alone["tokens"][0]
    assert weighed["grad_norm"][0] * tokens == pytest.approx(alone["grad_norm"][0], rel=1e-4)
