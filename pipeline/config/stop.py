"""When a run has gone far enough, or wrong."""

from __future__ import annotations

from pydantic import Field

from pipeline.config.base import Model


class StopConfig(Model):
    target_pass_at_1: float | None = Field(default=None, gt=0, le=1)
    """End once held-out pass@1 is this high."""
    patience: int | None = Field(default=None, ge=1)
    """End when pass@1 has not risen for this many iterations."""
    min_gain: float = Field(default=0.0, ge=0)
    """What counts as a rise, for `patience`."""
    max_drop: float | None = Field(default=None, gt=0, le=1)
    """End when pass@1 lies this far below the best so far."""
    min_entropy: float | None = Field(default=None, ge=0)
    """End when the trained policy's entropy falls below this, nats per token: it has collapsed."""
    max_entropy: float | None = Field(default=None, gt=0)
    """End when the entropy rises above this, nats per token."""
    max_kl: float | None = Field(default=None, gt=0)
    """End when training moves this far from the behavior policy, nats per token."""
    max_failed_rewards: float | None = Field(default=None, ge=0, le=1)
    """End when a larger share of an iteration's rewards failed."""
    max_tokens: int | None = Field(default=None, ge=1)
    """End once this many tokens were generated, held-out answers included."""
    no_signal: int | None = Field(default=1, ge=1)
    """End after this many rounds in a row whose rewards teach nothing: no reward differs within any group, so that every
    advantage is 0, or all rewards are equal. Such a round is not trained. null goes on all the same."""
