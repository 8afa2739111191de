"""How far the policy has moved from the data: what importance weights and trust regions read. Constants of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.algorithms.tokens import Tokens

Level = Literal["token", "sequence", "geometric"]
"""Of what a ratio is: the token; the whole completion, prod_t r_t; or its geometric mean, (prod_t r_t)^(1/length)."""
LOG_RATIO_LIMIT = 20.0
"""|log ratio| is clamped here before exp: e^20 = 4.9e8 is far outside any trust region and still finite in fp32 sums."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """log pi/mu of every token and the advantages, spread over tokens. Nothing here has a gradient."""

    measured: Float[Tensor, " tokens"] | None
    """log pi(y_t)/mu(y_t); 0 where a token is masked out. None where log mu is not to be had."""
    advantage: Float[Tensor, " tokens"]
    tokens: Tokens

    @property
    def log_ratio(self) -> Float[Tensor, " tokens"]:
        """`measured`, for cells that need it.

        Raises:
            ValueError: a cell reads it that does not say so.
        """
        if self.measured is None:
            raise ValueError("a cell reads the ratio pi/mu without saying so; set needs = (BEHAVIOR,) in its class")
        return self.measured

    def log_ratio_of(self, level: Level) -> Float[Tensor, " tokens"]:
        """The log ratio at a level, spread over the tokens."""
        if level == "token":
            return self.log_ratio
        total = self.tokens.per_sequence(self.log_ratio)
        if level == "geometric":
            total = total / self.tokens.lengths.clamp(min=1.0)
        return self.tokens.per_token(total)

    def sum_over_step(self, values: Float[Tensor, " tokens"]) -> Float[Tensor, ""]:
        """Sum over masked-in tokens. Over the whole step where the cell asks for it (`Cell.whole_step`)."""
        return values.where(self.tokens.mask, values.new_zeros(())).sum()

    def ratio_of(self, level: Level) -> Float[Tensor, " tokens"]:
        """exp of `log_ratio_of`, finite."""
        return bounded_exp(self.log_ratio_of(level))


def bounded_exp(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp of a log ratio, clamped so that it stays finite."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
