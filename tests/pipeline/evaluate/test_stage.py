"""The evaluate stage, on graded completions on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_request
from pipeline.evaluate.stage import evaluate, summarize
from pipeline.run.process import Reporter
from pipeline.store import Artifact, Request, Store, Work, read_table
from pipeline.store.store import load_artifact
from schemas import Evaluation, Rollouts

Rewards = dict[str, list[float | None]]
Run = Callable[..., Artifact]
SAMPLED: Rewards = {"p": [1.0, 0.0, 0.0, None], "q": [1.0, 1.0, 1.0, 0.5], "r": [0.0, 0.0, 0.0, 0.0]}
GREEDY: Rewards = {"r": [0.0], "q": [1.0], "p": [None]}


def rollouts_of(store: Store, purpose: str, rewards: Rewards) -> Artifact:
    rows = [
        {
            **dict.fromkeys(Rollouts.columns()),
            "group_id": prompt,
            "sample_index": sample,
            "prompt_id": prompt,
            "prompt_token_ids": [1],
            "completion_token_ids": [2] * (sample + 1),
            "prompt_text": "",
            "completion_text": "",
            "policy_id": "base",
            "policy_version": 0,
            "source": "self",
            "logprobs_mode": "processed_logprobs",
            "engine": "none",
            "status": "reward_error" if reward is None else "ok",
            "reward": reward,
            "error": "no grade" if reward is None else None,
            "reward_exact_match": None if reward is None else 1 - reward,
        }
        for prompt, all_rewards in rewards.items()
        for sample, reward in enumerate(all_rewards)
    ]
    types = {name: column.dtype for name, column in Rollouts.columns().items()} | {"reward_exact_match": pl.Float64}
    with store.work(Request("rollouts", "generate/1", {"purpose": purpose, "rewards": rewards})) as work:
        assert isinstance(work, Work)
        work.write_table("part-00000.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        return work.finish({})


@pytest.fixture
def run(store: Store, make_config: Callable[..., RunConfig], make_artifact: Callable[..., Artifact]) -> Run:
    """run(sampled, greedy, **settings): the evaluation artifact."""
    policy = make_artifact("checkpoint")

    def make(sampled: Rewards = SAMPLED, greedy: Rewards | None = GREEDY, **settings: Any) -> Artifact:
        config = make_config({"evaluate": {"samples": 4, "k": [1, 2, 4], **settings}})
        answers = rollouts_of(store, "sampled", sampled)
        best = rollouts_of(store, "greedy", greedy) if greedy else None
        spec = {
            "store": str(store.root),
            "request": evaluate_request(config, policy, answers, best).to_json(),
            "sampled": str(answers.path),
            "greedy": str(best.path) if best else None,
            "trust_remote_code": False,
        }
        return load_artifact(evaluate(spec, Reporter(os.open(os.devnull, os.O_WRONLY)))["artifact"])

    return make


def test_figures_by_hand(run: Run) -> None:
    summary = run().summary
    # p: 1 of 4 solved, q: 3 of 4 (.5 is below the threshold), r: none.
    assert summary["pass_at"]["1"]["value"] == pytest.approx((1 / 4 + 3 / 4 + 0) / 3)
    assert summary["pass_at"]["2"]["value"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert summary["pass_at"]["4"]["value"] == pytest.approx((1 + 1 + 0) / 3)
    assert summary["greedy"]["value"] == pytest.approx(1 / 3)
    assert summary["reward_mean"] == pytest.approx((1 + 3.5 + 0) / 11)
    assert summary["completion_tokens_mean"] == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert (summary["prompts"], summary["samples"], summary["failed"]) == (3, 4, 2)


def test_every_figure_lies_in_its_interval(run: Run) -> None:
    summary = run().summary
    for figure in (*summary["pass_at"].values(), summary["greedy"]):
        assert 0 <= figure["low"] <= figure["value"] <= figure["high"] <= 1


def test_a_completion_that_could_not_be_graded_counts_as_unsolved(run: Run) -> None:
    table = read_table(run(), Evaluation)
    failed = table.filter(status="reward_error")
    assert failed.select("prompt_id", "mode", "reward", "solved").rows() == [
        ("p", "sampled", None, False),
        ("p", "greedy", None, False),
    ]


def test_what_counts_as_solved_is_a_setting(run: Run) -> None:
    assert run(solved_at=0.5).summary["pass_at"]["1"]["value"] == pytest.approx((1 / 4 + 1 + 0) / 3)


def test_a_component_may_say_what_is_solved(run: Run) -> None:
    """Its score is 1 less the reward here, so what was unsolved is solved; rewards stay the total's."""
    evaluation = run(solved_by="exact_match")
    assert evaluation.summary["pass_at"]["1"]["value"] == pytest.approx((2 / 4 + 0 + 1) / 3)
    assert evaluation.summary["reward_mean"] == pytest.approx((1 + 3.5 + 0) / 11)
    assert evaluation.recipe["solved_by"] == "exact_match"


def test_greedy_answers_are_not_needed(run: Run) -> None:
    evaluation = run(greedy=None)
    assert evaluation.summary["greedy"] is None
    assert read_table(evaluation, Evaluation)["mode"].unique().to_list() == ["sampled"]


def test_there_is_a_row_for_every_answer(run: Run) -> None:
    evaluation = run()
    evaluation.verify()
    assert len(read_table(evaluation, Evaluation)) == 12 + 3
    assert [parent.role for parent in evaluation.manifest.content.parents] == ["policy", "sampled", "greedy"]


def test_nothing_graded_has_no_mean_reward(run: Run) -> None:
    summary = run(sampled={"p": [None] * 4}, greedy=None).summary
    assert summary["reward_mean"] is None
    assert summary["pass_at"]["4"]["value"] == 0
    assert summary["failed"] == 4


def test_the_order_of_rows_does_not_change_a_figure(run: Run) -> None:
    evaluation = run()
    table = read_table(evaluation, Evaluation)
    assert summarize(table.sample(fraction=1, shuffle=True, seed=3), evaluation.recipe) == evaluation.summary
