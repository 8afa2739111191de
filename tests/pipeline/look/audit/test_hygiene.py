"""Figures of hygiene, on rows worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from pipeline.look.audit.audit import audit
from pipeline.look.audit.hygiene import prompts_figures, question_keys, rollouts_figures, training_figures

HELD: Any = SimpleNamespace(name="rollouts/x")


def rollouts(**columns: list[Any]) -> dict[str, Any]:
    rows = len(columns["reward"])
    filled = {"status": ["ok"] * rows, "text": list(range(rows)), "tokens": list(range(rows)), "whole": [True] * rows, **columns}
    return {figure.name: figure for figure in rollouts_figures(HELD, pl.DataFrame(filled))}


def test_groups_with_equal_rewards_cuts_failures_and_copies_are_counted() -> None:
    figures = rollouts(
        group_id=["a", "a", "b", "b", "c"],
        reward=[1.0, 1.0, 0.0, 1.0, 0.5],
        status=["ok", "truncated", "truncated", "reward_error", "ok"],
        text=[7, 7, 1, 2, 3],
    )
    assert figures["share of groups whose rewards are all equal"].value == 0.5
    assert figures["share of completions cut at max_tokens"].value == 0.4
    assert figures["share of completions that failed"].value == 0.2
    assert figures["share of completions that repeat one of their group"].value == pytest.approx(0.2)
    assert figures["share of completions cut at max_tokens"].beyond


def test_a_reward_that_follows_length_is_beyond_its_limit() -> None:
    figure = rollouts(group_id=["a"] * 3, reward=[1.0, 2.0, 3.0], tokens=[10, 20, 30])["correlation of reward and length"]
    assert figure.value == pytest.approx(1.0) and figure.beyond
    flat = rollouts(group_id=["a"] * 3, reward=[1.0, 1.0, 1.0], tokens=[10, 20, 30])["correlation of reward and length"]
    assert flat.value is None and not flat.beyond


def test_questions_repeat_by_text_and_by_normalized_text() -> None:
    questions = pl.DataFrame({"question": ["What is 1+2?", "what  is\t1+2", "What is 12?", "What is 1+2?"]})
    figures = [figure.value for figure in prompts_figures(HELD, questions.select(**question_keys()))]
    assert figures == [0.25, 0.5]


def test_a_small_sample_size_in_the_last_epoch_is_beyond_its_limit() -> None:
    rows = pl.DataFrame(
        {
            "epoch": [0, 1, 1],
            "ess": [0.9, 0.02, 0.04],
            "ratio_q01": [1.0, None, 0.5],
            "ratio_q99": [1.0] * 3,
            "entropy": [1.0] * 3,
        }
    )
    figures = {figure.name: figure for figure in training_figures(HELD, rows)}
    size = figures["effective sample size, mean of the last epoch"]
    assert size.value is not None and math.isclose(size.value, 0.03) and size.beyond
    assert figures["1 % quantile of the ratio"].value == 0.5


def test_a_question_that_is_trained_on_and_judged_by_is_a_warning(copied) -> None:
    """Across artifacts: "W8  w11?" is, but for its writing, a training question asked of the held-out set."""
    heldout = next(p for p in sorted((copied.store / "prompts").iterdir()) if '"disjoint_from"' in manifest(p))
    question = pl.when(pl.int_range(pl.len()) == 2).then(pl.lit("W0  w3?")).otherwise(pl.col("question"))
    copied.rewrite(heldout, "prompts.parquet", question=question)
    relink(copied, heldout)
    shared = [f for f in audit(copied.store).findings if f.area == "hygiene" and f.severity == "warning"]
    assert [(f.row, f.found) for f in shared] == [(2, "0.2")]
    assert "normalized" in shared[0].expected


def manifest(path: Path) -> str:
    return (path / "manifest.json").read_text("utf-8")


def relink(copied: Any, changed: Path) -> None:
    """Have what was made from an artifact name its new id."""
    import json

    new = json.loads(manifest(changed))["id"]
    for path in sorted(copied.store.glob("rollouts/*")):

        def renamed(content: dict[str, Any]) -> None:
            for parent in content["parents"]:
                if parent["role"] == "prompts" and content["recipe"]["purpose"] != "train":
                    parent["id"] = new

        old = json.loads(manifest(path))["id"]
        copied.remake(path, renamed)
        now = json.loads(manifest(path))["id"]
        for evaluation in copied.store.glob("evaluation/*"):

            def followed(content: dict[str, Any], old: str = old, now: str = now) -> None:
                for parent in content["parents"]:
                    parent["id"] = now if parent["id"] == old else parent["id"]

            copied.remake(evaluation, followed)
