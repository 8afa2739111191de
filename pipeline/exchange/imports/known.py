"""What a source says of one completion, in one form for all formats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Messages = list[dict[str, Any]]
Position = tuple[int, int]
"""Where an import is: files that it has read, and rows of the file after them."""


@dataclass(frozen=True)
class SourceRow:
    """A row of a source file, as it came."""

    file: str
    """Name of the file."""
    unit: Literal["line", "row", "sample"]
    """Lines of JSONL are counted from 1, rows of a table and samples of an archive from 0."""
    number: int
    values: dict[str, Any]
    path: Path | None = None
    """Of the file, for what lies beside it."""
    part: int | None = None
    """Which of the rows that a row's aligned lists were made into."""

    @property
    def place(self) -> str:
        part = "" if self.part is None else f", part {self.part}"
        return f"{self.file}, {self.unit} {self.number}{part}"


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
    prompt_is_whole: bool = False
    """A prompt that is text has every special token written out, so none is put around it."""
    completion: str | Messages | None = None
    """A text, or the turns that follow the prompt's messages, of which the model wrote the assistant's."""
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
    component_weights: dict[str, float] = field(default_factory=dict)
    """What the source weighs them with, where the user does not say; 1 where not named."""
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
