"""What a trial asks for, in sequence, written once, as `chain` is for a run."""

from __future__ import annotations

from contextlib import suppress

from flows.answers import looking
from pipeline.common.errors import UserError
from pipeline.compare.plan import Plan, Variant
from pipeline.compare.trials import Judged, Trial, Trials
from pipeline.evaluate.order import evaluate_order
from pipeline.generate.order import generate_order, generator
from pipeline.prepare.check import check_training
from pipeline.run.order import Answerer, Missing, only
from pipeline.run.parts import Part
from pipeline.run.state import answers_of
from pipeline.score.order import reference_of, scored
from pipeline.shape.fit import check_rollouts
from pipeline.shape.mix.order import replayed
from pipeline.shape.order import shape_order
from pipeline.store import Artifact
from pipeline.train.order import train_order


def judge(plan: Plan, variant: Variant | None, answers: Answerer, iteration: int, policy: Artifact) -> Judged:
    """Held-out figures of a policy, by the run's settings.

    Args:
        variant: whose policy it is; None for the one that the trainings start from.
    """
    config = plan.judging(variant)
    made = answers.answer(generate_order(config, iteration, policy, None, plan.snapshot.heldout))
    answered = answers_of(made, greedy=config.evaluate.greedy)
    return Judged(answered, only(answers.answer(evaluate_order(config, iteration, policy, answered))))


def judge_before(plan: Plan, answers: Answerer) -> Judged:
    """Held-out figures of the policy that the trainings start from."""
    return judge(plan, None, answers, plan.snapshot.iteration, plan.snapshot.policy)


def attempt(plan: Plan, variant: Variant, answers: Answerer) -> Trial:
    """shape, replay, score and train by the variant's settings and seed; answer the held-out prompts, evaluate."""
    snapshot, config = plan.snapshot, plan.training(variant)
    number, policy, rollouts = snapshot.iteration, snapshot.policy, snapshot.rollouts
    fresh = Part(rollouts, only(answers.answer(shape_order(config, number, rollouts))))
    parts = [fresh, *replayed(config, answers, number, fresh, snapshot.earlier)]
    parts = scored(config, answers, number, reference_of(config, answers, snapshot.policies), policy, parts)
    checkpoint = only(answers.answer(train_order(config, number, policy, parts, then=generator(config))))
    return Trial(tuple(parts), checkpoint, judge(plan, variant, answers, number + 1, checkpoint))


def look(plan: Plan) -> Trials:
    """What there is already, and what cannot be: algorithms that need what the rollouts do not have."""
    trials = Trials(plan)
    with suppress(Missing):
        trials.before = judge_before(plan, looking(plan.judging(None)))
    for variant in plan.variants():
        try:
            trials.done[variant] = attempt(plan, variant, looking(plan.training(variant)))
        except Missing:
            if why := _refusal(plan, variant):
                trials.failed[variant] = why
    return trials


def _refusal(plan: Plan, variant: Variant) -> str | None:
    rollouts = plan.snapshot.rollouts
    try:
        check_rollouts(rollouts, check_training(plan.training(variant)), rollouts.url)
    except UserError as error:
        return str(error)
    return None
