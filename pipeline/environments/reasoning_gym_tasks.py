"""`reasoning_gym_tasks`: procedural tasks of reasoning-gym, with feedback and further tries.

Tries are scored as the grader `reasoning_gym` scores completions: each prompt by the data set that made it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pipeline.common.errors import UserError
from pipeline.rewards.graders import reasoning

WRONG = "\nThat is not right. Try again.\n"


class ReasoningGymTasks:
    """Environment of one episode. Turns earn what they score above those before, so that its reward is the best score."""

    deterministic = True
    library: ClassVar[str] = "reasoning_gym"

    def __init__(
        self, tries: int = 3, enough: float = 1.0, feedback: str = WRONG, grader: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            tries: turns that are scored; after the last the episode is over.
            enough: score at which the episode is over.
            feedback: what the policy is told after a try that is not enough; {score} and {left}, its tries, are replaced.
            grader: args of the grader reasoning_gym, such as extract and dataset.
        """
        self._left, self._enough, self._feedback, self._grader = tries, enough, feedback, dict(grader or {})
        self._best = 0.0

    @classmethod
    def prepare(cls, model: str | None, grader: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Load the library, once for all episodes."""
        try:
            reasoning.prepare(**(grader or {}))
        except ImportError as error:
            raise UserError(f"environment.name: reasoning_gym_tasks takes the library reasoning-gym ({error})") from None

    def start(self, prompt: Mapping[str, Any], seed: int) -> None:
        self._prompt = prompt

    def step(self, action: str) -> tuple[str | None, float, bool, dict[str, Any]]:
        found = reasoning.reasoning_gym(action, self._prompt["answer"], self._prompt, **self._grader)
        score = found.score or 0.0
        gained, self._best = max(score - self._best, 0.0), max(score, self._best)
        self._left -= 1
        done = score >= self._enough or self._left <= 0
        told = None if done else self._feedback.replace("{score}", f"{score:g}").replace("{left}", str(self._left))
        return told, gained, done, {"void": not action.strip()}
