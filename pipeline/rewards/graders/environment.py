"""`environment`: the reward that the run's environment gave for an episode, the sum of its turns'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from schemas.rollouts import CUT

TOLD = ("episode_reward", "finish_reason")


def environment(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    episode_reward: float | None = None,
    finish_reason: str | None = None,
) -> float:
    """0 for an episode that was cut before the environment gave anything.

    >>> environment("", None, {}, episode_reward=0.5), environment("", None, {}, finish_reason="length")
    (0.5, 0.0)

    Raises:
        ValueError: it ended, and the environment gave none.
    """
    if episode_reward is None and finish_reason in CUT:
        return 0.0
    if episode_reward is None:
        raise ValueError("no environment gave a reward for this completion. Name a grader that reads it, such as regex")
    return episode_reward
