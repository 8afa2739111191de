"""What an algorithm needs of stored rollouts, as far as their manifest says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.algorithms import resolve
from pipeline.common.errors import UserError
from pipeline.shape.fit import check_limit, check_rollouts
from pipeline.store import Artifact

Make = Callable[..., Artifact]


@pytest.mark.parametrize("sampling", [{"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}, {"temperature": 0.0}])
def test_rollouts_without_a_usable_ratio_are_refused_where_one_is_needed(make_artifact: Make, sampling: dict[str, Any]) -> None:
    rollouts = make_artifact("rollouts", sampling={"temperature": 1.0, **sampling})
    with pytest.raises(
        UserError, match=r"^these: grpo needs the ratio pi/mu, and these rollouts were drawn greedily or with top_p"
    ):
        check_rollouts(rollouts, resolve("grpo"), "these")
    for name in ("reinforce", "dpo"):
        check_rollouts(rollouts, resolve(name), "these")


def test_completions_without_logprobs_are_refused_where_they_are_needed(make_artifact: Make) -> None:
    rollouts = make_artifact("rollouts", without_logprobs=3)
    with pytest.raises(
        UserError, match=r"^these: grpo needs behavior_logprobs, and 3 of these completions have none. Score them"
    ):
        check_rollouts(rollouts, resolve("grpo"), "these")
    check_rollouts(rollouts, resolve("kto"), "these")


def test_a_penalty_for_length_needs_a_limit(make_artifact: Make) -> None:
    imported, own = make_artifact("rollouts", name="imported"), make_artifact("rollouts", sampling={"max_tokens": 100})
    with pytest.raises(UserError, match=r"^these: dapo lowers .* Set reward\.limit in train\.algorithm_args"):
        check_limit(imported, resolve("dapo"), "these")
    check_limit(imported, resolve("dapo", {"reward.limit": 100}), "these")
    check_limit(own, resolve("dapo"), "these")
    check_limit(imported, resolve("grpo"), "these")
