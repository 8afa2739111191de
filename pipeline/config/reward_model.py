"""A reward model: what `rollbook reward CONFIG` reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.config.base import Model
from pipeline.config.data import ModelConfig


class PairsConfig(Model):
    rollouts: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    """Rollouts artifacts whose completions are compared within their groups: imported labels or preferences, or graded groups."""
    margin: float = Field(default=1e-6, ge=0)
    """Least difference of rewards; completions that are closer give no pair."""
    soft: float = Field(default=0.0, ge=0)
    """Temperature of soft labels: p = sigmoid(difference / soft). 0: hard labels, p = 1."""
    ties: bool = True
    """Also pair completions of equal rewards, with p = 1/2."""
    cap: int = Field(default=8, ge=0)
    """Most pairs of a group, widest difference first; 0 for no limit."""
    heldout: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts, drawn by a hash of their text, whose pairs are not trained on and judge the model."""


class FitConfig(Model):
    epochs: int = Field(default=1, ge=1)
    """Passes over the pairs."""
    batch_pairs: int = Field(default=64, ge=1)
    """Pairs per optimizer step, about: all pairs of a prompt are in the same one."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Of AdamW, after a linear warm-up; it falls to 0 along a cosine."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    margin_scale: float = Field(default=0.0, ge=0)
    """The preferred completion must score higher by this times the difference of rewards."""
    pass_tokens: int = Field(default=16384, ge=1)
    """Positions of one pass through the model; what texts start with alike counts once. Changes the result by rounding only."""
    save_every_steps: int = Field(default=50, ge=1)
    """Optimizer steps between resume points."""


class RewardModelConfig(Model):
    """A reward model to train."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the reward model."""
    store: str | None = None
    """Where artifacts lie: a directory, or s3://bucket/prefix. Default: rewards/<name>/artifacts."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Every random choice follows from it."""
    model: ModelConfig
    """The language model that gets a head of one output."""
    pairs: PairsConfig
    """What is compared."""
    train: FitConfig = FitConfig()
    """How it is trained."""

    @property
    def directory(self) -> Path:
        return Path(f"rewards/{self.name}")

    @property
    def store_url(self) -> str:
        return os.path.expanduser(self.store or str(self.directory / "artifacts"))
