"""What a run asks for, in sequence, written once. Whoever answers finds it in the store, or has the work done."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.config.course import Course
from pipeline.config.run import RunConfig
from pipeline.evaluate.order import evaluate_order
from pipeline.evaluate.sets import judged, set_prompts
from pipeline.generate.mixture.order import other_of
from pipeline.generate.order import generate_orders, generator
from pipeline.revise.order import revised
from pipeline.run.order import Answerer, Missing, Order, only
from pipeline.run.state import Iteration, Run, answers_of
from pipeline.run.stopping import Pause, stop_of
from pipeline.score.order import reference_of, scored
from pipeline.shape.mix.order import replayed
from pipeline.shape.order import shape_order
from pipeline.sources.order import (
    BASE,
    HELDOUT_PROMPTS,
    TRAIN_PROMPTS,
    heldout_prompts_order,
    import_order,
    train_prompts_order,
)
from pipeline.store import Artifact
from pipeline.train.order import train_order

WITHOUT_ENGINE = ("grade", "evaluate", "revise", "shape", "replay", "reference", "score", "train")
"""First words of the titles of orders that need no new completions."""
AFTER = {"generate": "evaluate", "evaluate": "shape", "shape": "train", "train": "generate"}


def chain(
    config: RunConfig,
    answers: Answerer,
    on_change: Callable[[Run], None] = lambda run: None,
    until: tuple[str, int] | None = None,
    pause: Pause = lambda run: False,
    given: Mapping[str, Artifact] | None = None,
) -> Run:
    """generate, evaluate, shape, train, and again, until the last checkpoint is evaluated or a rule of `stop` ends the run.

    Args:
        config: the run.
        answers: has each order answered.
        on_change: called with the run so far after every stage.
        until: a stage and its iteration, such as ("train", 0): stop after it.
        pause: asked after every stage whether to leave the rest for another time.

        given: what a run begins with, by the titles of its orders, where that is there already, wherever it came from.

    Returns:
        The run; if `answers` raises `Missing`, what there is of it.
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

    def ask(order: Order) -> Artifact:
        return only(answers.answer(order))

    there, course = given or {}, Course(config)
    run, trainings = Run(config, missing="prompts"), list[Order]()
    try:
        policy = base = there.get(BASE) or ask(import_order(config))
        run.train_prompts = there.get(TRAIN_PROMPTS) or ask(train_prompts_order(config, base))
        run.heldout_prompts = there.get(HELDOUT_PROMPTS) or ask(heldout_prompts_order(config, base, run.train_prompts))
        run.set_prompts = set_prompts(config, answers, base, run.train_prompts)
        run.missing = "generate 0"
        on_change(run)
        for number in range(config.iterations + 1):
            step = Iteration(number, policy)
            run.iterations.append(step)
            here, train = (course.at(number), run.train_prompts) if number < config.iterations else (config, None)
            other = other_of(here, answers, [one.policy for one in run.iterations]) if train else None
            orders = generate_orders(config, number, policy, train, run.heldout_prompts, here, other)
            answered = tuple(artifact for order in orders for artifact in answers.answer(order))
            step.answers = answers_of(answered, greedy=config.evaluate.greedy)
            if done("generate"):
                break
            step.evaluation = ask(evaluate_order(config, number, policy, step.answers))
            step.sets = judged(config, answers, number, policy, run.set_prompts)
            if done("evaluate") or step.answers.rollouts is None:
                break
            assert train is not None
            step.revised = revised(here, answers, number, policy, train, step.answers.rollouts)
            step.shaped = ask(shape_order(here, number, step.revised or step.answers.rollouts))
            step.replayed = replayed(here, answers, number, step.parts[0], run.rollouts_before(number))
            if done("shape"):
                break
            step.reference = reference_of(here, answers, [one.policy for one in run.iterations])
            fresh, *others = scored(here, answers, number, step.reference, policy, step.parts)
            step.scores, step.replayed = dict(fresh.scores), tuple(others)
            then = generator(config) if until != ("train", number) else None
            trainings.append(train_order(here, number, policy, step.parts, then, trainings))
            step.checkpoint = ask(trainings[-1])
            if done("train"):
                break
            policy = step.checkpoint
    except Missing as missing:
        run.missing = missing.title
        on_change(run)
    return run


def generates_next(run: Run) -> bool:
    """Whether the first thing that a run lacks is answers of a checkpoint, or what they are made from."""
    return run.missing is not None and run.missing.split()[0] not in WITHOUT_ENGINE
