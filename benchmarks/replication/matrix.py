"""What is run: regimes of staleness, arms (an algorithm with its settings), learning rates and seeds.

Staleness is in the data: every regime takes the same number of optimizer steps, and differs in how often the policy that
is being trained generates new rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

GROUP = 8
"""Completions per prompt."""
PROMPTS_PER_STEP = 3
"""Groups in an optimizer step: 24 completions."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How old the data are."""

    name: str
    rounds: int
    """How often rollouts are generated."""
    prompts: int
    """Groups per round."""
    epochs: tuple[int, ...] = (1,)
    """Passes over a round's rollouts; the policy is judged after each number. More than one only with one round."""
    judged_every: int = 1
    """Rounds between judgments."""

    @property
    def steps(self) -> int:
        return self.rounds * self.epochs[-1] * self.prompts // PROMPTS_PER_STEP


@dataclass(frozen=True, kw_only=True)
class Arm:
    """An algorithm with its settings."""

    label: str
    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One run."""

    regime: Regime
    arm: Arm
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.regime.name}-{self.arm.label}-{self.rate:g}-{self.seed}"


FRESH = Regime(name="fresh", rounds=40, prompts=PROMPTS_PER_STEP, judged_every=10)
"""Every optimizer step on rollouts of the policy that takes it."""
STALE = Regime(name="stale", rounds=3, prompts=20 * PROMPTS_PER_STEP)
"""Twenty optimizer steps on the rollouts of one policy: the last is taken on data 19 steps old."""
FROZEN = Regime(name="frozen", rounds=1, prompts=5 * PROMPTS_PER_STEP, epochs=(2, 8))
"""Eight epochs over the base model's rollouts: forty steps, no new data."""
REGIMES = {regime.name: regime for regime in (STALE, FROZEN, FRESH)}

NARROW = {"low": 0.2, "high": 0.2}
WIDE = {"low": 0.6, "high": 2.0}


def _rec(region: str, weight: str, clip: dict[str, float], suffix: str) -> Arm:
    return Arm(label=f"{region}-{weight}-{suffix}", algorithm=f"rec-{region}-{weight}", settings=clip)


ARMS = [
    Arm(label="reinforce", algorithm="reinforce"),
    _rec("oneside", "nois", NARROW, "0.2"),
    _rec("oneside", "nois", WIDE, "wide"),
    Arm(label="red-weight", algorithm="red-weight"),
    _rec("oneside", "is", NARROW, "0.2"),
    _rec("oneside", "is", WIDE, "wide"),
    Arm(label="grpo", algorithm="grpo"),
    Arm(label="opmd", algorithm="opmd"),
    Arm(label="asymre", algorithm="asymre"),
    Arm(label="red-drop", algorithm="red-drop"),
    Arm(label="topr", algorithm="topr"),
    *(_rec("twoside", weight, clip, suffix) for clip, suffix in ((NARROW, "0.2"), (WIDE, "wide")) for weight in ("nois", "is")),
    *(_rec("ring", weight, NARROW, "0.2") for weight in ("nois", "is")),
]
"""A ring of (0.6, 2.0) around its own far bounds (0.6, 2.0) is the one-sided clip of (0.6, 2.0): it is not run twice."""
ON_POLICY_TWINS = frozenset(arm.label for arm in ARMS if arm.label.startswith(("oneside", "twoside", "ring", "opmd"))) - {
    "oneside-nois-0.2"
}
"""With fresh data every ratio is 1, so these take REINFORCE's step, as oneside-nois-0.2 does: only that one is run there."""
RATES = (1e-4, 3e-4)
SEEDS = (0, 1, 2)
FIRST = 11
"""Arms that the criteria speak of, and one of each kind: these are run first."""


def jobs(regimes: list[str], arms: list[str], rates: list[float], seeds: list[int]) -> list[Job]:
    """Every run, the first arms seed by seed, then the others: what is done when time runs out is a smaller matrix."""
    return [
        Job(REGIMES[regime], arm, rate, seed)
        for tier in (ARMS[:FIRST], ARMS[FIRST:])
        for seed in seeds
        for regime in regimes
        for rate in rates
        for arm in tier
        if arm.label in arms and (regime != "fresh" or arm.label not in ON_POLICY_TWINS)
    ]
