"""The policy gradient of Nash-MD: towards what wins against the mixture of policy and reference, and not far from the reference.

    L = - sum_i sg[ w_i ( P_i - 1/2 - tau Delta_i ) ] log pi(y_i),   Delta_i = sum_t log pi(y_t)/ref(y_t),  w_i = pi(y_i)/pi'(y_i)

The paper draws y from the policy pi and its opponents y' from the mixture pi'. Here all completions of a group are drawn from pi'
(`generate.mixture`): the others of the group are a completion's opponents, P_i is its win rate against them, and w_i, the ratio
to the density that it was drawn from, makes the mean one over pi. Where nothing is mixed pi' is the policy: self-play.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from pipeline.algorithms.algorithm import Algorithm
from pipeline.algorithms.cells.advantages import WinRate
from pipeline.algorithms.cells.cell import BEHAVIOR, REFERENCE, WEIGHT, Cell, NotNegative, Positive
from pipeline.algorithms.tokens import Loss, Tokens, Totals

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class AgainstMixture(Cell):
    """sg[w (A - tau Delta)], on sums over the completion. Source: Nash-MD-PG, arXiv:2312.00886."""

    tau: NotNegative = 0.008
    """Pull back to the reference."""
    cap: Positive = 10.0
    """Largest w: what the policy likes this much better than its mixture counts no more."""
    needs = (BEHAVIOR, REFERENCE)


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfPlay(Algorithm):
    """An algorithm whose completions play against the others of their group."""

    game: AgainstMixture = field(default_factory=AgainstMixture)

    kernel: ClassVar[str] = "self_play"
    loss_cells: ClassVar[tuple[str, ...]] = ("game",)

    @property
    def dead_at(self) -> tuple[str, ...]:
        return (WEIGHT,)

    def loss(self, tokens: Tokens, totals: Totals) -> Loss:
        import torch

        assert tokens.behavior is not None and tokens.reference is not None
        own, drawn, reference = (_summed(tokens, values) for values in (tokens.logprobs, tokens.behavior, tokens.reference))
        moved, ratio = (own - reference).detach(), (own - drawn).detach()
        weight = ratio.clamp(max=math.log(self.game.cap)).exp()
        score = weight * (tokens.advantage - self.game.tau * moved)
        value = -(tokens.weight * score * own).sum() / max(totals.sequences, 1)
        return Loss(value=value, stopped=torch.zeros_like(tokens.mask))


def _summed(tokens: Tokens, values: Float[Tensor, " tokens"]) -> Float[Tensor, " sequences"]:
    """Of each completion; what a masked-out token has may be anything."""
    return tokens.per_sequence(values.where(tokens.mask, values.new_zeros(())))


NASH_MD = SelfPlay(
    name="nash-md",
    summary=(
        "Policy gradient towards what wins against the mixture of policy and reference, which generate.mixture draws from; "
        "without it, self-play. The win rate is against the others of the group."
    ),
    formula="-sg[w (P(y beats the others) - 1/2 - tau Delta)] log pi(y),  w = min(pi/mu, cap),  Delta = log pi(y)/ref(y)",
    paper="arXiv:2312.00886",
    advantage=WinRate(),
)

ALGORITHMS = (NASH_MD,)
