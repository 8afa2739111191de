"""The order of a run, written once. `Stages` says how each stage is answered: from the store, or by doing the work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from pipeline.artifacts import Artifact
from pipeline.config import RunConfig
from pipeline.local import Missing
from pipeline.run import Answers, Iteration, Run

AFTER = {"generate": "evaluate", "evaluate": "shape", "shape": "train", "train": "generate"}


class Stages(Protocol):
    """How each stage is answered."""

    def base(self) -> Artifact: ...
    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]: ...
    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers: ...
    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact: ...
    def shape(self, iteration: int, rollouts: Artifact) -> Artifact: ...
    def score(self, iteration: int, policy: Artifact, rollouts: Artifact) -> dict[str, Artifact]: ...
    def train(
        self, iteration: int, policy: Artifact, rollouts: Artifact, shaped: Artifact, scores: Mapping[str, Artifact]
    ) -> Artifact: ...


def chain(
    config: RunConfig,
    stages: Stages,
    on_change: Callable[[Run], None] = lambda run: None,
    until: tuple[str, int] | None = None,
) -> Run:
    """generate, evaluate, shape, train, and again, until the last checkpoint is evaluated.

    Args:
        config: the run.
        stages: answers each stage.
        on_change: called with the run so far after every stage.
        until: a stage and its iteration, such as ("train", 0): stop after it.

    Returns:
        The run; if `stages` raises `Missing`, what there is of it.
    """

    def done(stage: str) -> bool:
        number = run.iterations[-1].iteration
        run.missing = f"{AFTER[stage]} {number + (stage == 'train')}"
        on_change(run)
        return (stage, number) == until

    run = Run(config, missing="prompts")
    try:
        policy = stages.base()
        run.train_prompts, run.heldout_prompts = stages.prompts(policy)
        run.missing = "generate 0"
        on_change(run)
        for number in range(config.iterations + 1):
            last = number == config.iterations
            step = Iteration(number, policy)
            run.iterations.append(step)
            step.answers = stages.generate(number, policy, None if last else run.train_prompts, run.heldout_prompts)
            if done("generate"):
                break
            step.evaluation = stages.evaluate(number, policy, step.answers)
            if step.answers.rollouts is None:
                run.missing = None
                break
            if done("evaluate"):
                break
            step.shaped = stages.shape(number, step.answers.rollouts)
            if done("shape"):
                break
            step.scores = stages.score(number, policy, step.answers.rollouts)
            step.checkpoint = stages.train(number, policy, step.answers.rollouts, step.shaped, step.scores)
            if done("train"):
                break
            policy = step.checkpoint
    except Missing as missing:
        run.missing = missing.stage
    on_change(run)
    return run
