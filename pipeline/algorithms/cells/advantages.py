"""Advantages: how much better a completion is than its baseline. Polars expressions over the group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import polars as pl

GROUP = "group_id"
DEAD_RANGE = 1e-8
"""Rewards of a group that differ by less count as equal: a z-score of floating-point noise would be of size 1."""


class Advantage(Protocol):
    """A baseline and a scale."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        """Advantage of each row, given rewards of whole groups (column `group_id`), without nulls."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class RawReward:
    """A = r - baseline, the same for every group. Does not vanish for groups with equal rewards."""

    baseline: float = 0.0
    """Subtracted from every reward."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return reward - self.baseline


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupMean:
    """A = r - mean(r over the group). A group of one, or with equal rewards, has A = 0."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return _zero_if_dead(reward, reward - reward.mean().over(GROUP))


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupNormalized:
    """A = (r - mean) / (std + epsilon) over the group. A group of one, or with equal rewards, has A = 0.

    Source: GRPO, arXiv:2402.03300, equation for outcome supervision.
    """

    ddof: int = 1
    """1: sample standard deviation (torch's and TRL's default); 0: population."""
    epsilon: float = 1e-6
    """Added to the standard deviation."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        scale = reward.std(ddof=self.ddof).over(GROUP) + self.epsilon
        return _zero_if_dead(reward, (reward - reward.mean().over(GROUP)) / scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaveOneOut:
    """A = r - mean(r of the others in the group) = G/(G-1) (r - mean). A group of one has A = 0.

    Source: RLOO, arXiv:2402.14740.
    """

    def expression(self, reward: pl.Expr) -> pl.Expr:
        size = reward.len().over(GROUP)
        factor = pl.when(size > 1).then(size / (size - 1)).otherwise(0.0)
        return _zero_if_dead(reward, factor * (reward - reward.mean().over(GROUP)))


def is_dead(reward: pl.Expr) -> pl.Expr:
    """Whether a row's group has equal rewards."""
    return (reward.max().over(GROUP) - reward.min().over(GROUP)) < DEAD_RANGE


def _zero_if_dead(reward: pl.Expr, advantage: pl.Expr) -> pl.Expr:
    return pl.when(is_dead(reward)).then(0.0).otherwise(advantage)
