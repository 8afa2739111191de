"""The regression kernel: fit the completion's log ratio to its advantage. No importance weights, no clipping.

    loss_i = d_i (beta Delta_i - A_i)^2,   Delta_i = sum_t log pi(y_t)/anchor(y_t)   (or its mean over tokens)

With A = r - V* its minimum is the policy proportional to anchor x exp(r / beta).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.algorithms.algorithm import Algorithm
from pipeline.algorithms.cells.cell import BEHAVIOR, REFERENCE, WEIGHT, Cell, Positive
from pipeline.algorithms.tokens import Loss, Tokens, Totals


@dataclass(frozen=True, kw_only=True, slots=True)
class LogRatioTarget(Cell):
    """beta Delta -> A, with mu as anchor."""

    beta: Positive = 1.0
    length_normalized: bool = False
    """Use the mean of log ratios over tokens instead of their sum."""
    needs = (BEHAVIOR,)
    anchor: ClassVar[Literal["behavior", "reference"]] = "behavior"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceTarget(LogRatioTarget):
    """beta Delta -> A, with a frozen reference as anchor."""

    needs = (REFERENCE,)
    anchor: ClassVar[Literal["behavior", "reference"]] = "reference"


@dataclass(frozen=True, kw_only=True, slots=True)
class Regression(Algorithm):
    """A squared-regression algorithm."""

    target: LogRatioTarget

    kernel: ClassVar[str] = "regression"
    loss_cells: ClassVar[tuple[str, ...]] = ("target",)

    @property
    def dead_at(self) -> tuple[str, ...]:
        return (WEIGHT,)

    def loss(self, tokens: Tokens, totals: Totals) -> Loss:
        import torch

        anchor = tokens.behavior if self.target.anchor == "behavior" else tokens.reference
        assert anchor is not None
        moved = tokens.per_sequence((tokens.logprobs - anchor).where(tokens.mask, tokens.logprobs.new_zeros(())))
        if self.target.length_normalized:
            moved = moved / tokens.lengths.clamp(min=1.0)
        errors = (self.target.beta * moved - tokens.advantage) ** 2
        value = (tokens.weight * errors).sum() / max(totals.sequences, 1)
        return Loss(value=value, stopped=torch.zeros_like(tokens.mask))
