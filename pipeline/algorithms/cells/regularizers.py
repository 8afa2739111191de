"""Regularizers: terms added to the loss of every token. A trust region does not mask them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.algorithms.cells.drift import LOG_RATIO_LIMIT

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.algorithms.tokens import Tokens


class Regularizer(Protocol):
    """A term per token."""

    coefficient: float
    needs_ratio: bool

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """coefficient x term, differentiable in the current logprobs."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BehaviorKL:
    """coefficient x (1/r - 1 + log r): Schulman's k3 estimate of KL(pi || mu) when tokens are drawn from pi."""

    coefficient: float = 0.0
    needs_ratio = True

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        limited = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return self.coefficient * ((-limited).exp() - 1 + limited)


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyBonus:
    """-coefficient x H(pi): keeps the policy from settling early."""

    coefficient: float = 0.0
    needs_ratio = False

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        return -self.coefficient * tokens.entropy
