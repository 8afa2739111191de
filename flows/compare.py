"""The compare flow: many algorithms on one snapshot, each stage of each trial a Prefect task.

A trial that fails does not stop the others; the same command tries it again, and whatever it had finished is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.answers import hands, looking, working
from flows.iterate import AsTask, ProgressArtifacts
from flows.trials import attempt, judge_before, look
from pipeline.common.errors import UserError
from pipeline.compare.plan import Plan, Variant, make_plan
from pipeline.compare.table import record
from pipeline.compare.trials import Judged, Trial, Trials
from pipeline.run.answers import Listener
from pipeline.run.order import Answerer, Order
from pipeline.run.process import Event
from pipeline.run.processes import Processes
from pipeline.store import Artifact

T = TypeVar("T")


class TrialAnswers:
    """Answers the orders of one trial, each as a Prefect task with the trial's name.

    Args:
        variant: None for the policy before training.
        processes: shared by all trials.
    """

    def __init__(self, plan: Plan, variant: Variant | None, on_stage: Listener, processes: Processes) -> None:
        self.last = self._name = plan.title(variant) if variant else "before training"
        self._bars, self._on_stage = ProgressArtifacts(), on_stage
        config = plan.judging(variant)
        self._inner = AsTask(working(config, processes, self._tell), looking(config), self._title)

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        return self._inner.answer(order)

    def _title(self, order: Order) -> str:
        return f"{self._name}: {order.stage}"

    def _tell(self, title: str, event: Event) -> None:
        self.last = f"{self._name}: {title.split()[0]}"
        self._bars.tell(_key(self.last), event)
        self._on_stage(self.last, event)


@flow(name="compare", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def compare(name: str, order: Mapping[str, Any], on_stage: Listener) -> str:
    """Make every trial that is missing, and the comparison of all.

    Args:
        name: of the flow run.
        order: arguments of `make_plan`.
        on_stage: told what happens.

    Returns:
        Path of the comparison artifact.
    """
    plan = make_plan(**order)
    trials = look(plan)
    work_on(trials, on_stage)
    made = record(trials)
    rows = made.summary["algorithms"]
    create_table_artifact(table=rows, key=f"{_key(name)}-algorithms", description=f"{name}, one row per algorithm")
    return str(made.path)


def work_on(trials: Trials, on_stage: Listener) -> None:
    """Make what is missing. Failures are written down in `trials`."""
    with hands() as processes:
        _work_with(processes, trials, on_stage)


def _work_with(processes: Processes, trials: Trials, on_stage: Listener) -> None:
    plan = trials.plan
    if trials.before is None:
        answers = TrialAnswers(plan, None, on_stage, processes)
        judged = _try(answers, on_stage, partial(judge_before, plan))
        if isinstance(judged, Judged):
            trials.before = judged
    for variant in trials.missing:
        answers = TrialAnswers(plan, variant, on_stage, processes)
        trial = _try(answers, on_stage, partial(attempt, plan, variant))
        if isinstance(trial, Trial):
            trials.done[variant] = trial
        else:
            trials.failed[variant] = trial


def _try(answers: TrialAnswers, on_stage: Listener, work: Callable[[Answerer], T]) -> T | str:
    """What the work gives, or why it failed."""
    try:
        return work(answers)
    except UserError as error:
        on_stage(answers.last, {"event": "failed", "message": str(error)})
        return str(error)


def _key(text: str) -> str:
    """A key that Prefect takes for an artifact."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
