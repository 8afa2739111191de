"""Regularizers: terms added to the loss of every token. A trust region does not mask them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import Field

from pipeline.algorithms.cells.cell import BEHAVIOR, PROXIMAL, REFERENCE, Cell
from pipeline.algorithms.cells.drift import LOG_RATIO_LIMIT, bounded_exp

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from pipeline.algorithms.tokens import Tokens

Estimator = Literal["k1", "k2", "k3"]
"""Of KL(pi || anchor) from a token that pi may not have drawn."""


class Regularizer(Protocol):
    """A term per token."""

    @property
    def coefficient(self) -> float: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def whole_step(self) -> bool: ...

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        """coefficient x term, differentiable in the current logprobs.

        `log_ratio` is log pi/mu, 0 where masked out; None where log mu is not to be had.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceKL(Cell):
    """coefficient x an estimate of KL(pi || ref) per token. With q = ref/pi: k1 = -log q, k2 = (log q)^2 / 2, k3 = q - 1 - log q.

    As losses they differ: on policy only k2 has the reverse KL's gradient. Of completions that another policy drew all of them
    pull towards something else, however far it is from pi; this is nevertheless what GRPO's paper adds. See WeightedReferenceKL.
    Source: Schulman, "Approximating KL divergence".
    """

    coefficient: float = 0.0
    estimator: Estimator = "k3"
    needs = (REFERENCE,)

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        return self.coefficient * _kl(tokens, tokens.reference, self.estimator)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedReferenceKL(Cell):
    """coefficient x r_t x an estimate of KL(pi || ref) per token, r_t = pi/mu: ReferenceKL for completions of any policy.

    In the mean over mu every estimator then has the gradient of the reverse KL of a token. For k1 and k3 the ratio is part of the
    gradient, for k2 it is a constant. The ratio is the token's own and is not clipped. Source: DeepSeek-V3.2, arXiv:2512.02556,
    with k3; TRL has it as `use_bias_correction_kl`, off by default.
    """

    coefficient: float = 0.0
    estimator: Estimator = "k3"
    needs = (BEHAVIOR, REFERENCE)

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        assert log_ratio is not None
        ratio = bounded_exp(log_ratio)
        if self.estimator == "k2":
            ratio = ratio.detach()
        return self.coefficient * ratio * _kl(tokens, tokens.reference, self.estimator)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvexKL(Cell):
    """coefficient x (share KL(pi || ref) + (1 - share) KL(pi || prox)): near the base model at first, near itself later.

    share = max(1 - 0.1 ceil(max(step - 50, 0) / 10), 0.5) falls from 1 to 1/2 between the steps 50 and 91. Source: ReMix,
    arXiv:2507.06892, whose previous policy is here the one at the start of this training.
    """

    coefficient: float = 1e-3
    """The paper's value is not known to us."""
    step: Annotated[int, Field(ge=0)] = 0
    """Training step of the paper's schedule; the same for a whole training on a snapshot."""
    estimator: Estimator = "k3"
    needs = (REFERENCE, PROXIMAL)

    @property
    def share(self) -> float:
        """Weight of the base model."""
        return max(1 - 0.1 * math.ceil(max(self.step - 50, 0) / 10), 0.5)

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        base, previous = (_kl(tokens, anchor, self.estimator) for anchor in (tokens.reference, tokens.proximal))
        return self.coefficient * (self.share * base + (1 - self.share) * previous)


@dataclass(frozen=True, kw_only=True, slots=True)
class SquaredLogRatio(Cell):
    """coefficient x (log r_t)^2, or x (sum_t log r_t)^2 / length of the whole completion: OPMD's penalty, tau/2 = coefficient.

    The sequence form is Kimi's theory, divided by the length to match a token mean; the token form is what codes do. A
    coefficient does not carry over between them: the sequence penalty is up to `length` times the larger.
    """

    coefficient: float = 0.1
    level: Literal["token", "sequence"] = "token"
    needs = (BEHAVIOR,)

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        assert log_ratio is not None
        if self.level == "token":
            return self.coefficient * log_ratio**2
        lengths = tokens.lengths.clamp(min=1.0)
        return self.coefficient * tokens.per_token(tokens.per_sequence(log_ratio) ** 2 / lengths)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpreadOfLogRatio(Cell):
    """coefficient x variance over the group of sum_t log r_t, spread over the tokens: what pairwise OPMD penalizes.

    (1/K^2) sum_{i<j} (a_i - a_j)^2 / (2 tau) with a_i = r_i - tau Delta_i has the gradient of group-mean REINFORCE plus
    (tau/2) Var_i(Delta_i), Delta_i = log pi(y_i)/mu(y_i). Source: the OPMD note behind arXiv:2509.24203.
    """

    coefficient: float = 0.1
    needs = (BEHAVIOR,)
    whole_step = True

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        assert log_ratio is not None
        moved = tokens.per_sequence(log_ratio)
        centered = moved - tokens.group_mean(moved)
        return self.coefficient * tokens.per_token(centered**2 / tokens.lengths.clamp(min=1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardKL(Cell):
    """-coefficient x log pi(y_t): pulls towards the data, as KL(mu || pi) does. The same as raising every advantage."""

    coefficient: float = 0.1

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        return -self.coefficient * tokens.logprobs


@dataclass(frozen=True, kw_only=True, slots=True)
class MissingSampleKL(Cell):
    """coefficient x (1 - ESS) x (1/r - 1 + log r): P3O's pull back towards mu, as strong as the data have become stale."""

    coefficient: float = 1.0
    needs = (BEHAVIOR,)
    whole_step = True

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        from pipeline.algorithms.cells.drift import Drift
        from pipeline.algorithms.cells.importance import effective_sample_size

        assert log_ratio is not None
        drift = Drift(measured=log_ratio.detach(), advantage=tokens.advantages, tokens=tokens)
        missing = (1 - effective_sample_size(drift)).detach()
        limited = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        return self.coefficient * missing * (bounded_exp(-log_ratio) - 1 + limited)


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyBonus(Cell):
    """-coefficient x H(pi): keeps the policy from settling early."""

    coefficient: float = 0.0

    def term(self, tokens: Tokens, log_ratio: Float[Tensor, " tokens"] | None) -> Float[Tensor, " tokens"]:
        return -self.coefficient * tokens.entropy


def _kl(tokens: Tokens, anchor: Float[Tensor, " tokens"] | None, estimator: Estimator) -> Float[Tensor, " tokens"]:
    """An estimate of KL(pi || anchor) per token; 0 where masked out."""
    assert anchor is not None
    log_q = (anchor - tokens.logprobs).where(tokens.mask, tokens.logprobs.new_zeros(()))
    log_q = log_q.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    estimates = {"k1": -log_q, "k2": 0.5 * log_q**2, "k3": log_q.exp() - 1 - log_q}
    return estimates[estimator]
