"""Density weighting: how much a completion counts by how likely it was under the policy that drew the data. Polars."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from pipeline.algorithms.cells.advantages import GROUP
from pipeline.algorithms.cells.cell import BEHAVIOR, NotNegative

DENSITY = "mean_logprob"
"""Column of the mean log mu per token of a completion, over the tokens that the policy drew."""


def mean_logprob() -> pl.Expr:
    """The column, from those of a rollouts table. Null where behavior_logprobs are."""
    drawn = pl.col("action_mask").list.eval(pl.element().arg_true())
    logprobs = pl.col("behavior_logprobs")
    return pl.when(drawn.is_null()).then(logprobs).otherwise(logprobs.list.gather(drawn)).list.mean()


@dataclass(frozen=True, kw_only=True, slots=True)
class DensityWeight:
    """weight = min(1, exp(eta (l - median of l over the group))), l = mean_t log mu(y_t): the tail of the data fades.

    Completions at least as likely as the group's median one count 1; eta = 0 leaves all as they are. The median is over the
    whole group, dropped completions included. An analogue of CDSA, arXiv:2406.07541, for tokens; eta is ours.
    """

    eta: NotNegative = 1.0
    """How fast the weight falls, per nat per token."""
    needs = (BEHAVIOR,)

    def weight(self, advantage: pl.Expr) -> pl.Expr:
        likely = pl.col(DENSITY)
        return (self.eta * (likely - likely.median().over(GROUP))).clip(upper_bound=0.0).exp()
