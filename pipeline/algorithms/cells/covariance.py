"""SPEAR's covariance clip: a few of the tokens that would make the policy settle early are left out.

The entropy of a softmax policy falls with the covariance of log pi and A: tokens that are likely and good (or unlikely and
bad) lower it. Source: SPEAR, arXiv:2509.22601, after Clip-Cov, arXiv:2505.22617.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.algorithms.cells.cell import BEHAVIOR, Cell, NotNegative
from pipeline.algorithms.cells.drift import Drift
from pipeline.algorithms.cells.trust_region import OneSide

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from pipeline.algorithms.tokens import Tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class CovarianceClip(Cell):
    """Keeps what OneSide keeps, less max(1, floor(share n)) random tokens with lower < cov_t < upper, n tokens in the step.

    cov_t = (A_t - mean A) (log pi_t - mean log pi), means over the step's tokens. A token's draw follows from its completion
    and its place, so it is the same in every epoch and however the step is cut. Tokens left out stay in the denominator.
    """

    low: float = 0.2
    high: float = 0.2
    share: NotNegative = 0.02
    """Of the step's tokens, how many are left out."""
    lower: float = 1.0
    """Least covariance; at or above `upper`, nothing is left out."""
    upper: float = 40.0
    needs = (BEHAVIOR,)
    whole_step = True

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        mask = drift.tokens.mask
        keeps = OneSide(low=self.low, high=self.high).keeps(drift)
        values = covariance(drift)
        settles = (values > self.lower) & (values < self.upper) & keeps & mask
        draws = _draws(drift.tokens)
        count = min(max(1, int(self.share * int(mask.sum()))), int(settles.sum()))
        if count == 0:
            return keeps
        return keeps & ~(settles & (draws <= draws[settles].kthvalue(count).values))


def covariance(drift: Drift) -> Float[Tensor, " tokens"]:
    """(A_t - mean A) (log pi_t - mean log pi) of each token, over the tokens of the step that count."""
    count = drift.tokens.mask.sum().clamp(min=1)
    logprobs = drift.tokens.logprobs.detach()
    parts = (values - drift.sum_over_step(values) / count for values in (drift.advantage, logprobs))
    return next(parts) * next(parts)


def _draws(tokens: Tokens) -> Int[Tensor, " tokens"]:
    """A number below 2^32 for each token, mixed from the number of its completion and its place there among tokens that count."""
    import torch

    assert tokens.number is not None
    places = tokens.mask.cumsum(0)
    before = torch.full_like(tokens.number, len(places)).scatter_reduce(0, tokens.sequence, places - tokens.mask.long(), "amin")
    mixed = (tokens.per_token(tokens.number) + 0x9E3779B9 * (places - before[tokens.sequence])) & 0xFFFFFFFF
    for _ in range(2):
        mixed = ((mixed ^ (mixed >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return mixed ^ (mixed >> 16)
