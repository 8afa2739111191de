"""Trust regions: which tokens still pull on the policy, given how far it has moved from the data. Constants of the gradient.

Bounds are inclusive. At A = 0 the choice has no effect, since the factor A is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.algorithms.cells.cell import ADVANTAGE, BEHAVIOR, PROXIMAL, Cell
from pipeline.algorithms.cells.drift import Drift, Level, bounded_exp
from pipeline.algorithms.cells.importance import UNBOUNDED

if TYPE_CHECKING:
    from jaxtyping import Bool
    from torch import Tensor


class TrustRegion(Protocol):
    """A mask per token."""

    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def whole_step(self) -> bool: ...

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        """True where the token pulls on the policy."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoTrustRegion(Cell):
    """Every token pulls, however far the policy has moved."""

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        import torch

        return torch.ones_like(drift.advantage, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneSide(Cell):
    """Stop a token once it has moved far enough in the direction its advantage pushes.

    Keeps A >= 0 with r <= 1 + high, and A <= 0 with r >= 1 - low: the mask of PPO's clipped surrogate.
    """

    low: float = 0.2
    """Distance below 1 at which tokens with A <= 0 stop."""
    high: float = 0.2
    """Distance above 1 at which tokens with A >= 0 stop."""
    level: Level = "token"
    """Whose ratio is compared: token, sequence or geometric (GSPO)."""
    dual: float = UNBOUNDED
    """Tokens with A < 0 also stop above this ratio (dual-clip PPO uses 3)."""
    needs = (BEHAVIOR,)

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        ratio, advantage = drift.ratio_of(self.level), drift.advantage
        rising = (advantage >= 0) & (ratio <= 1 + self.high)
        falling = (advantage <= 0) & (ratio >= 1 - self.low) & ((ratio <= self.dual) | (advantage == 0))
        return rising | falling


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoSide(Cell):
    """Keeps 1 - low <= r <= 1 + high, whatever the advantage."""

    low: float = 0.2
    """Distance below 1 at which tokens stop."""
    high: float = 0.2
    """Distance above 1 at which tokens stop."""
    needs = (BEHAVIOR,)

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        ratio = drift.ratio_of("token")
        return (ratio >= 1 - self.low) & (ratio <= 1 + self.high)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ring(Cell):
    """Keeps what TwoSide keeps, and tokens that are far on the wrong side: A >= 0 with r <= 1 - far_low, A <= 0 with
    r >= 1 + far_high. Those are the tokens that the policy most needs to correct; the zone between is left out.
    """

    low: float = 0.2
    high: float = 0.2
    far_low: float = 0.6
    """Distance below 1 from which tokens with A >= 0 pull again."""
    far_high: float = 2.0
    """Distance above 1 from which tokens with A <= 0 pull again."""
    needs = (BEHAVIOR,)

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        ratio, advantage = drift.ratio_of("token"), drift.advantage
        near = (ratio >= 1 - self.low) & (ratio <= 1 + self.high)
        far = ((advantage >= 0) & (ratio <= 1 - self.far_low)) | ((advantage <= 0) & (ratio >= 1 + self.far_high))
        return near | far


@dataclass(frozen=True, kw_only=True, slots=True)
class CenteredBand(Cell):
    """OneSide around c_t = prox/mu instead of 1: keeps A >= 0 with r <= c + high, A <= 0 with r >= c - low.

    A token is stopped for what this training has moved it, not for its age. The same as a clip of pi/prox with low and high
    divided by c; PPO's own where prox is mu. Source: ReMix, arXiv:2507.06892.
    """

    low: float = 0.2
    """Distance below c at which tokens with A <= 0 stop."""
    high: float = 0.2
    """Distance above c at which tokens with A >= 0 stop."""
    needs = (BEHAVIOR, PROXIMAL)

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        tokens = drift.tokens
        assert tokens.behavior is not None and tokens.proximal is not None
        center = bounded_exp((tokens.proximal - tokens.behavior).where(tokens.mask, tokens.logprobs.new_zeros(())))
        ratio, advantage = drift.ratio_of("token"), drift.advantage
        return ((advantage >= 0) & (ratio <= center + self.high)) | ((advantage <= 0) & (ratio >= center - self.low))


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondMoment(Cell):
    """Mask the tokens that moved farthest until the second moment of log r over the harmful ones is within a budget: M2PO.

    Harmful tokens are those that moved the way their advantage pushes: A > 0 with r > 1, A < 0 with r < 1. Tokens that
    moved equally far are masked together, so that their order does not matter. Masked tokens stay in the denominator.
    Source: arXiv:2510.01161, algorithm 1 (the authors' code widens a clip range instead).
    """

    budget: float = 0.04
    """Largest mean of (log r)^2 over harmful tokens, nats squared."""
    needs = (BEHAVIOR,)
    whole_step = True
    ignores = (ADVANTAGE,)

    def keeps(self, drift: Drift) -> Bool[Tensor, " tokens"]:
        import torch

        harmful = (drift.advantage * drift.log_ratio > 0) & drift.tokens.mask
        squares = drift.log_ratio[harmful] ** 2
        nearest_first = squares.sort().values
        means = nearest_first.cumsum(0) / torch.arange(1, len(squares) + 1, device=squares.device, dtype=squares.dtype)
        farthest_equal = torch.searchsorted(nearest_first, squares, right=True) - 1
        keeps = torch.ones_like(harmful)
        keeps[harmful] = means[farthest_equal] <= self.budget
        return keeps
