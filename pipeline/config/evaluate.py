"""How checkpoints are judged."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipeline.config.base import Model
from pipeline.config.data import PromptSource
from pipeline.config.engine import LARGEST_TEMPERATURE, LEAST_TEMPERATURE
from pipeline.config.reward import RewardConfig


class HeldoutSet(Model):
    """Prompts that checkpoints are judged by beside `data.heldout`, with graders and sampling of their own."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    """What its figures are called."""
    prompts: PromptSource
    """Where the questions lie. As those of `data.heldout`, they may not be trained on too, unless data.allow_overlap."""
    reward: RewardConfig | None = None
    """Its graders. Default: those of the run."""
    template: str | None = None
    """Text given to the model, as data.template. Default: that of the run."""
    system: str | None = None
    """System message, where data.chat is on. Default: that of the run."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of a completion. Default: generate.max_tokens."""
    samples: int | None = Field(default=None, ge=1, le=1_000_000)
    """Sampled completions per prompt. Default: evaluate.samples."""
    temperature: float | None = Field(default=None, ge=LEAST_TEMPERATURE, le=LARGEST_TEMPERATURE)
    """Temperature of the sampled completions. Default: evaluate.temperature."""
    greedy: bool | None = None
    """Also answer each prompt once at temperature 0. Default: evaluate.greedy."""
    k: tuple[int, ...] | None = None
    """pass@k is reported for these k. Default: those of evaluate.k that `samples` allows."""
    solved_at: float | None = None
    """A completion with at least this score counts as solved. Default: evaluate.solved_at."""
    solved_by: str | None = None
    """The component whose score decides, by its name. Default: the total reward."""
    every: int = Field(default=1, ge=1)
    """Judge the checkpoints of every so many iterations, the base model and the last one among them."""

    def is_due(self, iteration: int, last: int) -> bool:
        """Whether an iteration's checkpoint is judged by it."""
        return iteration % self.every == 0 or iteration == last


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
    solved_by: str | None = None
    """The component of the reward whose score decides that instead, by its name (math_verify, say)."""
    sets: tuple[HeldoutSet, ...] = ()
    """More prompts to judge checkpoints by. What stops a run and picks its best checkpoint is `data.heldout` alone."""
    bootstrap: int = Field(default=1000, ge=100)
    """Resamples of the held-out prompts behind each interval."""

    @model_validator(mode="after")
    def _k_fits(self) -> EvaluateConfig:
        if too_large := [k for k in self.k if not 1 <= k <= self.samples]:
            raise ValueError(f"k={too_large[0]} needs between 1 and samples={self.samples} completions per prompt")
        return self

    @model_validator(mode="after")
    def _sets_fit(self) -> EvaluateConfig:
        names = [one.name for one in self.sets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sets: {', '.join(twice)} is there twice; give one of them another `name`")
        for place, one in enumerate(self.sets):
            if one.k is not None and max(one.k, default=1) > (one.samples or self.samples):
                raise ValueError(f"sets.{place}: k={max(one.k)} needs as many samples, and has {one.samples or self.samples}")
        return self

    def of(self, one: HeldoutSet) -> EvaluateConfig:
        """How one of the sets is judged."""
        samples = one.samples or self.samples
        own = {name: value for name in ("temperature", "greedy", "k", "solved_at") if (value := getattr(one, name)) is not None}
        k = {"k": tuple(k for k in self.k if k <= samples) or (1,)}
        changes = {**k, **own, "samples": samples, "solved_by": one.solved_by, "sets": ()}
        return self.model_copy(update=changes)
