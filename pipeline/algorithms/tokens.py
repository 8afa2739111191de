"""What a loss is computed from: completion tokens of whole sequences, flat, with what is known of each sequence.

There is no padding here, so nothing can depend on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """Completion tokens of whole sequences. All floating tensors are fp32 (or fp64 in tests)."""

    logprobs: Float[Tensor, " tokens"]
    """log pi of each token under the policy being trained, at the temperature it was sampled with. Has a gradient."""
    entropy: Float[Tensor, " tokens"]
    """Entropy of the policy's distribution at each token, nats. Has a gradient."""
    behavior: Float[Tensor, " tokens"] | None
    """log mu of each token; None if the data have none."""
    mask: Bool[Tensor, " tokens"]
    """True for tokens that the behavior policy drew; the others carry no loss."""
    sequence: Int[Tensor, " tokens"]
    """Number of the sequence that each token belongs to."""
    advantage: Float[Tensor, " sequences"]
    weight: Float[Tensor, " sequences"]
    """Factor of the sequence's loss."""
    lengths: Float[Tensor, " sequences"]
    """Number of masked-in tokens of each sequence."""
    group: Int[Tensor, " sequences"] | None = None
    """Number of the group that each sequence belongs to."""
    number: Int[Tensor, " sequences"] | None = None
    """A random number below 2^32 of each completion, from its group and sample: the same in any order and cut."""
    age: Float[Tensor, " sequences"] | None = None
    """Policy versions between the one being made and the one that drew the sequence: 1 for fresh ones."""
    reference: Float[Tensor, " tokens"] | None = None
    """log ref of each token, a cached score."""
    proximal: Float[Tensor, " tokens"] | None = None
    """log prox of each token, a cached score: the policy at the start of this training."""
    pairs: Int[Tensor, "pairs 2"] | None = None
    """Numbers of the chosen and the rejected sequence of each pair."""
    preference: Float[Tensor, " pairs"] | None = None
    """Probability that the chosen one is better."""
    token_weight: Float[Tensor, " tokens"] | None = None
    """Weight of each token in the margin of a pair; None: all weigh 1."""

    credit: Float[Tensor, " tokens"] | None = None
    """Advantage of each token's turn, where turns have their own; None where all of a sequence's tokens have its advantage."""

    @property
    def advantages(self) -> Float[Tensor, " tokens"]:
        """The advantage of each token."""
        return self.per_token(self.advantage) if self.credit is None else self.credit

    def per_token(self, values: Shaped[Tensor, " sequences"]) -> Shaped[Tensor, " tokens"]:
        """Spread a value of each sequence over its tokens."""
        return values[self.sequence]

    def per_sequence(self, values: Float[Tensor, " tokens"]) -> Float[Tensor, " sequences"]:
        """Sum a value of each token over its sequence; masked-out tokens count 0."""
        kept = values.where(self.mask, values.new_zeros(()))
        return values.new_zeros(len(self.advantage)).index_add(0, self.sequence, kept)

    def group_mean(self, values: Float[Tensor, " sequences"]) -> Float[Tensor, " sequences"]:
        """Mean of a value over each sequence's group (those of its sequences that are here)."""
        assert self.group is not None
        count = int(self.group.max()) + 1 if len(self.group) else 0
        sums = values.new_zeros(count).index_add(0, self.group, values)
        sizes = values.new_zeros(count).index_add(0, self.group, values.new_ones(len(values)))
        return (sums / sizes.clamp(min=1.0))[self.group]


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Sizes of the whole optimizer step."""

    tokens: float
    """Masked-in tokens."""
    sequences: float
    """Completions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A part's share of the step's loss, and what happened to its tokens."""

    value: Float[Tensor, ""]
    stopped: Bool[Tensor, " tokens"]
    """True where a trust region, or a weight of 0, stopped the token."""
