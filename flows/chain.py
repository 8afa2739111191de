"""The order of a run, written once. `Stages` says how each stage is answered: from the store, or by doing the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from pipeline.config.run import RunConfig
from pipeline.run.local import Missing
from pipeline.run.parts import Part
from pipeline.run.record import Answers, Iteration, Run
from pipeline.run.stopping import Pause, stop_of
from pipeline.store import Artifact

AFTER = {"generate": "evaluate", "evaluate": "shape", "shape": "train", "train": "generate"}


class Stages(Protocol):
    """How each stage is answered."""

    def base(self) -> Artifact: ...
    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]: ...
    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers: ...
    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact: ...
    def shape(self, iteration: int, rollouts: Artifact) -> Artifact: ...
    def score(self, iteration: int, policy: Artifact, rollouts: Artifact) -> dict[str, Artifact]: ...
    def replay(self, iteration: int, fresh: Part, earlier: Sequence[Artifact]) -> tuple[Part, ...]: ...
    def train(self, iteration: int, policy: Artifact, parts: Sequence[Part]) -> Artifact: ...


def chain(
    config: RunConfig,
    stages: Stages,
    on_change: Callable[[Run], None] = lambda run: None,
    until: tuple[str, int] | None = None,
    pause: Pause = lambda run: False,
) -> Run:
    """generate, evaluate, shape, train, and again, until the last checkpoint is evaluated or a rule of `stop` ends the run.

    Args:
        config: the run.
        stages: answers each stage.
        on_change: called with the run so far after every stage.
        until: a stage and its iteration, such as ("train", 0): stop after it.
        pause: asked after every stage whether to leave the rest for another time.

    Returns:
        The run; if `stages` raises `Missing`, what there is of it.
    """

    def done(stage: str) -> bool:
        number = run.iterations[-1].iteration
        run.missing = f"{AFTER[stage]} {number + (stage == 'train')}"
        if stage != "generate":
            run.stopped = stop_of(run)
        last = stage == "evaluate" and number == config.iterations
        if last or run.stopped:
            run.missing = None
        on_change(run)
        return run.missing is None or (stage, number) == until or pause(run)

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
            if done("evaluate") or step.answers.rollouts is None:
                break
            step.shaped = stages.shape(number, step.answers.rollouts)
            step.replayed = stages.replay(number, step.parts[0], run.rollouts_before(number))
            if done("shape"):
                break
            fresh, *replayed = scored(stages, number, policy, step.parts)
            step.scores, step.replayed = dict(fresh.scores), tuple(replayed)
            step.checkpoint = stages.train(number, policy, step.parts)
            if done("train"):
                break
            policy = step.checkpoint
    except Missing as missing:
        run.missing = missing.stage
        on_change(run)
    return run


def scored(stages: Stages, iteration: int, policy: Artifact, parts: Sequence[Part]) -> list[Part]:
    """The parts with the scores that the algorithm needs."""
    return [replace(part, scores=stages.score(iteration, policy, part.rollouts)) for part in parts]


def generates_next(run: Run) -> bool:
    """Whether the first thing that a run lacks is answers of a checkpoint, or what they are made from."""
    return run.missing is not None and run.missing.split()[0] not in ("grade", "evaluate", "shape", "replay", "score", "train")
