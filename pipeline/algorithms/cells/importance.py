"""Importance: how a token's gradient is weighted for having been drawn from mu rather than pi. Constants of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.algorithms.cells.cell import BEHAVIOR, Cell, NotNegative
from pipeline.algorithms.cells.drift import Drift, Level, bounded_exp

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

UNBOUNDED = 1e9
"""Written for "no upper bound": a ratio never gets there (see `LOG_RATIO_LIMIT`)."""


class Importance(Protocol):
    """A weight per token."""

    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def whole_step(self) -> bool: ...

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        """w_t of each token."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class NoImportance(Cell):
    """w_t = 1: the data are used as they are."""

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        import torch

        return torch.ones_like(drift.advantage)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio(Cell):
    """w_t = the ratio pi/mu, kept within bounds that depend on the sign of the advantage.

    w = clamp(r, positive_low, positive_high) where A >= 0, clamp(r, negative_low, negative_high) where A < 0. Without
    bounds this is exact importance sampling; [1, 1] on one side is plain weight 1 there. Source of the four bounds: TOPR,
    arXiv:2503.14286.
    """

    level: Level = "token"
    """Whose ratio: token, sequence (the product over the completion) or geometric (its length-normalized form)."""
    positive_low: float = 0.0
    positive_high: float = UNBOUNDED
    negative_low: float = 0.0
    negative_high: float = UNBOUNDED
    needs = (BEHAVIOR,)

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        ratio = drift.ratio_of(self.level)
        positive = ratio.clamp(self.positive_low, self.positive_high)
        negative = ratio.clamp(self.negative_low, self.negative_high)
        return positive.where(drift.advantage >= 0, negative)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClippedGeometricRatio(Cell):
    """w_t = exp(mean_t of log r_t, each clipped in the direction its advantage pushes) where token t is not clipped, else 0.

    log r_t is held at most `limit` where A >= 0 and at least -limit where A < 0. A clipped token counts in the mean, which is
    the objective of its completion, and has no part in its gradient: so the weight is also the trust region. Source: GMPO,
    arXiv:2507.20673.
    """

    limit: NotNegative = 0.4
    """Largest |log r_t| that counts, nats."""
    needs = (BEHAVIOR,)

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        rises = drift.advantage >= 0
        clipped = drift.log_ratio.clamp(max=self.limit).where(rises, drift.log_ratio.clamp(min=-self.limit))
        mean = drift.tokens.per_sequence(clipped) / drift.tokens.lengths.clamp(min=1.0)
        return bounded_exp(drift.tokens.per_token(mean)) * (clipped == drift.log_ratio)


@dataclass(frozen=True, kw_only=True, slots=True)
class SigmoidGate(Cell):
    """w_t = r f'(r) = 4 s (1 - s) r with s = sigmoid(tau (r - 1)): SAPO's soft clip, 1 at r = 1 and fading on both sides.

    f(r) = 4/tau sigmoid(tau (r - 1)) is the objective; its gradient is w_t A grad log pi. Source: arXiv:2511.20347.
    """

    positive_temperature: float = 1.0
    """tau where A >= 0."""
    negative_temperature: float = 1.05
    """tau where A < 0: a little sharper."""
    needs = (BEHAVIOR,)

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        ratio, above = drift.ratio_of("token"), drift.advantage >= 0
        gates = [4 * s * (1 - s) for s in ((tau * (ratio - 1)).sigmoid() for tau in self._temperatures())]
        return gates[0].where(above, gates[1]) * ratio

    def _temperatures(self) -> tuple[float, float]:
        return self.positive_temperature, self.negative_temperature


@dataclass(frozen=True, kw_only=True, slots=True)
class GammaGate(Cell):
    """w = e^lambda W^k e^(-lambda W) on the whole completion's ratio W: VESPO. 1 at W = 1, largest at W = k / lambda.

    Source: arXiv:2602.10693.
    """

    positive_k: float = 2.0
    positive_lambda: float = 3.0
    negative_k: float = 3.0
    negative_lambda: float = 2.0
    needs = (BEHAVIOR,)

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        log_w = drift.log_ratio_of("sequence").clamp(-18.420680743952367, 20.0)
        w = log_w.exp()
        positive = (self.positive_lambda * (1 - w) + self.positive_k * log_w).exp()
        negative = (self.negative_lambda * (1 - w) + self.negative_k * log_w).exp()
        return positive.where(drift.advantage >= 0, negative)


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveSampleCap(Cell):
    """w_t = min(r_t, ESS), ESS = (sum r)^2 / (n sum r^2) over the step's tokens: P3O. Source: arXiv:2605.12380."""

    needs = (BEHAVIOR,)
    whole_step = True

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        return drift.ratio_of("token").minimum(effective_sample_size(drift))


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceProbability(Cell):
    """w = p = exp(mean_t log pi): negatives fade as they become unlikely. Needs no log mu.

    With labels z in {1, 0} as A = +1, -1 and the loss 1 - p or p of a completion, the gradient is -A p grad (mean_t log pi).
    Source: OPG, arXiv:2601.14716.
    """

    def weight(self, drift: Drift) -> Float[Tensor, " tokens"]:
        tokens = drift.tokens
        mean = tokens.per_sequence(tokens.logprobs.detach()) / tokens.lengths.clamp(min=1.0)
        return tokens.per_token(mean.exp())


def effective_sample_size(drift: Drift) -> Float[Tensor, ""]:
    """(sum r)^2 / (n sum r^2) over masked-in tokens: 1 on policy, 1/n when one token outweighs all others."""
    ratio = drift.ratio_of("token")
    count = drift.tokens.mask.sum().clamp(min=1)
    return drift.sum_over_step(ratio) ** 2 / (count * drift.sum_over_step(ratio**2)).clamp(min=1e-30)
