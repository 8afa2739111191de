"""Data shaping: what is left out before advantages are computed, and how heavily the rest counts. Polars expressions.

A filter sees the rows that the filters before it kept, with the columns group_id, sample_index, grade (the reward as it was
graded), reward (as the algorithm shaped it), status, tokens (completion length), max_tokens and draw (a seeded number per row).
Statistics of a group are over the rows that are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

import polars as pl
from pydantic import Field

from pipeline.algorithms.cells.advantages import DEAD_RANGE, GROUP, is_dead
from pipeline.algorithms.cells.cell import Positive

REWARD, GRADE = pl.col("reward"), pl.col("grade")


class Filter(Protocol):
    """A reason to leave rows out."""

    @property
    def reason(self) -> str:
        """What drop_reason says."""
        ...

    @property
    def seeded(self) -> bool:
        """Whether it reads `draw`."""
        ...

    def drops(self) -> pl.Expr:
        """True for rows to leave out."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ZeroVariance:
    """Leave out groups whose rewards are all equal."""

    reason: ClassVar[str] = "zero_variance"
    seeded: ClassVar[bool] = False

    def drops(self) -> pl.Expr:
        return is_dead(REWARD)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixed:
    """Leave out groups of which all completions are solved, or none is: 0 < number solved < G, by rewards as they were graded.

    Source: DAPO, arXiv:2503.14476, equation 11 (its dynamic sampling, without drawing other groups instead).
    """

    solved_at: float = 1.0
    """Least reward of a solved completion."""
    reason: ClassVar[str] = "not_mixed"
    seeded: ClassVar[bool] = False

    def drops(self) -> pl.Expr:
        solved = GRADE >= self.solved_at
        return solved.all().over(GROUP) | ~solved.any().over(GROUP)


@dataclass(frozen=True, kw_only=True, slots=True)
class PassRate:
    """Leave out groups whose share of solved completions is outside [low, high]."""

    low: float = 0.0
    high: float = 1.0
    solved_at: float = 1.0
    reason: ClassVar[str] = "pass_rate"
    seeded: ClassVar[bool] = False

    def drops(self) -> pl.Expr:
        rate = (REWARD >= self.solved_at).mean().over(GROUP)
        return (rate < self.low) | (rate > self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlySolved:
    """Leave out completions that are not solved: rejection sampling."""

    solved_at: float = 1.0
    reason: ClassVar[str] = "not_solved"
    seeded: ClassVar[bool] = False

    def drops(self) -> pl.Expr:
        return REWARD < self.solved_at


@dataclass(frozen=True, kw_only=True, slots=True)
class BestOfN:
    """Leave out all but the group's best completion (the first of equals)."""

    reason: ClassVar[str] = "not_best"
    seeded: ClassVar[bool] = False

    def drops(self) -> pl.Expr:
        best = REWARD == REWARD.max().over(GROUP)
        first = pl.when(best).then(pl.col("sample_index")).min().over(GROUP)
        return ~best | (pl.col("sample_index") != first)


@dataclass(frozen=True, kw_only=True, slots=True)
class BalanceNegatives:
    """Leave out random negatives until there are no more of them than positives; positives are r >= the group's mean.

    The group's mean is then that of the rows kept, and so is the loss's: what is left out is in no denominator. Source:
    RED-Drop, arXiv:2509.24203.
    """

    reason: ClassVar[str] = "surplus_negative"
    seeded: ClassVar[bool] = True

    def drops(self) -> pl.Expr:
        positive = _at_least_mean()
        positives = positive.sum().over(GROUP)
        rank = pl.when(~positive).then(pl.col("draw")).rank("ordinal").over(GROUP)
        return ~positive & (rank > positives)


@dataclass(frozen=True, kw_only=True, slots=True)
class BalancePositives:
    """Leave out random positives until there are no more of them than negatives; positives are r >= the group's mean.

    A group without negatives stays whole.
    """

    reason: ClassVar[str] = "surplus_positive"
    seeded: ClassVar[bool] = True

    def drops(self) -> pl.Expr:
        positive = _at_least_mean()
        negatives = (~positive).sum().over(GROUP)
        rank = pl.when(positive).then(pl.col("draw")).rank("ordinal").over(GROUP)
        return positive & (negatives > 0) & (rank > negatives)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnaKarenina:
    """Keep the first solved completion of a group and all that are not solved: solutions are alike, mistakes are not.

    Source: TOPR, arXiv:2503.14286.
    """

    solved_at: float = 1.0
    reason: ClassVar[str] = "repeated_solution"
    seeded: ClassVar[bool] = False

    def drops(self) -> pl.Expr:
        solved = REWARD >= self.solved_at
        first = pl.when(solved).then(pl.col("sample_index")).min().over(GROUP)
        return solved & (pl.col("sample_index") != first)


class RewardShaping(Protocol):
    """A change of the rewards, before anything else."""

    def shaped(self, reward: pl.Expr) -> pl.Expr: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class AsIs:
    """Rewards as they were graded."""

    def shaped(self, reward: pl.Expr) -> pl.Expr:
        return reward


@dataclass(frozen=True, kw_only=True, slots=True)
class OverlongPenalty:
    """Subtract (L - (limit - buffer)) / buffer, between 0 and 1, from completions longer than limit - buffer tokens.

    Source: DAPO's soft overlong punishment, arXiv:2503.14476.
    """

    limit: Annotated[int, Field(ge=0)] = 0
    """Longest completion, in tokens; 0: the max_tokens that the rollouts were generated with."""
    buffer: Positive = 0.2
    """Length over which the penalty rises, as a share of the limit."""

    def shaped(self, reward: pl.Expr) -> pl.Expr:
        limit = pl.lit(float(self.limit)) if self.limit else pl.col("max_tokens").cast(pl.Float64)
        over = (pl.col("tokens") - limit * (1 - self.buffer)) / (limit * self.buffer)
        return reward - over.clip(0.0, 1.0)


class Weighting(Protocol):
    """The factor of each completion's loss, from its advantage."""

    def weight(self, advantage: pl.Expr) -> pl.Expr: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """Every completion counts 1."""

    def weight(self, advantage: pl.Expr) -> pl.Expr:
        return advantage * 0.0 + 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ExponentialAdvantage:
    """weight = exp(A / temperature): good completions count more than bad ones. Source: RED-Weight, arXiv:2509.24203."""

    temperature: Positive = 1.0
    """Rewards of another scale need another one: above A / temperature = 88 the weight is no finite number in fp32."""

    def weight(self, advantage: pl.Expr) -> pl.Expr:
        return (advantage / self.temperature).exp()


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassWeights:
    """weight = positive where A > 0, negative where A < 0, 1 where A = 0: lambda+ and lambda-."""

    positive: float = 1.0
    negative: float = 1.0

    def weight(self, advantage: pl.Expr) -> pl.Expr:
        return pl.when(advantage > 0).then(self.positive).when(advantage < 0).then(self.negative).otherwise(1.0)


def _at_least_mean() -> pl.Expr:
    """Whether a reward is at least its group's mean; one that rounding alone puts below it is."""
    return REWARD >= REWARD.mean().over(GROUP) - DEAD_RANGE
