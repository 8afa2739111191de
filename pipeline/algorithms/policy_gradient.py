"""The policy-gradient kernel: advantage x importance x trust region, plus regularizers, aggregated.

Score form:      loss_t = - sg(w_t 1[t in trust region]) d c_t A log pi(y_t) + regularizers
Surrogate form:  loss_t = - d c_t min(r_t A, clip(r_t) A)                    + regularizers,   w_t = r_t and no other

d is the row's weight, c_t the mismatch correction, sg stops the gradient, r_t = pi/anchor (mu unless a correction says
otherwise). With w_t = r_t and a one-sided trust region both have the same gradient; their values differ.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.algorithms.algorithm import Algorithm, cells_of
from pipeline.algorithms.cells.advantages import Constant, GroupMean, Signed
from pipeline.algorithms.cells.aggregation import Aggregation, TokenMean
from pipeline.algorithms.cells.cell import ADVANTAGE, WEIGHT
from pipeline.algorithms.cells.drift import Drift, bounded_exp
from pipeline.algorithms.cells.importance import Importance, NoImportance, Ratio
from pipeline.algorithms.cells.mismatch import Mismatch, NoMismatch
from pipeline.algorithms.cells.regularizers import Regularizer
from pipeline.algorithms.cells.trust_region import CenteredBand, NoTrustRegion, OneSide, TrustRegion
from pipeline.algorithms.tokens import Loss, Tokens, Totals

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradient(Algorithm):
    """A policy-gradient algorithm as a composition of cells."""

    importance: Importance = dataclasses.field(default_factory=NoImportance)
    trust_region: TrustRegion = dataclasses.field(default_factory=NoTrustRegion)
    mismatch: Mismatch = dataclasses.field(default_factory=NoMismatch)
    regularizers: tuple[Regularizer, ...] = ()
    aggregation: Aggregation = dataclasses.field(default_factory=TokenMean)
    surrogate: bool = False
    """Minimize PPO's clipped surrogate itself instead of its score form. Needs a OneSide trust region on tokens."""

    kernel: ClassVar[str] = "policy_gradient"
    loss_cells: ClassVar[tuple[str, ...]] = ("importance", "trust_region", "mismatch", "regularizers", "aggregation")

    def __post_init__(self) -> None:
        if self.surrogate and not (isinstance(self.trust_region, OneSide) and self.trust_region.level == "token"):
            raise ValueError(f"{self.name}: the surrogate form clips tokens on one side; its trust region must be OneSide")
        if self.surrogate and self.importance not in (Ratio(), NoImportance()):
            raise ValueError(
                f"{self.name}: the surrogate form weighs tokens by the ratio pi/mu itself and reads no importance setting; use "
                "an algorithm in score form, such as rec-oneside-is (PPO's gradient with importance weights)"
            )
        if isinstance(self.trust_region, CenteredBand) and not isinstance(self.mismatch, NoMismatch):
            raise ValueError(f"{self.name}: its trust region is centered on prox/mu already, and would correct for it twice")

    @property
    def settled(self) -> tuple[str, ...]:
        return ("importance",) if self.surrogate else ()

    def warning(self, epochs: int) -> str | None:
        if epochs == 1 or self._is_held_back() or not self._has_negatives():
            return None
        return (
            f"{self.name} has neither a trust region nor a regularizer nor weights that end the pull of its negatives, and its "
            f"baseline is at or above the value of the data: over {epochs} epochs on the same rollouts its negative advantages "
            "push without bound, and the policy may collapse"
        )

    @property
    def dead_at(self) -> tuple[str, ...]:
        if any(regularizer.coefficient for regularizer in self.regularizers):
            return ()
        cells = [cell for slot, _, cell in cells_of(self, self.loss_cells) if slot != "regularizers" and cell.whole_step]
        return tuple(name for name in (ADVANTAGE, WEIGHT) if all(name in getattr(cell, "ignores", ()) for cell in cells))

    def _is_held_back(self) -> bool:
        """Whether a completion with a negative advantage stops pulling, or fades, as the policy moves away from it."""
        stops = not isinstance(self.trust_region, NoTrustRegion) and getattr(self.trust_region, "low", 0.0) < 1
        floor = getattr(self.importance, "negative_low", 0.0)
        fades = self.surrogate or (not isinstance(self.importance, NoImportance) and floor <= 0)
        return stops or fades or any(regularizer.coefficient for regularizer in self.regularizers)

    def _has_negatives(self) -> bool:
        """Whether there are negative advantages that no lowered baseline outweighs."""
        match self.advantage:
            case Constant():
                return False
            case Signed(negative=negative):
                return negative > 0
            case GroupMean(shift=shift):
                return shift >= 0
        return True

    def recipe(self) -> dict[str, Any]:
        return {**Algorithm.recipe(self), "surrogate": self.surrogate}

    def loss(self, tokens: Tokens, totals: Totals) -> Loss:
        log_ratio = _difference(tokens, self.mismatch.anchor(tokens))
        measured = None if log_ratio is None else log_ratio.detach()
        drift = Drift(measured=measured, advantage=tokens.advantages, tokens=tokens)
        keeps = self.trust_region.keeps(drift)
        if self.surrogate:
            assert log_ratio is not None
            loss = self._clipped_surrogate(log_ratio, drift.advantage)
        else:
            weight = self.importance.weight(drift) * keeps
            loss, keeps = -weight * drift.advantage * tokens.logprobs, weight != 0
        loss = loss * tokens.per_token(tokens.weight) * self.mismatch.weight(tokens)
        from_data = log_ratio if isinstance(self.mismatch, NoMismatch) else _difference(tokens, tokens.behavior)
        for regularizer in self.regularizers:
            if regularizer.coefficient:
                loss = loss + regularizer.term(tokens, from_data)
        loss = loss.where(tokens.mask, loss.new_zeros(()))
        return Loss(value=self.aggregation.total(loss, tokens, totals), stopped=~keeps & tokens.mask)

    def _clipped_surrogate(
        self, log_ratio: Float[Tensor, " tokens"], advantage: Float[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        import torch

        region = self.trust_region
        assert isinstance(region, OneSide)
        ratio = bounded_exp(log_ratio)
        clipped = ratio.clamp(1 - region.low, 1 + region.high)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        return -gain.where(advantage >= 0, gain.maximum(region.dual * advantage))


def _difference(tokens: Tokens, anchor: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"] | None:
    """log pi - anchor, 0 where a token is masked out, so that exp is harmless there. None without an anchor."""
    if anchor is None:
        return None
    return (tokens.logprobs - anchor).where(tokens.mask, tokens.logprobs.new_zeros(()))
