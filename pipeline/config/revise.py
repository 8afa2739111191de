"""Who corrects the policy's own completions, and what is made of the corrections."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Model, only_json

ASKED = """Question:
{question}

A student's answer:
{completion}

The reference answer: {answer}

Correct what is wrong in this answer and change as little as possible: keep every sentence and every word that is right. \
If nothing is wrong, repeat the answer as it is. Write the corrected answer and nothing else."""
EXPERTS = ("pattern", "function", "file", "url", "model")


class ReviseConfig(Model):
    pattern: str | None = Field(default=None, min_length=1)
    """Regular expression: the reference answer takes the place of what its last match captures. What it does not match is not
    revised."""
    function: str | None = Field(default=None, min_length=1)
    """Your own function as 'package.module:function': (completion, answer, prompt) -> the corrected text, or None."""
    file: str | None = Field(default=None, min_length=1)
    """A JSONL, Parquet or CSV file with prompt_id, completion and revised: corrections made elsewhere."""
    model: str | None = Field(default=None, min_length=1)
    """A judge model: a checkpoint, a model directory or a hub name, which vLLM runs. With `url`, its name on the server."""
    url: str | None = Field(default=None, min_length=1)
    """An OpenAI-compatible server, up to and with its version: http://localhost:8000/v1."""
    args: dict[str, Any] = {}
    """Keyword arguments of `function`."""
    template: str = ASKED
    """What a model is asked; {prompt}, {question}, {completion} and {answer} are replaced."""
    system: str | None = None
    """System message of a model that is asked."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer of a model that is asked. One that is cut is no revision."""
    api_key_env: str | None = None
    """Environment variable that holds the server's key. The key is written nowhere."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds that one revision may take, by a server or by `function`."""
    retries: int = Field(default=4, ge=0)
    """Further attempts after what may pass on a server."""
    concurrency: int = Field(default=16, ge=1)
    """Revisions asked of a server at once."""
    samples: int = Field(default=1, ge=1)
    """Completions of each group that are revised, the first ones."""
    solved_at: float | None = 1.0
    """Own completions with at least this reward are right as they are, and nobody is asked about them. null: about
    all."""
    reference: str | None = None
    """The reference answer as a completion, such as " A:{answer}": preferred to what is wrong, and trained on, as revisions are.
    null: none."""
    most_change: float = Field(default=0.5, gt=0, le=1)
    """Largest share of tokens, of own and revised answer, that the other has not. What differs more is written anew and no
    revision."""
    kept_weight: float = Field(default=1.0, ge=0)
    """Weight of tokens that own and revised answer have in common."""
    changed_weight: float = Field(default=2.5, ge=0)
    """Weight of tokens that only one of them has."""

    _args_are_json = field_validator("args")(only_json)

    @property
    def is_on(self) -> bool:
        return any(getattr(self, name) is not None for name in EXPERTS)

    @property
    def by(self) -> str:
        """Which of `EXPERTS` it is; model for a model that this run has vLLM run."""
        return next(name for name in EXPERTS if getattr(self, name) is not None)

    @property
    def described(self) -> str:
        """Who revises what, in words.

        >>> ReviseConfig(pattern="A:(.+)").described
        "the first 1 of each group that are not solved, by pattern 'A:(.+)'"
        """
        which = "" if self.solved_at is None else " that are not solved"
        who = f"{self.model} at {self.url}" if self.by == "url" else f"{self.by} {getattr(self, self.by)!r}"
        return f"the first {self.samples} of each group{which}, by {who}"

    @model_validator(mode="after")
    def _one_expert(self) -> ReviseConfig:
        named = [name for name in EXPERTS if getattr(self, name) is not None]
        if len(named) > 1 and named != ["url", "model"]:
            raise ValueError(
                f"{named[0]} and {named[1]} both say who revises; name one of {', '.join(EXPERTS[:3])}, model, or url with model"
            )
        if named == ["url"]:
            raise ValueError("url: needs `model`, the name that the server knows its model by")
        if self.args and self.function is None:
            raise ValueError("args: are those of `function`, which is not named")
        if self.kept_weight == self.changed_weight == 0:
            raise ValueError("kept_weight and changed_weight are both 0, so nothing would be learned")
        if "{completion}" not in self.template:
            raise ValueError("template: has no {completion} in it")
        if self.reference is not None and "{answer}" not in self.reference:
            raise ValueError("reference: has no {answer} in it")
        return self
