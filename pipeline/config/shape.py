"""Settings of what is trained on: `shape` (which completions, and how heavily) and `replay` (rollouts of other times)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pipeline.config.base import Model


class ShapeConfig(Model):
    zero_variance: Literal["keep", "drop"] = "keep"
    """Groups whose rewards are all equal. Methods with a group baseline get no gradient from them either way."""
    truncated: Literal["keep", "drop", "zero_reward"] = "keep"
    """Completions cut at max_tokens. drop leaves them out of training but not out of their group's statistics."""
    reward_error: Literal["drop", "zero_reward"] = "drop"
    """Completions that could not be graded. drop leaves them out of their group's statistics too."""
    min_group: int = Field(default=1, ge=1)
    """Groups with fewer usable completions are dropped."""
    max_age: int | None = Field(default=None, ge=0)
    """Completions that a policy of more than this many iterations ago drew are dropped; 0 keeps fresh ones alone."""
    solved_at: float = 1.0
    """Least reward of a solved completion, for pass_rate and anna_karenina."""
    pass_rate: tuple[float, float] | None = None
    """[low, high]: groups whose share of solved completions is outside are dropped, such as [0.1, 0.9]."""
    anna_karenina: bool = False
    """Of each group's solved completions only the first is kept, and all that are not solved (TOPR's sampling)."""
    class_balance: Literal["keep", "drop_negatives", "drop_surplus"] = "keep"
    """drop_negatives: random ones below their group's mean, until they are no more than the others. drop_surplus: of either."""
    positive_weight: float = Field(default=1.0, ge=0)
    """Factor of the loss of completions with a positive advantage."""
    negative_weight: float = Field(default=1.0, ge=0)
    """Factor of the loss of completions with a negative advantage."""
    positive_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share that completions with a positive advantage get, of all with an advantage, in each rollouts artifact."""
    positive_fraction_by: Literal["weight", "drop"] = "weight"
    """weight: by a factor for each class, whose mean is 1. drop: by leaving out random completions of the larger class."""

    tool_bonus: float = Field(default=0.0, ge=0)
    """Added to the reward of an episode for each call of a tool that did not fail, in training alone. SPEAR's falls with the
    steps: schedules: {shape.tool_bonus: {cosine: [0.1, 0], until: 200, by: step}}."""
    tool_bonus_calls: int = Field(default=10, ge=1)
    """Calls of an episode that earn it."""
    credit: Literal["episode", "turn"] = "episode"
    """episode: all tokens of a completion have its advantage. turn: each turn of the policy has its own, from the discounted
    rewards of it and later turns, among the turns of the same number in its group."""
    discount: float = Field(default=1.0, ge=0, le=1)
    """Factor of a later turn's reward, with credit: turn."""
    void_turns: Literal["keep", "mask", "drop"] = "keep"
    """Turns of which the environment says that they neither call a tool nor answer. mask: their tokens carry no loss. drop: their
    whole episode is left out of training, but not out of its group's statistics (SimpleTIR)."""
    truncated_by: tuple[Literal["length", "turns", "tokens", "context"], ...] | None = None
    """Which cuts `truncated` is about: length of a turn or completion, turns or tokens of an episode, or a full context.
    Default: all."""
    labels: str | None = None
    """A file of `rollbook label` with comparisons of the very rollouts: methods on pairs take its pairs, and how surely people
    preferred one of them, in place of pairs by reward."""

    @model_validator(mode="after")
    def _settings_agree(self) -> ShapeConfig:
        if self.pass_rate and not 0 <= self.pass_rate[0] <= self.pass_rate[1] <= 1:
            raise ValueError(f"pass_rate={list(self.pass_rate)} is no band [low, high] of shares between 0 and 1")
        if self.discount != 1 and self.credit != "turn":
            raise ValueError("discount is of the rewards of turns; set credit: turn")
        if self.truncated_by is not None and self.truncated == "keep":
            raise ValueError("truncated_by says which cuts `truncated` is about, and truncated: keep does nothing about any")
        weighed = (self.positive_weight, self.negative_weight) != (1.0, 1.0)
        if self.positive_weight == self.negative_weight == 0:
            raise ValueError("positive_weight and negative_weight are both 0, so nothing would be learned")
        if weighed and self.positive_fraction is not None and self.positive_fraction_by == "weight":
            raise ValueError("positive_fraction sets the weights of the classes; leave out positive_weight and negative_weight")
        if self.class_balance != "keep" and self.positive_fraction is not None:
            raise ValueError("class_balance and positive_fraction both decide how many positives there are; set one of them")
        if self.class_balance != "keep" and self.anna_karenina:
            raise ValueError("anna_karenina keeps every completion that is not solved, class_balance drops them; set one of them")
        return self


class ReplayArtifact(Model):
    path: str = Field(min_length=1)
    """Where a rollouts artifact lies, such as runs/demo/artifacts/rollouts/77d0… Its tokens must be those of this run's model."""
    weight: float = Field(default=1.0, gt=0)
    """How many of the replayed groups it gives, relative to the iteration before (1)."""


class ReplayConfig(Model):
    iterations: int = Field(default=0, ge=0)
    """Rollouts of this many earlier iterations are trained on again, beside the new ones."""
    artifacts: tuple[ReplayArtifact, ...] = ()
    """Rollouts from elsewhere that are trained on too, in every iteration."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of each training's groups that is replayed, drawn anew in each iteration; all, if fewer are there. Default: all."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """Factor by which an iteration gives fewer of the replayed groups than the one after it. Needs `share`."""
    loss_weight: float = Field(default=1.0, gt=0)
    """Factor of the loss of replayed completions."""

    @property
    def is_on(self) -> bool:
        return self.iterations > 0 or bool(self.artifacts)

    @model_validator(mode="after")
    def _settings_agree(self) -> ReplayConfig:
        weighed = self.decay != 1 or any(artifact.weight != 1 for artifact in self.artifacts)
        if self.share is None and weighed:
            raise ValueError("decay and weight divide the replayed share, and without `share` every group is replayed; set share")
        if not self.is_on and (self.share is not None or self.loss_weight != 1):
            raise ValueError("nothing is replayed; set iterations or artifacts")
        return self
