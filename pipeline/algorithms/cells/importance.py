"""Importance: how a token's gradient is weighted for having been drawn from mu rather than pi. Constants of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.algorithms.cells.drift import Drift, Level

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

UNBOUNDED = 1e9
"""Written for "no upper bound": a ratio never gets there (see `LOG_RATIO_LIMIT`)."""


class Importance(Protocol):
    """A weight per token."""

    @property
    def needs_ratio(self) -> bool:
        """Whether it reads log mu."""
        ...

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        """w_t of each token."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoImportance:
    """w_t = 1: the data are used as they are."""

    needs_ratio = False

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        import torch

        return torch.ones_like(drift.log_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """w_t = the ratio pi/mu, kept within bounds that depend on the sign of the advantage.

    w = clamp(r, positive_low, positive_high) where A >= 0, clamp(r, negative_low, negative_high) where A < 0. Without
    bounds this is exact importance sampling; [1, 1] on one side is plain weight 1 there. Source of the four bounds: TOPR,
    arXiv:2503.14286.
    """

    level: Level = "token"
    """Whose ratio: token, sequence (the product over the completion) or geometric (its length-normalised form)."""
    positive_low: float = 0.0
    positive_high: float = UNBOUNDED
    negative_low: float = 0.0
    negative_high: float = UNBOUNDED
    needs_ratio = True

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        ratio = drift.ratio_of(self.level)
        positive = ratio.clamp(self.positive_low, self.positive_high)
        negative = ratio.clamp(self.negative_low, self.negative_high)
        return positive.where(drift.advantage >= 0, negative)
