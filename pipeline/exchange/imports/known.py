"""What a source says of one completion, in one form for all formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class SourceRow:
    """A row of a source file, as it came."""

    file: str
    """Name of the file."""
    unit: Literal["line", "row"]
    """Lines of JSONL are counted from 1, rows of a table from 0."""
    number: int
    values: dict[str, Any]

    @property
    def place(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


class Misfit(NamedTuple):
    """A row that does not fit."""

    place: str
    why: str
    content: str | None
    """The row as text, or its beginning."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """One completion. None: the source does not say."""

    row: SourceRow
    prompt: str | Messages | None = None
    """As it was given to the model, or the chat messages that were rendered."""
    prompt_tokens: list[int] | None = None
    completion: str | None = None
    completion_tokens: list[int] | None = None
    logprobs: list[float] | None = None
    """Of each completion token, nats."""
    logprob_texts: list[str] | None = None
    """Text of each token that a logprob is of, where the source has no ids: without them the two cannot be aligned."""
    logprobs_mode: str | None = None
    action_mask: list[bool] | None = None
    group: tuple[str, ...] = ()
    """What completions of one group share beside their prompt: a step, an id."""
    prompt_id: str | None = None
    answer: str | None = None
    finish_reason: str | None = None
    reward: float | None = None
    components: dict[str, float | None] = field(default_factory=dict)
    """Parts of the reward by name."""
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    policy: str | None = None
    """Name of the model that answered."""
    policy_version: int | None = None
    engine: str | None = None
    status: str | None = None
    error: str | None = None
    rest: dict[str, Any] = field(default_factory=dict)
    """Columns that have no place in the rollouts."""
