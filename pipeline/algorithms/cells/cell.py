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


class Cell:
    """Base of the cells: what a cell reads beyond the policy's own logprobs."""

    __slots__ = ()
    needs: ClassVar[tuple[str, ...]] = ()
    """Of behavior_logprobs (log mu), reference_logprobs and proximal_logprobs (cached scores)."""
    whole_step: ClassVar[bool] = False
    """Whether it needs every token of the optimizer step at once; training then makes two passes."""
