"""What graders of single completions say beside their scores."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from pipeline.config.reward import RewardComponent
from pipeline.rewards.pool import RewardItem
from tests.pipeline.rewards.conftest import Grade

SAYS = """
    from pipeline.rewards.items import Score

    def says(completion, answer, prompt):
        if completion == "broken":
            return Score(None, "cannot be read", "looked twice")
        return Score(0.5, remark="read " + completion) if completion else 0.25
"""


def test_a_score_with_a_remark_keeps_both_and_an_error_its_remark(grade: Grade, own: Callable[[str], str]) -> None:
    says = RewardComponent(grader=f"{own(textwrap.dedent(SAYS))}:says", name="says")
    other = RewardComponent(grader="exact_match")
    read, plain, broken = grade([says, other], [RewardItem(text, "a", {}) for text in ("a", "", "broken")])
    assert (read.components, dict(read.remarks)) == ({"reward_says": 0.5, "reward_exact_match": 1.0}, {"reward_says": "read a"})
    assert (plain.components["reward_says"], dict(plain.remarks)) == (0.25, {})
    assert (broken.error, dict(broken.remarks)) == ("reward_says: cannot be read", {"reward_says": "looked twice"})


def test_a_remark_is_cut_to_what_a_reply_takes(grade: Grade, own: Callable[[str], str]) -> None:
    says = RewardComponent(grader=f"{own(textwrap.dedent(SAYS))}:says", name="says")
    (result,) = grade([says], [RewardItem("\N{GRINNING FACE}" * 9000, "a", {})])
    assert len(result.remarks["reward_says"]) == 400
