"""What recipes say of graders, so that stored rewards are never taken for others."""

from __future__ import annotations

import pytest

from pipeline.config.reward import RewardComponent
from pipeline.rewards.registry import BUILTINS, recipe_of


def test_a_grader_that_gives_other_scores_has_another_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    component = RewardComponent(grader="exact_match", args={"ignore_case": True})
    before = recipe_of(component)
    assert before == {"grader": "exact_match", "name": None, "weight": 1.0, "args": {"ignore_case": True}}
    monkeypatch.setattr("pipeline.rewards.registry.VERSIONS", {"exact_match": 2})
    assert recipe_of(component) == before | {"version": 2}


def test_no_module_of_a_grader_is_named_like_a_package() -> None:
    names = {module.rpartition(".")[2] for module in BUILTINS.values()}
    assert names & {"regex", "reasoning_gym"} == set()
