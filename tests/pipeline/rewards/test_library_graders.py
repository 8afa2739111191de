"""math_verify and reasoning_gym, in workers."""

from __future__ import annotations

import json
from typing import Any

import pytest
import reasoning_gym

from pipeline.common.errors import UserError
from pipeline.config.reward import RewardComponent, RewardConfig
from pipeline.rewards.pool import RewardItem, RewardPool, RewardResult


def math(args: dict[str, Any], *pairs: tuple[str, str | None]) -> list[RewardResult]:
    config = RewardConfig(components=(RewardComponent(grader="math_verify", args=args),))
    with RewardPool(config) as pool:
        return pool.submit([RewardItem(completion, answer, {}) for completion, answer in pairs]).result(timeout=60)


def test_math_verify_scores_equal_mathematics_1() -> None:
    cases: list[tuple[str, str, float]] = [
        (r"so the answer is $\frac{2}{4}$", "1/2", 1.0),
        (r"so the answer is $\frac{2}{4}$", "0.5", 1.0),
        (r"so the answer is $\frac{2}{3}$", "1/2", 0.0),
        (r"\boxed{0.5}", r"\frac12", 1.0),
        (r"first 3, then \boxed{\frac{7}{2}}", r"$\frac{7}{2}$", 1.0),
        (r"$(x+1)^2$", "x^2+2x+1", 1.0),
        (r"$x^2+1$", "x^2+2x+1", 0.0),
        (r"$\sqrt{12}$", r"2\sqrt{3}", 1.0),
        ("The total is 1,234.", "1234", 1.0),
        ("The total is 1,235.", "1234", 0.0),
        (r"$\{2, 1\}$", r"\{1,2\}", 1.0),
        ("I do not know", "1", 0.0),
        ("", "1", 0.0),
        (r"$\frac{1}{$ broken", "1", 0.0),
    ]
    *results, unread = math({}, *((completion, answer) for completion, answer, _ in cases), ("1", "$$"))
    assert [(c, r.reward, r.error) for (c, _, _), r in zip(cases, results, strict=True)] == [
        (c, expected, None) for c, _, expected in cases
    ]
    assert unread.reward is None
    assert unread.error == "reward_math_verify: ValueError: math-verify reads no expression in the answer '$$'"


def test_math_verify_with_an_extract_pattern_reads_only_what_it_captures() -> None:
    inside, outside, without = math(
        {"extract": "<answer>(.*?)</answer>"},
        ("it is 3: <answer>2</answer> or 4", "2"),
        ("it is 3: <answer>2</answer> or 4", "4"),
        ("4", "4"),
    )
    assert (inside.reward, outside.reward, without.reward) == (1.0, 0.0, 0.0)


def test_math_verify_compares_to_the_given_precision() -> None:
    two = RewardComponent(grader="math_verify", name="two", args={"precision": 2})
    six = RewardComponent(grader="math_verify", name="six")
    with RewardPool(RewardConfig(components=(two, six))) as pool:
        (result,) = pool.submit([RewardItem("3.141", "3.142", {})]).result(timeout=60)
    assert result.components == {"reward_two": 1.0, "reward_six": 0.0}


def gym(args: dict[str, Any], items: list[RewardItem]) -> list[RewardResult]:
    with RewardPool(RewardConfig(components=(RewardComponent(grader="reasoning_gym", args=args),))) as pool:
        return pool.submit(items).result(timeout=60)


def test_reasoning_gym_countdown_accepts_any_expression_with_the_right_value() -> None:
    # 94*4 - 61 - 6 = 309, of the numbers 6, 61, 94 and 4.
    entry = reasoning_gym.create_dataset("countdown", size=1, seed=1)[0]
    assert (entry["metadata"]["target"], sorted(entry["metadata"]["numbers"])) == (309, [4, 6, 61, 94])
    items = [
        RewardItem(completion, entry["answer"], entry)
        for completion in ("94*4 - 61 - 6", "4*94 - (6 + 61)", " 4*94 - 67\n", "no idea")
    ]
    exact, other, foreign_number, text = (r.reward for r in gym({"dataset": "countdown", "accept_weakness": True}, items))
    assert exact == other == 1.0
    assert foreign_number is not None and foreign_number < 0.1
    assert text is not None and text < 0.1


def test_reasoning_gym_chain_sum_takes_its_dataset_from_the_metadata() -> None:
    metadata = {"source_dataset": "chain_sum", "expression": "4 - 1 - 7"}
    row = {"prompt_id": "p", "question": "4 - 1 - 7 =", "answer": "-4"}
    as_struct, as_text = row | {"metadata": metadata}, row | {"metadata": json.dumps(metadata)}
    right, text, wrong, none, unnamed, unknown = gym(
        {"extract": "<answer>(.*?)</answer>"},
        [
            RewardItem("<answer> -4 </answer>", "-4", as_struct),
            RewardItem("<answer>-4</answer>", "-4", as_text),
            RewardItem("<answer>12</answer>", "-4", as_struct),
            RewardItem("-4", "-4", as_struct),
            RewardItem("1", "1", {}),
            RewardItem("1", "1", {"metadata": {"source_dataset": "sums"}}),
        ],
    )
    assert (right.reward, text.reward, wrong.reward, none.reward) == (1.0, 1.0, 0.0, 0.0)
    assert unnamed.error is not None and "which dataset?" in unnamed.error
    assert unknown.error is not None and "no dataset 'sums'" in unknown.error


def test_an_unknown_dataset_is_refused_when_the_pool_starts() -> None:
    with pytest.raises(UserError, match=r"reward\.components\.0 \(reasoning_gym\): .* 'count_down'; did you mean countdown\?"):
        gym({"dataset": "count_down"}, [])
