"""What every cell of a loss says of itself."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""A setting that is divided by, or whose sign would turn the method around."""
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

BEHAVIOR = "behavior_logprobs"
REFERENCE = "reference_logprobs"
PROXIMAL = "proximal_logprobs"
ADVANTAGE, WEIGHT, PAIRS = "advantage", "weight", "pairs"
"""What may say of a completion that its loss has no gradient (see `Algorithm.dead_at`)."""


class Cell:
    """Base of the cells: what a cell reads beyond the policy's own logprobs."""

    __slots__ = ()
    needs: ClassVar[tuple[str, ...]] = ()
    """Of behavior_logprobs (log mu), reference_logprobs and proximal_logprobs (cached scores)."""
    whole_step: ClassVar[bool] = False
    """Whether it needs every token of the optimizer step at once; training then makes two passes."""
    ignores: ClassVar[tuple[str, ...]] = ()
    """Of ADVANTAGE and WEIGHT: a completion that has 0 there changes nothing that the cell makes of the others.

    For cells with `whole_step` to say; the others make nothing of other completions. What no cell reads need not be computed.
    """
