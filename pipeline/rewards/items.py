"""What graders are given, and what they say of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    episode_reward: float | None = None
    """What an environment gave for it; None if it gave nothing, or there is none."""


def prompt_for_grader(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `schemas.Prompts` with the dataset's other columns unfolded."""
    return {**row, "metadata": json.loads(row["metadata"]) if row["metadata"] else {}}


@dataclass(frozen=True, slots=True)
class RewardResult:
    """What one completion is worth."""

    reward: float | None
    """Σ weight · score over the components that apply; None if one of them has an error, or none applies."""
    components: dict[str, float | None]
    """Score of each component, before its weight, by the component's column; None of one that does not apply or has an error."""
    error: str | None
    """One line that names each component that has no score and should, and says why; None if there is a reward."""
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

    A component without a score and without an error does not apply to this completion: the others make up its reward. Where none
    applies, there is neither reward nor error; see `required_to_apply`.

    Args:
        weights: of the components, in their order.
    """
    if errors:
        return RewardResult(None, dict(components), "; ".join(errors))
    parts = [weight * score for weight, score in zip(weights, components.values(), strict=True) if score is not None]
    if not parts:
        return RewardResult(None, dict(components), None)
    if not math.isfinite(total := sum(parts)):
        return RewardResult(None, dict(components), f"reward: the weighted scores add up to {total}")
    return RewardResult(math.fsum(parts), dict(components), None)  # 0.7 + 0.2 + 0.1 is 1, and not just below it


def required_to_apply(result: RewardResult) -> RewardResult:
    """The result of all components: an error where none of them applies, since the completion then has no reward."""
    if result.reward is not None or result.error is not None:
        return result
    return replace(result, error="; ".join(f"{column}: returned None, expected a finite number" for column in result.components))
