"""Aggregation: how losses of tokens become the loss of an optimizer step.

Denominators are those of the whole step, so that the sum over micro-batches does not depend on how the step was cut.
Tokens that a trust region or a mismatch correction stopped stay in the denominator. Completions that shaping dropped (as RED-Drop
does) are not in the step at all, so neither are they in its denominator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.algorithms.cells.cell import Cell, Positive

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.algorithms.tokens import Tokens, Totals


class Aggregation(Protocol):
    """A weighted sum over tokens."""

    def total(self, loss: Float[Tensor, " tokens"], tokens: Tokens, totals: Totals) -> Float[Tensor, ""]:
        """This part's share of the step's loss, from the loss of each token (already multiplied by its mask)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMean(Cell):
    """sum of all tokens / number of tokens: long completions weigh more. Source: DAPO, arXiv:2503.14476."""

    def total(self, loss: Float[Tensor, " tokens"], tokens: Tokens, totals: Totals) -> Float[Tensor, ""]:
        return loss.sum() / max(totals.tokens, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceMean(Cell):
    """mean over completions of the mean over their tokens: every completion weighs the same. Source: GRPO, arXiv:2402.03300."""

    def total(self, loss: Float[Tensor, " tokens"], tokens: Tokens, totals: Totals) -> Float[Tensor, ""]:
        per_token = tokens.per_token(1.0 / tokens.lengths.clamp(min=1.0))
        return (loss * per_token).sum() / max(totals.sequences, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceSum(Cell):
    """mean over completions of the sum over their tokens, over a constant. Source: Dr. GRPO, arXiv:2503.20783."""

    divisor: Positive = 1.0
    """Constant length, such as the longest completion allowed."""

    def total(self, loss: Float[Tensor, " tokens"], tokens: Tokens, totals: Totals) -> Float[Tensor, ""]:
        return loss.sum() / (max(totals.sequences, 1) * self.divisor)
