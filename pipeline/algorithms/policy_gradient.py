"""The policy-gradient kernel: advantage x importance x trust region, plus regularizers, aggregated.

Score form:      loss_t = - sg(w_t 1[t in trust region]) d A log pi(y_t) + regularizers
Surrogate form:  loss_t = - d min(r_t A, clip(r_t) A)                  + regularizers

d is the row's weight, sg stops the gradient, r_t = pi/mu. With w_t = r_t and a one-sided trust region both have the same
gradient; their values differ.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.algorithms.cells.advantages import Advantage, GroupMean
from pipeline.algorithms.cells.aggregation import Aggregation, TokenMean
from pipeline.algorithms.cells.drift import Drift, bounded_exp
from pipeline.algorithms.cells.importance import Importance, NoImportance
from pipeline.algorithms.cells.regularizers import Regularizer
from pipeline.algorithms.cells.trust_region import NoTrustRegion, OneSide, TrustRegion
from pipeline.algorithms.tokens import Loss, Tokens, Totals

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyGradient:
    """A policy-gradient algorithm as a composition of cells."""

    name: str
    summary: str
    """What it is, in a sentence."""
    formula: str
    paper: str
    """Where it is from."""
    advantage: Advantage = dataclasses.field(default_factory=GroupMean)
    importance: Importance = dataclasses.field(default_factory=NoImportance)
    trust_region: TrustRegion = dataclasses.field(default_factory=NoTrustRegion)
    regularizers: tuple[Regularizer, ...] = ()
    aggregation: Aggregation = dataclasses.field(default_factory=TokenMean)
    surrogate: bool = False
    """Minimise PPO's clipped surrogate itself instead of its score form. Needs a OneSide trust region."""

    def __post_init__(self) -> None:
        if self.surrogate and not isinstance(self.trust_region, OneSide):
            raise ValueError(f"{self.name}: the surrogate form clips on one side; its trust region must be OneSide")

    def replace(self, **changes: Any) -> PolicyGradient:
        """The same algorithm with other cells."""
        return dataclasses.replace(self, **changes)

    @property
    def needs(self) -> tuple[str, ...]:
        """Rollout columns beyond tokens and rewards that the loss reads."""
        regularized = any(regularizer.needs_ratio for regularizer in self.regularizers if regularizer.coefficient)
        ratio = self.surrogate or self.importance.needs_ratio or self.trust_region.needs_ratio or regularized
        return ("behavior_logprobs",) if ratio else ()

    def warning(self, epochs: int) -> str | None:
        """Why these settings may collapse on a frozen snapshot, or None."""
        held_back = not isinstance(self.trust_region, NoTrustRegion) or any(r.coefficient for r in self.regularizers)
        if epochs == 1 or held_back:
            return None
        return (
            f"{self.name} has neither a trust region nor a regularizer: over {epochs} epochs on the same rollouts its negative "
            "advantages push without bound, and the policy may collapse"
        )

    def loss(self, tokens: Tokens, totals: Totals) -> Loss:
        """This part's share of the optimiser step's loss.

        Args:
            tokens: whole sequences of the step, any number of them.
            totals: sizes of the whole step. Shares of a partition of the step add up to the loss of the step.
        """
        log_ratio = self._log_ratio(tokens)
        advantage = tokens.per_token(tokens.advantage)
        drift = Drift(log_ratio=log_ratio.detach(), advantage=advantage, tokens=tokens)
        keeps = self.trust_region.keeps(drift)
        if self.surrogate:
            loss = self._clipped_surrogate(log_ratio, advantage)
        else:
            factor = self.importance.weight(drift) * keeps
            loss = -factor * advantage * tokens.logprobs
        loss = loss * tokens.per_token(tokens.weight)
        for regularizer in self.regularizers:
            if regularizer.coefficient:
                loss = loss + regularizer.term(tokens, log_ratio)
        loss = loss.where(tokens.mask, loss.new_zeros(()))
        return Loss(value=self.aggregation.total(loss, tokens, totals), stopped=~keeps & tokens.mask)

    def _log_ratio(self, tokens: Tokens) -> Float[Tensor, " tokens"]:
        """log pi/mu, 0 where a token is masked out (so that exp is harmless there) or where no cell reads it."""
        if tokens.behavior is None:
            return tokens.logprobs * 0.0
        return (tokens.logprobs - tokens.behavior).where(tokens.mask, tokens.logprobs.new_zeros(()))

    def _clipped_surrogate(
        self, log_ratio: Float[Tensor, " tokens"], advantage: Float[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        import torch

        assert isinstance(self.trust_region, OneSide)
        ratio = bounded_exp(log_ratio)
        clipped = ratio.clamp(1 - self.trust_region.low, 1 + self.trust_region.high)
        return -torch.minimum(ratio * advantage, clipped * advantage)

    def recipe(self) -> dict[str, Any]:
        """Everything that decides the loss, as JSON."""
        cells = {name: getattr(self, name) for name in ("importance", "trust_region", "aggregation")}
        return {
            "kernel": "policy_gradient",
            "surrogate": self.surrogate,
            "regularizers": [_recipe(regularizer) for regularizer in self.regularizers if regularizer.coefficient],
            **{name: _recipe(cell) for name, cell in cells.items()},
        }

    def shaping_recipe(self) -> dict[str, Any]:
        """Everything that decides the advantage, as JSON."""
        return _recipe(self.advantage)


def _recipe(cell: Any) -> dict[str, Any]:
    return {"cell": type(cell).__name__, **dataclasses.asdict(cell)}
