"""Importance: how a token's gradient is weighted for having been drawn from mu rather than pi. Constants of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""|log ratio| is clamped here before exp: e^20 = 4.9e8 is far outside any trust region and still finite in fp32 sums."""


class Importance(Protocol):
    """A weight per token."""

    needs_ratio: bool

    def weight(self, log_ratio: Float[Tensor, " tokens"], sequence: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """w_t, from log pi/mu of each token and the number of the sequence it belongs to."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoImportance:
    """w_t = 1: the data are used as they are."""

    needs_ratio = False

    def weight(self, log_ratio: Float[Tensor, " tokens"], sequence: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        import torch

        return torch.ones_like(log_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRatio:
    """w_t = pi(y_t)/mu(y_t)."""

    needs_ratio = True

    def weight(self, log_ratio: Float[Tensor, " tokens"], sequence: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        return ratio_of(log_ratio)


def ratio_of(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp of a log ratio, clamped so that it stays finite."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
