"""Trust regions: which tokens still pull on the policy, given how far it has moved from the data. Constants of the gradient.

Bounds are inclusive. At A = 0 the choice has no effect, since the factor A is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.algorithms.cells.drift import Drift, Level

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor


class TrustRegion(Protocol):
    """A mask per token."""

    @property
    def needs_ratio(self) -> bool:
        """Whether it reads log mu."""
        ...

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        """True where the token pulls on the policy."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoTrustRegion:
    """Every token pulls, however far the policy has moved."""

    needs_ratio = False

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        import torch

        return torch.ones_like(drift.log_ratio, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneSide:
    """Stop a token once it has moved far enough in the direction its advantage pushes.

    Keeps A >= 0 with r <= 1 + high, and A <= 0 with r >= 1 - low: the mask of PPO's clipped surrogate.
    """

    low: float = 0.2
    """Distance below 1 at which tokens with A <= 0 stop."""
    high: float = 0.2
    """Distance above 1 at which tokens with A >= 0 stop."""
    level: Level = "token"
    """Whose ratio is compared: token, sequence or geometric (GSPO)."""
    needs_ratio = True

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        ratio, advantage = drift.ratio_of(self.level), drift.advantage
        return ((advantage >= 0) & (ratio <= 1 + self.high)) | ((advantage <= 0) & (ratio >= 1 - self.low))


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoSide:
    """Keeps 1 - low <= r <= 1 + high, whatever the advantage."""

    low: float = 0.2
    """Distance below 1 at which tokens stop."""
    high: float = 0.2
    """Distance above 1 at which tokens stop."""
    needs_ratio = True

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        ratio = drift.ratio_of("token")
        return (ratio >= 1 - self.low) & (ratio <= 1 + self.high)
