"""What there is of a run, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config.run import RunConfig
from pipeline.run.parts import Part
from pipeline.store import Artifact


@dataclass(frozen=True)
class Stop:
    """Why a run ended before its last iteration."""

    rule: str
    """Name of the setting that stopped it."""
    iteration: int
    why: str
    healthy: bool
    """Whether the run ended as hoped for (target reached, tokens spent), not because something went wrong."""


@dataclass(frozen=True)
class Answers:
    """What one checkpoint answered, from one start of the engine."""

    sampled: Artifact
    """Held-out prompts, several samples each."""
    greedy: Artifact | None
    """Held-out prompts at temperature 0."""
    rollouts: Artifact | None
    """Training prompts; None for the last checkpoint."""


def answers_of(made: tuple[Artifact, ...], *, greedy: bool) -> Answers:
    """What one checkpoint answered, from the artifacts of its order: sampled, greedy if asked for, rollouts if asked for."""
    sampled, *rest = made
    return Answers(sampled, rest.pop(0) if greedy else None, rest[0] if rest else None)


@dataclass(frozen=True)
class Judgment:
    """How one checkpoint did on one of the sets of `evaluate.sets`."""

    answers: Answers
    evaluation: Artifact

    @property
    def artifacts(self) -> dict[str, Artifact | None]:
        """By what they are to it."""
        return {"sampled": self.answers.sampled, "greedy": self.answers.greedy, "evaluation": self.evaluation}


@dataclass
class Iteration:
    """One checkpoint: its evaluation, and the training that led away from it."""

    iteration: int
    policy: Artifact
    answers: Answers | None = None
    evaluation: Artifact | None = None
    shaped: Artifact | None = None
    scores: dict[str, Artifact] = field(default_factory=dict)
    """Cached logprobs by role, for algorithms that need them."""
    reference: Artifact | None = None
    """The model that the algorithm reads beside the policy, for algorithms that do."""
    replayed: tuple[Part, ...] = ()
    """Rollouts of other times that were trained on too."""
    checkpoint: Artifact | None = None
    sets: dict[str, Judgment] = field(default_factory=dict)
    """By the names of the held-out sets that judged it."""
    revised: Artifact | None = None
    """An expert's corrections of its rollouts, which are trained on in their place."""

    @property
    def trained_on(self) -> Artifact | None:
        """Its rollouts, or an expert's corrections of them."""
        return self.revised or (self.answers.rollouts if self.answers else None)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that is trained on, the iteration's own rollouts first; nothing before they are shaped."""
        rollouts = self.trained_on
        if rollouts is None or self.shaped is None:
            return ()
        return (Part(rollouts, self.shaped, self.scores), *self.replayed)


@dataclass
class Run:
    """What there is of a run, in order. Iteration 0 is the base model."""

    config: RunConfig
    train_prompts: Artifact | None = None
    heldout_prompts: Artifact | None = None
    iterations: list[Iteration] = field(default_factory=list)
    missing: str | None = None
    """The first stage that is not finished yet; None when the run is complete."""
    stopped: Stop | None = None
    """The rule that ended the run before its last iteration."""
    set_prompts: dict[str, Artifact] = field(default_factory=dict)
    """Prompts of the other held-out sets, by their names."""

    @property
    def prompts(self) -> dict[str, Artifact]:
        """Prompts of every kind, by what they are used as."""
        others = {f"held-out prompts {name}": prompts for name, prompts in self.set_prompts.items()}
        known = {"training prompts": self.train_prompts, "held-out prompts": self.heldout_prompts, **others}
        return {name: prompts for name, prompts in known.items() if prompts is not None}

    def rollouts_before(self, iteration: int) -> list[Artifact]:
        """What was trained on in earlier iterations, newest first."""
        before = (step.trained_on for step in reversed(self.iterations) if step.iteration < iteration)
        return [rollouts for rollouts in before if rollouts]
