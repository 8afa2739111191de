"""The order of a trial, written once, as `chain` is for a run."""

from __future__ import annotations

from contextlib import suppress

from flows.chain import Stages, scored
from pipeline.common.errors import UserError
from pipeline.compare.plan import Plan, Variant
from pipeline.compare.stages import TrialStages
from pipeline.compare.trials import Judged, Trial, Trials
from pipeline.prepare.check import check_training
from pipeline.run.local import Missing
from pipeline.run.parts import Part
from pipeline.shape.fit import check_rollouts


def judge_before(plan: Plan, stages: Stages) -> Judged:
    """Held-out figures of the policy that the trainings start from."""
    snapshot = plan.snapshot
    answers = stages.generate(snapshot.iteration, snapshot.policy, None, snapshot.heldout)
    return Judged(answers, stages.evaluate(snapshot.iteration, snapshot.policy, answers))


def attempt(plan: Plan, stages: Stages) -> Trial:
    """shape, replay, score, train, answer the held-out prompts, evaluate."""
    snapshot = plan.snapshot
    number, policy, rollouts = snapshot.iteration, snapshot.policy, snapshot.rollouts
    fresh = Part(rollouts, stages.shape(number, rollouts))
    parts = scored(stages, number, policy, [fresh, *stages.replay(number, fresh, snapshot.earlier)])
    checkpoint = stages.train(number, policy, parts)
    answers = stages.generate(number + 1, checkpoint, None, snapshot.heldout)
    return Trial(tuple(parts), checkpoint, Judged(answers, stages.evaluate(number + 1, checkpoint, answers)))


def look(plan: Plan) -> Trials:
    """What there is already, and what cannot be: algorithms that need what the rollouts do not have."""
    trials = Trials(plan)
    with suppress(Missing):
        trials.before = judge_before(plan, TrialStages(plan, None, only_look=True))
    for variant in plan.variants():
        try:
            trials.done[variant] = attempt(plan, TrialStages(plan, variant, only_look=True))
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
