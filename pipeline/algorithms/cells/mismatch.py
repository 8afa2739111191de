"""Corrections for data that the trainer's own policy did not draw: engine against trainer, or an older policy.

The anchor of every ratio becomes prox (the policy at the start of this training, scored with the trainer's kernels), and
the loss is weighted by prox/mu. An algorithm without a correction has mu as its anchor, so its ratio already holds prox/mu:
the correction can never be applied twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from pipeline.algorithms.cells.cell import BEHAVIOR, PROXIMAL, Cell
from pipeline.algorithms.cells.drift import Drift, Level
from pipeline.algorithms.cells.importance import UNBOUNDED

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.algorithms.tokens import Tokens


class Mismatch(Protocol):
    """An anchor and a weight per token."""

    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def whole_step(self) -> bool: ...

    def anchor(self, tokens: Tokens) -> Float[Tensor, " tokens"] | None:
        """Logprobs that ratios are taken against; None if there are none, and then no cell may read a ratio."""
        ...

    def weight(self, tokens: Tokens) -> Float[Tensor, " tokens"]:
        """Factor of the loss. A constant of the gradient."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoMismatch(Cell):
    """Ratios are against mu; no further weight."""

    def anchor(self, tokens: Tokens) -> Float[Tensor, " tokens"] | None:
        return tokens.behavior

    def weight(self, tokens: Tokens) -> Float[Tensor, " tokens"]:
        import torch

        return torch.ones_like(tokens.logprobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProximalRatio(Cell):
    """Ratios are against prox; the weight is prox/mu, truncated or masked.

    truncate: the weight is held within [low, high]; mask: it is 0 outside. With no bounds: decoupled PPO (arXiv:2110.00641).
    """

    level: Level = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    low: float = 0.0
    high: float = UNBOUNDED
    needs = (BEHAVIOR, PROXIMAL)

    def anchor(self, tokens: Tokens) -> Float[Tensor, " tokens"]:
        assert tokens.proximal is not None
        return tokens.proximal

    def weight(self, tokens: Tokens) -> Float[Tensor, " tokens"]:
        assert tokens.behavior is not None
        stale = (self.anchor(tokens) - tokens.behavior).where(tokens.mask, tokens.logprobs.new_zeros(()))
        ratio = Drift(measured=stale, advantage=stale, tokens=tokens).ratio_of(self.level)
        if self.mode == "truncate":
            return ratio.clamp(self.low, self.high)
        return ratio * ((ratio >= self.low) & (ratio <= self.high))


@dataclass(frozen=True, kw_only=True, slots=True)
class TruncatedImportance(ProximalRatio):
    """Ratios are against prox; the weight is min(prox/mu, high), of the token or of the completion (level: sequence)."""

    high: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedImportance(ProximalRatio):
    """Ratios are against prox; the weight is prox/mu within [low, high], 0 outside, of the token or of the completion."""

    mode: Literal["truncate", "mask"] = "mask"
    high: float = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class InterpolatedProximal(Cell):
    """log prox = log mu + alpha (log pi - log mu), alpha = (age - 1)/age clamped to [0, 1]: A-3PO, no extra forward pass.

    age is how many policy versions lie between the one being trained and the one that drew the row. Source:
    arXiv:2512.06547.
    """

    high: float = UNBOUNDED
    """Truncation of the weight prox/mu."""
    needs = (BEHAVIOR,)

    def anchor(self, tokens: Tokens) -> Float[Tensor, " tokens"]:
        assert tokens.behavior is not None and tokens.age is not None
        alpha = tokens.per_token(((tokens.age - 1) / tokens.age.clamp(min=1.0)).clamp(0.0, 1.0))
        moved = (tokens.logprobs.detach() - tokens.behavior).where(tokens.mask, tokens.logprobs.new_zeros(()))
        return (tokens.behavior + alpha * moved).where(tokens.mask, tokens.behavior)

    def weight(self, tokens: Tokens) -> Float[Tensor, " tokens"]:
        assert tokens.behavior is not None
        stale = (self.anchor(tokens) - tokens.behavior).where(tokens.mask, tokens.logprobs.new_zeros(()))
        return Drift(measured=stale, advantage=stale, tokens=tokens).ratio_of("token").clamp(max=self.high)
