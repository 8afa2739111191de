"""What answers the policy within an episode."""

from __future__ import annotations

import json
from typing import Any

from pydantic import Field, field_validator

from pipeline.config.base import Model


class EnvironmentConfig(Model):
    name: str
    """calculator, or your own class as 'package.module:Class'. See docs/episodes.md."""
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
    in_flight: int = Field(default=128, ge=1)
    """Episodes at once, each with a process of its own."""
    max_failed_share: float = Field(default=0.2, ge=0, le=1)
    """Largest share of rollouts whose environment may fail before the run stops."""

    @field_validator("args")
    @classmethod
    def _args_are_json(cls, args: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(args, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"only what JSON can hold (write a date in quotes): {error}") from None
        return args
