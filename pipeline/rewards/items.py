"""What graders are given, and what they say of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class RewardItem:
    """One completion to grade."""

    completion: str
    answer: str | None
    """The prompt's reference answer."""
    prompt: Mapping[str, Any]
    """The prompt's row: prompt_id, question, answer and whatever other columns it has."""
    group_id: str = ""
    """The completion's group, for graders that look completions up; empty where there is none."""
    sample_index: int = 0
    """Its number in the group."""
    finish_reason: str | None = None
    """Why it ended, as in the rollouts: "stop" by itself, "length" where it was cut off; None if nobody knows."""


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What one completion is worth."""

    reward: float | None
    """Σ weight · score over the components; None if one of them has no score."""
    components: dict[str, float | None]
    """Score of each component, before its weight, by the component's column."""
    error: str | None
    """One line that names each component without a score and says why; None if all have one."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """What graders said beside their scores, such as a judge's answer, by the component's column."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a grader says of one completion, if it says more than a number."""

    score: float | None
    error: str | None = None
    """Why there is no score."""
    remark: str | None = None
    """What is worth keeping beside the score: a judge's answer, where an answer was found."""


def weighted(components: Mapping[str, float | None], weights: Sequence[float], errors: Sequence[str]) -> RewardResult:
    """The result of a completion, from the score of each component and what went wrong with them.

    Args:
        weights: of the components, in their order.
    """
    if errors:
        return RewardResult(None, dict(components), "; ".join(errors))
    scores = [score for score in components.values() if score is not None]
    parts = [weight * score for weight, score in zip(weights, scores, strict=True)]
    if not math.isfinite(total := sum(parts)):
        return RewardResult(None, dict(components), f"reward: the weighted scores add up to {total}")
    return RewardResult(math.fsum(parts), dict(components), None)  # 0.7 + 0.2 + 0.1 is 1, and not just below it
