"""Advantages: how much better a completion is than its baseline. Polars expressions over the group."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import polars as pl
from pydantic import Field

from pipeline.algorithms.cells.cell import NotNegative, Positive

GROUP = "group_id"
DEAD_RANGE = 1e-8
"""Rewards of a group that differ by less count as equal: a z-score of floating-point noise would be of size 1."""


class Advantage(Protocol):
    """A baseline and a scale."""

    @property
    def whole_snapshot(self) -> bool:
        """Whether `finish` needs numbers of the whole snapshot, which takes a first pass over it."""
        ...

    def expression(self, reward: pl.Expr) -> pl.Expr:
        """Advantage of each row, given rewards of whole groups (column `group_id`), without nulls."""
        ...

    def finish(self, advantage: pl.Expr, mean: float, std: float, median: float) -> pl.Expr:
        """The final advantage, from that of `expression`.

        Args:
            mean, std: of that advantage, over all tokens of the snapshot's kept completions.
            median: of the groups' mean rewards, over its kept completions.
        """
        ...


class _GroupAlone:
    """An advantage that depends on its group alone."""

    __slots__ = ()
    whole_snapshot: ClassVar[bool] = False

    def finish(self, advantage: pl.Expr, mean: float, std: float, median: float) -> pl.Expr:
        return advantage


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant(_GroupAlone):
    """A = value for every completion: imitation."""

    value: float = 1.0

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return reward * 0.0 + self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class RawReward(_GroupAlone):
    """A = r - baseline, the same for every group. Does not vanish for groups with equal rewards."""

    baseline: float = 0.0
    """Subtracted from every reward."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return reward - self.baseline


@dataclass(frozen=True, kw_only=True, slots=True)
class Signed(_GroupAlone):
    """A = positive where r >= solved_at, else -negative. With 1 and 1: R = +1 or -1."""

    positive: float = 1.0
    negative: float = 1.0
    solved_at: float = 1.0
    """Least reward of a solved completion."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return pl.when(reward >= self.solved_at).then(self.positive).otherwise(-self.negative)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupMean(_GroupAlone):
    """A = r - (mean(r over the group) + shift). Without a shift, a group of one or with equal rewards has A = 0."""

    shift: float = 0.0
    """Added to the baseline. Negative (AsymRE): positives count more than negatives, and the policy stays near the data."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return _zero_if_dead(reward, reward - reward.mean().over(GROUP)) - self.shift


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupNormalized(_GroupAlone):
    """A = (r - mean) / (std + epsilon) over the group. A group of one, or with equal rewards, has A = 0.

    Source: GRPO, arXiv:2402.03300, equation for outcome supervision.
    """

    ddof: Literal[0, 1] = 1
    """1: sample standard deviation (torch's and TRL's default); 0: population."""
    epsilon: NotNegative = 1e-6
    """Added to the standard deviation."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        scale = reward.std(ddof=self.ddof).over(GROUP) + self.epsilon
        return _zero_if_dead(reward, (reward - reward.mean().over(GROUP)) / scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaveOneOut(_GroupAlone):
    """A = r - mean(r of the others in the group) = G/(G-1) (r - mean). A group of one has A = 0.

    Source: RLOO, arXiv:2402.14740.
    """

    def expression(self, reward: pl.Expr) -> pl.Expr:
        size = reward.len().over(GROUP)
        factor = pl.when(size > 1).then(size / (size - 1)).otherwise(0.0)
        return _zero_if_dead(reward, factor * (reward - reward.mean().over(GROUP)))


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftValue(_GroupAlone):
    """A = r - beta log mean(exp(r / beta) over the group): the optimal value of the KL-regularized problem as baseline.

    beta -> infinity gives the mean, beta -> 0 the maximum. Source: A*-PO, arXiv:2505.20686; OAPL, arXiv:2602.19362.
    """

    beta: Positive = 1.0

    def expression(self, reward: pl.Expr) -> pl.Expr:
        top = reward.max().over(GROUP)
        value = top + self.beta * ((reward - top) / self.beta).exp().mean().over(GROUP).log()
        return _zero_if_dead(reward, reward - value)


@dataclass(frozen=True, kw_only=True, slots=True)
class WinRate(_GroupAlone):
    """A = mean over the others of the group of p(r beats r') - 1/2,  p = sigmoid((r - r') / soft). A group of one has A = 0.

    Equals draw, p = 1/2. Of rewards (1, 0, 0) with hard wins: (1/2, -1/4, -1/4). Source: Nash-MD,
    arXiv:2312.00886, whose p is a preference model's.
    """

    soft: NotNegative = 1.0
    """Temperature of soft wins. 0: hard wins, p = 1, 1/2 or 0."""

    def expression(self, reward: pl.Expr) -> pl.Expr:
        size = reward.len().over(GROUP)
        if self.soft == 0:
            wins = (reward / DEAD_RANGE).round().rank("average").over(GROUP) - 1
        else:
            others = reward.over(GROUP, mapping_strategy="join").list.sort()
            wins = ((others - reward) / self.soft).list.eval(1 / (1 + pl.element().exp())).list.sum() - 0.5
        return pl.when(size > 1).then(wins / (size - 1) - 0.5).otherwise(0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchNormalized:
    """A = (b - mean) / (std + epsilon) over all tokens of the snapshot, b = r or r - mean(r over the group).

    Source: REINFORCE++, arXiv:2501.03262 (its baseline variant subtracts the group's mean first).
    """

    baseline: Literal["none", "group_mean"] = "none"
    epsilon: NotNegative = 1e-8
    whole_snapshot = True

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return reward if self.baseline == "none" else GroupMean().expression(reward)

    def finish(self, advantage: pl.Expr, mean: float, std: float, median: float) -> pl.Expr:
        return (advantage - mean) / (std + self.epsilon)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfImitation:
    """A' = A + gamma (r - P50) where A > 0 and r > P50, else A; A = r - mean(r over the group), P50 the median group's mean.

    Clipped alike, the sum of GRPO's loss and gamma times that of imitating one's own successes is the loss of this advantage:
    both parts of a completion have the same sign. gamma = (1 - cos(pi step / warm_up)) / 2, and 1 from warm_up on. Source:
    SPEAR, arXiv:2509.22601, whose buffers are here the snapshot.
    """

    step: Annotated[int, Field(ge=0)] = 300
    """Training step of the paper's schedule; the same for a whole training on a snapshot."""
    warm_up: Annotated[int, Field(ge=1)] = 300
    whole_snapshot = True

    @property
    def gamma(self) -> float:
        """Weight of the imitation."""
        return 0.5 * (1 - math.cos(math.pi * min(self.step / self.warm_up, 1.0)))

    def expression(self, reward: pl.Expr) -> pl.Expr:
        return GroupMean().expression(reward)

    def finish(self, advantage: pl.Expr, mean: float, std: float, median: float) -> pl.Expr:
        above = pl.col("reward") - median
        return advantage + self.gamma * pl.when((advantage > 0) & (above > 0)).then(above).otherwise(0.0)


def is_dead(reward: pl.Expr) -> pl.Expr:
    """Whether a row's group has equal rewards."""
    return (reward.max().over(GROUP) - reward.min().over(GROUP)) < DEAD_RANGE


def _zero_if_dead(reward: pl.Expr, advantage: pl.Expr) -> pl.Expr:
    return pl.when(is_dead(reward)).then(0.0).otherwise(advantage)
