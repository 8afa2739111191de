"""What there is of a comparison: every trial that is finished, failed or still to come."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.compare.plan import Plan, Variant
from pipeline.run.parts import Part
from pipeline.run.state import Answers
from pipeline.store import Artifact


@dataclass(frozen=True)
class Judged:
    """A policy's held-out answers and their figures."""

    answers: Answers
    evaluation: Artifact


@dataclass(frozen=True)
class Trial:
    """A variant that was trained and judged."""

    parts: tuple[Part, ...]
    """What it was trained on: the snapshot, then what is replayed."""
    checkpoint: Artifact
    judged: Judged

    @property
    def shaped(self) -> Artifact:
        """What shaping made of the snapshot."""
        return self.parts[0].shaped


@dataclass
class Trials:
    """The trials of a plan, by variant."""

    plan: Plan
    before: Judged | None = None
    """The policy that the trainings start from; None if it is still to be judged, or cannot be."""
    done: dict[Variant, Trial] = field(default_factory=dict)
    failed: dict[Variant, str] = field(default_factory=dict)
    """Why each of the others was not finished."""

    @property
    def missing(self) -> list[Variant]:
        """Variants still to come."""
        return [variant for variant in self.plan.variants() if variant not in self.done and variant not in self.failed]

    @property
    def complete(self) -> bool:
        """Whether there is nothing to do."""
        return self.before is not None and not self.missing
