"""How checkpoints are judged."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.base import Model
from pipeline.config.engine import LARGEST_TEMPERATURE, LEAST_TEMPERATURE


class EvaluateConfig(Model):
    samples: int = Field(default=8, ge=1, le=1_000_000)
    """Sampled completions per held-out prompt."""
    temperature: float = Field(default=1.0, ge=LEAST_TEMPERATURE, le=LARGEST_TEMPERATURE)
    """Temperature of the sampled completions."""
    greedy: bool = True
    """Also answer each held-out prompt once at temperature 0."""
    k: tuple[int, ...] = (1,)
    """pass@k is reported for these k; each at most `samples`."""
    solved_at: float = 1.0
    """A completion with at least this reward counts as solved."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples of the held-out prompts behind each interval."""

    @model_validator(mode="after")
    def _k_fits(self) -> EvaluateConfig:
        if too_large := [k for k in self.k if not 1 <= k <= self.samples]:
            raise ValueError(f"k={too_large[0]} needs between 1 and samples={self.samples} completions per prompt")
        return self
