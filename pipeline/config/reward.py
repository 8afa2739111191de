"""Graders, and how they add up."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Model, only_json


class RewardComponent(Model):
    grader: str
    """exact_match, regex, math_verify, reasoning_gym, environment, reward_model, judge, from_file, human (see grading.md), or
    your own function as 'package.module:function'."""
    name: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*$")
    """Column name: the score is kept as reward_<name>. Default: the grader's name."""
    weight: float = Field(default=1.0, allow_inf_nan=True)  # refused with the graders, by the component's name
    """Factor in the total reward."""
    args: dict[str, Any] = {}
    """Keyword arguments of the grader."""

    _args_are_json = field_validator("args")(only_json)

    @property
    def short(self) -> str:
        """Its name, or else the grader's."""
        return self.name or self.grader.rpartition(":")[2].rpartition(".")[2]

    @property
    def column(self) -> str:
        return f"reward_{self.short}"


class RewardConfig(Model):
    components: tuple[RewardComponent, ...] = Field(min_length=1)
    """Graders whose weighted scores add up to the reward."""
    timeout_seconds: float = Field(default=10.0, gt=0)
    """Time limit for grading one completion; beyond it the row's status is 'reward_error'."""
    workers: int = Field(default=1, ge=1)
    """Processes that grade while the engine goes on. Reward models, judges and files have one each beside them."""
    memory_mib: int = Field(default=4096, ge=64)
    """Address space that a worker may take before it is stopped. Reward models, judges and files have no limit."""
    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """Largest share of rollouts whose reward may fail before the run stops."""

    @model_validator(mode="after")
    def _names_differ(self) -> RewardConfig:
        columns = [component.column for component in self.components]
        twice = sorted({column for column in columns if columns.count(column) > 1})
        if twice:
            raise ValueError(f"two components write {', '.join(twice)}; give one of them another `name`")
        return self
