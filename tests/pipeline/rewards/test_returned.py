"""What own functions return: a value, or one line that says what is wrong with it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.reward import RewardComponent
from pipeline.rewards.items import Score
from pipeline.rewards.pool import RewardItem
from pipeline.rewards.returned import as_score
from tests.pipeline.rewards.conftest import Grade


@pytest.mark.parametrize(
    ("returned", "value"),
    [
        (True, 1.0),
        (0, 0.0),
        (Fraction(1, 4), 0.25),
        (Decimal("0.5"), 0.5),
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (np.int64(2), 2.0),
        (np.uint8(255), 255.0),
        (np.bool_(True), 1.0),
        (np.array(0.5), 0.5),
        (np.array(True), 1.0),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (Score(np.float32(0.5)), 0.5),  # type: ignore[arg-type]
        ({"score": True, "acc": False}, 1.0),
    ],
)
def test_any_number_is_a_value(returned: Any, value: float) -> None:
    found = as_score(returned)
    assert (found.score, found.error, type(found.score)) == (value, None, float)


async def later() -> float:
    return 1.0


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([1.0], "returned [1.0], expected a finite number, one for the one completion that was given"),
        ((), "returned (), expected a finite number, one for the one completion that was given"),
        (np.array([1.0]), "returned array([1.]), expected a finite number, one for the one completion that was given"),
        ("1.0", "returned '1.0', expected a finite number"),
        (float("nan"), "returned nan, expected a finite number"),
        (np.float64("inf"), "returned np.float64(inf), expected a finite number"),
        (1j, "returned 1j, expected a finite number"),
        ({"reward": 1}, "returned {'reward': 1}, expected a finite number; of a mapping, the entry 'score' is taken"),
        ({"score": [1]}, "returned [1], expected a finite number, one for the one completion that was given"),
    ],
)
def test_what_is_no_number_is_told_in_one_line(returned: Any, said: str) -> None:
    assert as_score(returned) == Score(None, said, None)


def test_a_coroutine_is_told_and_closed() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = as_score(later())
    assert found.error is not None
    assert found.error.endswith("expected a finite number; nobody awaits it: write a plain function")
    assert asyncio.iscoroutinefunction(later)


def test_the_rest_of_a_mapping_is_the_remark() -> None:
    assert as_score({"score": 0.5, "acc": True, "pred": "4"}) == Score(0.5, None, '{"acc": true, "pred": "4"}')


APPLIES = """
    def applies(completion, answer, prompt):
        return None if completion == "other" else len(completion) / 4
"""


def test_none_says_that_a_component_does_not_apply(grade: Grade, own: Callable[[str], str]) -> None:
    module = own(APPLIES)
    parts = [RewardComponent(grader=f"{module}:applies", weight=2.0), RewardComponent(grader="exact_match", weight=0.5)]
    both, one = grade(parts, [RewardItem("four", "four", {}), RewardItem("other", "other", {})])
    assert (both.reward, both.components) == (2.5, {"reward_applies": 1.0, "reward_exact_match": 1.0})
    assert (one.reward, one.error, one.components) == (0.5, None, {"reward_applies": None, "reward_exact_match": 1.0})


def test_a_completion_to_which_nothing_applies_has_no_reward(grade: Grade, own: Callable[[str], str]) -> None:
    module = own(APPLIES)
    parts = [RewardComponent(grader=f"{module}:applies", name=name) for name in ("one", "two")]
    (result,) = grade(parts, [RewardItem("other", None, {})])
    said = "returned None, expected a finite number"
    assert (result.reward, result.error) == (None, f"reward_one: {said}; reward_two: {said}")


def test_a_grader_of_batches_applies_where_a_function_does_not(grade: Grade, own: Callable[[str], str], tmp_path: Any) -> None:
    (tmp_path / "labels.csv").write_text("prompt_id,sample_index,reward\np,0,0.25\n", encoding="utf-8")
    parts = [
        RewardComponent(grader=f"{own(APPLIES)}:applies"),
        RewardComponent(grader="from_file", args={"path": str(tmp_path / "labels.csv")}),
    ]
    (result,) = grade(parts, [RewardItem("other", None, {"prompt_id": "p"}, "p", 0)])
    assert (result.reward, result.error) == (0.25, None)
