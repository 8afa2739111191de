"""The reward of completions that came with metrics: the first, or those that --rewards names, and never a made up 0."""

from __future__ import annotations

import pytest

from pipeline.exchange.imports.format import Options
from pipeline.exchange.imports.formats.lm_eval_samples import LmEval

METRICS = {"exact_match": 1.0, "f1": 0.25}


def test_the_first_metric_is_the_reward_and_that_is_said() -> None:
    form = LmEval(Options())
    assert form.reward_of(METRICS) == 1.0
    assert list(form.remarks) == ["the reward is exact_match, the first of the metrics exact_match, f1. Otherwise: --rewards"]
    assert LmEval(Options()).reward_of({}) is None


def test_named_metrics_add_up() -> None:
    assert LmEval(Options(rewards=("f1", "exact_match"))).reward_of(METRICS) == 1.25
    assert LmEval(Options(rewards=("f1",))).reward_of({}) is None  # repeats of a document have none


def test_a_metric_that_is_not_there_is_no_reward_of_0() -> None:
    with pytest.raises(ValueError, match=r"^no metric 'f2', which --rewards names; there are exact_match, f1$"):
        LmEval(Options(rewards=("f2",))).reward_of(METRICS)
    assert LmEval(Options(rewards=("f1",))).reward_of({"f1": None}) is None
