"""`environment`: the reward that the run's environment gave for an episode, the sum of its turns'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOLD = ("episode_reward",)


def environment(completion: str, answer: str | None, prompt: Mapping[str, Any], *, episode_reward: float | None = None) -> float:
    """
    >>> environment("", None, {}, episode_reward=0.5)
    0.5

    Raises:
        ValueError: the environment gave none.
    """
    if episode_reward is None:
        raise ValueError("no environment gave a reward for this completion. Name a grader that reads it, such as regex")
    return episode_reward
