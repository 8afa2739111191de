"""The order of a run, written once. `Stages` says how each stage is answered: from the store, or by doing the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.artifacts import Artifact
from pipeline.config import RunConfig
from pipeline.local import Answers, Missing


@dataclass
class Iteration:
    """One checkpoint: its evaluation, and the training that led away from it."""

    iteration: int
    policy: Artifact
    answers: Answers | None = None
    evaluation: Artifact | None = None
    shaped: Artifact | None = None
    checkpoint: Artifact | None = None


@dataclass
class Run:
    """What there is of a run, in order. Iteration 0 is the base model."""

    config: RunConfig
    train_prompts: Artifact | None = None
    heldout_prompts: Artifact | None = None
    iterations: list[Iteration] = field(default_factory=list)
    missing: str | None = None
    """The first stage that is not finished yet; None when the run is complete."""


class Stages(Protocol):
    """How each stage is answered."""

    def base(self) -> Artifact: ...
    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]: ...
    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers: ...
    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact: ...
    def shape(self, iteration: int, rollouts: Artifact) -> Artifact: ...
    def train(self, iteration: int, policy: Artifact, rollouts: Artifact, shaped: Artifact) -> Artifact: ...


def chain(config: RunConfig, stages: Stages, on_change: Callable[[Run], None] = lambda run: None) -> Run:
    """generate, evaluate, shape, train, and again, until the last checkpoint is evaluated.

    Args:
        config: the run.
        stages: answers each stage.
        on_change: called with the run so far after every stage.

    Returns:
        The run; if `stages` raises `Missing`, what there is of it.
    """
    run = Run(config)
    try:
        policy = stages.base()
        run.train_prompts, run.heldout_prompts = stages.prompts(policy)
        for number in range(config.iterations + 1):
            last = number == config.iterations
            step = Iteration(number, policy)
            run.iterations.append(step)
            step.answers = stages.generate(number, policy, None if last else run.train_prompts, run.heldout_prompts)
            on_change(run)
            step.evaluation = stages.evaluate(number, policy, step.answers)
            on_change(run)
            if step.answers.rollouts is None:
                break
            step.shaped = stages.shape(number, step.answers.rollouts)
            on_change(run)
            step.checkpoint = stages.train(number, policy, step.answers.rollouts, step.shaped)
            on_change(run)
            policy = step.checkpoint
    except Missing as missing:
        run.missing = missing.stage
    return run
