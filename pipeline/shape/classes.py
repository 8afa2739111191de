"""Positives and negatives of a whole rollouts artifact: what they weigh, and which of the larger class are left out.

A completion is positive if its advantage is above 0, negative if below. With p the share of positives among the two,
shares f and 1 - f are reached

    by weight:  w+ = f / p,  w- = (1 - f) / (1 - p)      the mean weight stays 1
    by drop:    n+ : n- = f : (1 - f), with all of the scarcer class kept

For rewards of +1 and -1, weights (w+, w-) are in proportion to those of a baseline c, (1 - c, 1 + c), with
f = p (1 - c) / (1 + c (1 - 2 p)): the effective share of positives in TOPR, arXiv:2503.14286.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.algorithms.cells.shaping import ClassWeights
from pipeline.config.shape import ShapeConfig
from pipeline.shape.settings import class_weights

ADVANTAGE = pl.col("advantage")


@dataclass(frozen=True)
class Surplus:
    """Completions of the larger class that are left out: those with the largest draws."""

    positive: bool
    """Whether positives are the larger class."""
    last: int
    """The largest draw that stays."""

    @property
    def reason(self) -> str:
        """What drop_reason says."""
        return "surplus_positive" if self.positive else "surplus_negative"

    def drops(self) -> pl.Expr:
        """True for rows to leave out, from columns advantage and draw."""
        surplus = ADVANTAGE > 0 if self.positive else ADVANTAGE < 0
        return surplus & (pl.col("draw") > pl.lit(self.last, pl.UInt64))


@dataclass(frozen=True)
class ClassRule:
    """What becomes of completions by the sign of their advantage."""

    weights: ClassWeights | None = None
    """None: the algorithm's own weighting."""
    surplus: Surplus | None = None


@dataclass(frozen=True)
class Draws:
    """The draws of the kept completions of each class."""

    positive: NDArray[np.uint64]
    negative: NDArray[np.uint64]

    @property
    def one_class(self) -> bool:
        """Whether there is no share to change."""
        return len(self.positive) == 0 or len(self.negative) == 0


def draws_of(rows: pl.DataFrame) -> Draws:
    """From kept rows with their final advantage and, where completions may be left out, a draw."""
    if "draw" not in rows.columns:
        rows = rows.with_columns(draw=pl.lit(0, pl.UInt64))
    return Draws(*(rows.filter(condition)["draw"].to_numpy() for condition in (ADVANTAGE > 0, ADVANTAGE < 0)))


def class_rule(choices: ShapeConfig, draws: Draws) -> ClassRule:
    """The rule that the settings and the sizes of the two classes give. Where one class is empty no share can be reached."""
    fraction = choices.positive_fraction
    if fraction is None or draws.one_class:
        return ClassRule(class_weights(choices))
    positives, negatives = len(draws.positive), len(draws.negative)
    if choices.positive_fraction_by == "weight":
        share = positives / (positives + negatives)
        return ClassRule(ClassWeights(positive=fraction / share, negative=(1 - fraction) / (1 - share)))
    odds = fraction / (1 - fraction)
    larger = positives > odds * negatives
    stay = odds * negatives if larger else positives / odds
    return ClassRule(class_weights(choices), _surplus(larger, draws.positive if larger else draws.negative, stay))


def _surplus(positive: bool, draws: NDArray[np.uint64], stay: float) -> Surplus | None:
    """Keep `stay` of a class, rounded, and at least one."""
    count = max(1, math.floor(stay + 0.5))
    return Surplus(positive, int(np.partition(draws, count - 1)[count - 1])) if count < len(draws) else None
