"""Where rewarded answers stood: counted by hand on a few rows, and shown in the report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from pipeline.config.reward import RewardConfig
from pipeline.look.report.page import render
from pipeline.look.report.places import place_panels, place_rewards, places_column
from pipeline.run.state import Run
from pipeline.store import Artifact, Request, Store
from schemas import Remarks, Rollouts

READ = "reward_math_verify"
ROWS: list[tuple[float | None, str | None]] = [
    (1.0, "box: 18"),
    (1.0, "box"),
    (0.5, "tag: 4"),
    (1.0, "number: 18"),
    (0.0, "none"),
    (None, "whole: 3"),
    (1.0, None),
    (1.0, "the last of 2 matches"),
]
"""Reward and remark of each completion: the last three are not counted."""


@pytest.fixture
def remarked(store: Store, run: Run) -> Callable[..., Artifact]:
    """remarked(rows): rollouts with these rewards and remarks of math_verify."""
    given = run.iterations[0].answers
    assert given is not None and given.rollouts is not None
    parts = given.rollouts.tables("rollouts")

    def make(rows: list[tuple[float | None, str | None]]) -> Artifact:
        frame = pl.concat(pl.read_parquet(part) for part in parts).head(len(rows))
        status = ["ok" if reward is not None else "reward_error" for reward, _ in rows]
        error = [None if reward is not None else "failed" for reward, _ in rows]
        rewards = pl.Series("reward", [reward for reward, _ in rows], dtype=pl.Float64)
        frame = frame.with_columns(
            rewards, rewards.alias("reward_exact_match"), pl.Series("status", status), pl.Series("error", error, dtype=pl.String)
        )
        told = frame.select("group_id", "sample_index").with_columns(
            component=pl.lit(READ), text=pl.Series([text for _, text in rows], dtype=pl.String)
        )
        other = told.head(1).with_columns(component=pl.lit("reward_judge"), text=pl.lit("number: 1"))
        with store.work(Request("rollouts", "generate/1", {"rows": repr(rows)})) as work:
            work.write_table("part-00000.parquet", frame, Rollouts)
            work.write_table("remarks-00000.parquet", pl.concat([told.drop_nulls(), other]), Remarks)
            return work.finish({"completions": len(frame), "tokens": 1, "groups": 2})

    return make


def test_reward_is_counted_by_the_place_of_its_answer(remarked: Callable[..., Artifact]) -> None:
    found = place_rewards(remarked(ROWS), READ)
    assert found.means == {"box": 1.0, "tag": 0.5, "number": 1.0, "none": 0.0}
    assert found.shares == {
        "box": pytest.approx(2 / 3.5),
        "tag": pytest.approx(0.5 / 3.5),
        "number": pytest.approx(1 / 3.5),
        "none": 0,
    }
    assert found.unmarked == pytest.approx(1 / 3.5)


def test_without_any_reward_there_are_no_shares(remarked: Callable[..., Artifact]) -> None:
    found = place_rewards(remarked([(0.0, "box: 1"), (-1.0, "none")]), READ)
    assert (found.means, found.shares, found.unmarked) == ({"box": 0.0, "none": -1.0}, {}, None)


def test_only_a_grader_that_reads_one_answer_says_where() -> None:
    def column(*components: dict[str, Any]) -> str | None:
        return places_column(RewardConfig.model_validate({"components": components}))

    assert column({"grader": "exact_match"}) is None
    assert column({"grader": "math_verify", "args": {"reading": "library"}}) is None
    assert column({"grader": "exact_match"}, {"grader": "math_verify", "name": "maths"}) == "reward_maths"


def test_the_report_shows_where_the_reward_came_from(make_run: Callable[..., Run], remarked: Callable[..., Artifact]) -> None:
    run = make_run(reward={"components": [{"grader": "math_verify"}]}, iterations=2)
    assert place_panels(run) == []  # nothing is remarked
    rows = (ROWS, [*ROWS, (1.0, "whole: 18")])
    for step, told in zip(run.iterations, rows, strict=False):
        assert step.answers is not None
        step.answers = replace(step.answers, rollouts=remarked(told))
    shares, means = place_panels(run)
    assert [key.label for key in shares.keys] == ["box", "tag", "whole", "number"]
    assert "brought 28.6 % of it at first, 44.4 % at last" in shares.caption
    assert [key.label for key in means.keys] == ["box", "tag", "whole", "number", "none"]
    assert "Where the reward came from" in render(run)
