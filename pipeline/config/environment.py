"""What answers the policy within an episode."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Model, only_json


class EnvironmentConfig(Model):
    name: str = "tools"
    """calculator, tools, verifiers_tasks, reasoning_gym_tasks, textarena_games, or your own class as 'package.module:Class'. See
    docs/episodes.md."""
    tools: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Functions that a chat model may call: calculator, or your own as 'package.module:function'."""
    args: dict[str, Any] = {}
    """Keyword arguments of the class."""
    max_turns: int = Field(default=8, ge=1)
    """Turns of the policy. An episode that the environment would go on with ends there, with status 'truncated'.
    generate.max_tokens is the limit of one turn."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of an episode behind its prompt, drawn or not. Default: what the context holds."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """Time limit of one step; beyond it the row's status is 'environment_error'."""
    memory_mib: int = Field(default=4096, ge=64)
    """Address space that the process of an episode may take."""
    history: Literal["drawn", "rendered"] = "drawn"
    """What a later turn sees of earlier ones: their tokens as they were drawn, or the chat as the model's template writes it
    anew. Then each turn is a row of its own."""
    in_flight: int = Field(default=128, ge=1)
    """Episodes at once, each with a process of its own."""
    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """Largest share of rollouts whose environment may fail before the run stops."""

    @property
    def rows(self) -> int:
        """Rows that an episode may have."""
        return self.max_turns if self.history == "rendered" else 1

    @property
    def given(self) -> dict[str, Any]:
        """Keyword arguments of the class, tools among them."""
        return {**self.args, "tools": list(self.tools)} if self.tools else dict(self.args)

    @model_validator(mode="after")
    def _tools_are_called(self) -> EnvironmentConfig:
        if (self.name == "tools") != bool(self.tools):
            raise ValueError("tools: expected functions where name is tools, and nowhere else")
        return self

    _args_are_json = field_validator("args")(only_json)
