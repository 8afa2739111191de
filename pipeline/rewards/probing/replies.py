"""Graders that can be asked, and what they said of completions that nobody drew."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.config.reward import RewardConfig
from pipeline.rewards.items import RewardResult
from pipeline.rewards.pool import RewardPool
from pipeline.rewards.probing.kinds import Offer
from pipeline.rewards.probing.rows import ProbeRow

UNASKED = {
    "reward_model": "a model would have to be loaded; `rollbook grade` asks it about stored completions",
    "judge": "every question goes to a server; `rollbook grade` asks it about stored completions",
    "pairwise_judge": "it compares completions of one prompt; `rollbook grade` asks it about stored ones",
    "from_file": "it knows only the completions of its file",
    "human": "it knows only completions that people labeled",
    "environment": "it reads what the environment gave",
}
"""Graders that are not asked, and why."""


def askable(config: RewardConfig) -> tuple[RewardConfig | None, dict[str, str]]:
    """The config with those graders that can be asked, None without any; and why others are not, by their column."""
    skipped = {c.column: f"not asked: {UNASKED[c.grader]}" for c in config.components if c.grader in UNASKED}
    left = tuple(component for component in config.components if component.column not in skipped)
    return (config.model_copy(update={"components": left}) if left else None), skipped


class Replies:
    """What a pool of graders said. Nothing is asked twice."""

    def __init__(self, pool: RewardPool) -> None:
        self._pool = pool
        self._found: dict[tuple[str, Offer], RewardResult] = {}

    def ask(self, pairs: Iterable[tuple[ProbeRow, Offer]]) -> None:
        """Have what is new graded, and wait for it."""
        new = {(row.name, offer): row for row, offer in pairs if (row.name, offer) not in self._found}
        items = [row.item(offer.text, offer.finish_reason) for (_, offer), row in new.items()]
        self._found |= dict(zip(new, self._pool.submit(items).result(), strict=True))

    def of(self, row: ProbeRow, offer: Offer) -> RewardResult:
        return self._found[row.name, offer]

    def rewards(self, row: ProbeRow) -> list[float]:
        """All rewards of a row's answers."""
        return [said.reward for (name, _), said in self._found.items() if name == row.name and said.reward is not None]


def error_of(said: RewardResult, column: str) -> str | None:
    """Why one component has no score, out of what was said of all.

    >>> error_of(RewardResult(None, {}, "reward_a: KeyError: 'x'; reward_b: no answer within 10 s"), "reward_b")
    'no answer within 10 s'
    """
    found = re.search(rf"(?:^|; ){re.escape(column)}: (.*?)(?:; reward_\w+: |$)", said.error or "", re.DOTALL)
    return found[1] if found else None
