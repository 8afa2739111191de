"""Settings that change on the way: phases of a run, schedules of a setting, and whose logprobs the reference's are."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.config.base import Model

SECTIONS = ("generate", "shape", "replay", "train", "revise")
"""What a phase, or a schedule, may change: what is drawn and trained on. The rest is the same in every iteration."""
ALIKE = ("generate.max_tokens", "generate.stop", "generate.keep_stop_text", "generate.shard_groups")
"""Of these sections, what held-out answers are drawn by too: with it, checkpoints could not be compared."""
_SPAN = re.compile(r"(\d+)(?:\s*(-)\s*(\d*))?")


class ReferenceConfig(Model):
    iteration: int | None = Field(default=None, ge=0)
    """The checkpoint that this iteration draws with; 0 is the base model."""
    every: int | None = Field(default=None, ge=1)
    """The policy that a training starts from, taken anew every so many iterations."""
    path: str | None = Field(default=None, min_length=1)
    """A checkpoint, a model directory or a hub name, of the run's tokenizer."""

    @model_validator(mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"base": {"iteration": 0}, "previous": {"every": 1}}.get(value, {"path": value})

    @model_validator(mode="after")
    def _one_of_them(self) -> ReferenceConfig:
        given = [name for name in ("iteration", "every", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("expected base, previous, {iteration: 3}, {every: 3} or the path of a model")
        return self

    def version(self, iteration: int) -> int | None:
        """The iteration whose policy is the reference of a training; None for a model from elsewhere.

        >>> [ReferenceConfig(every=3).version(number) for number in range(7)]
        [0, 0, 0, 3, 3, 3, 6]
        """
        return iteration - iteration % self.every if self.every else self.iteration

    def __str__(self) -> str:
        if self.path is not None:
            return self.path
        if self.every is not None:
            return "previous" if self.every == 1 else f"every {self.every}"
        return "base" if self.iteration == 0 else f"iteration {self.iteration}"


class Schedule(Model):
    linear: tuple[float, float] | None = None
    """[first, last]: straight from one to the other."""
    cosine: tuple[float, float] | None = None
    """[first, last]: last - (last - first) (1 + cos(pi t / until)) / 2, flat at both ends."""
    steps: dict[int, float] | None = None
    """{0: 1.0, 51: 0.9}: the value that holds from each time on."""
    until: float | None = Field(default=None, gt=0)
    """Time at which `last` is reached; it holds from then on."""
    by: Literal["iteration", "step"] = "iteration"
    """What time is counted in, from the beginning of the phase or of the run: iterations, or optimizer steps taken before the
    iteration (as many as its prompts, samples, batch_completions and epochs ask for). A value holds for a whole iteration."""
    whole: bool = False
    """Round to a whole number."""

    @model_validator(mode="after")
    def _one_form(self) -> Schedule:
        forms = [name for name in ("linear", "cosine", "steps") if getattr(self, name) is not None]
        if len(forms) != 1:
            raise ValueError("expected one of linear: [first, last], cosine: [first, last] and steps: {0: value, ...}")
        if (self.until is None) != (self.steps is not None):
            raise ValueError(
                "linear and cosine need `until`, the time at which the last value is reached; steps has its own times"
            )
        if self.steps is not None and min(self.steps, default=-1) != 0:
            raise ValueError("steps: the first value is that of time 0, such as {0: 1.0, 50: 0.5}; times are not negative")
        return self

    def value(self, time: int) -> float | int:
        """The setting's value.

        >>> Schedule(cosine=(0, 1), until=300).value(75)
        0.14644660940672627
        >>> [Schedule(steps={0: 1.0, 51: 0.9}).value(time) for time in (0, 50, 51, 99)]
        [1.0, 1.0, 0.9, 0.9]
        """
        if self.steps is not None:
            found = self.steps[max(start for start in self.steps if start <= time)]
        else:
            assert self.until is not None
            share = min(time / self.until, 1.0)
            first, last = self.linear or self.cosine or (0.0, 0.0)
            moved = share if self.linear else 0.5 * (1 - math.cos(math.pi * share))
            found = last if share == 1 else first + (last - first) * moved
        return round(found) if self.whole else found


class Phase(Model):
    iterations: str
    """The iterations it holds for: 0-2, 3, or 4- for all from there on. Phases lie side by side and begin at 0."""
    reference: ReferenceConfig | None = None
    """As `reference` of the run."""
    schedules: dict[str, Schedule] = {}
    """As `schedules` of the run; time begins with the phase."""
    generate: dict[str, Any] = {}
    """Settings of `generate` that are others: prompts, samples and the sampling. max_tokens and stop hold for the whole run."""
    shape: dict[str, Any] = {}
    """Settings of `shape` that are others."""
    replay: dict[str, Any] = {}
    """Settings of `replay` that are others."""
    train: dict[str, Any] = {}
    """Settings of `train` that are others. Another algorithm begins with its own algorithm_args."""
    revise: dict[str, Any] = {}
    """Settings of `revise` that are others."""

    @field_validator("iterations", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("iterations")
    @classmethod
    def _is_a_span(cls, value: str) -> str:
        found = _SPAN.fullmatch(value.strip())
        if not found or (found[3] and int(found[3]) < int(found[1])):
            raise ValueError("expected iterations such as 0-2, 3, or 4- for all from there on")
        return value.strip()

    @property
    def first(self) -> int:
        return int(self._span()[1])

    @property
    def last(self) -> int | None:
        """None: it holds for all that follow."""
        found = self._span()
        return int(found[3]) if found[3] else None if found[2] else int(found[1])

    def _span(self) -> re.Match[str]:
        found = _SPAN.fullmatch(self.iterations)
        assert found
        return found
