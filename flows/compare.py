"""The compare flow: many algorithms on one snapshot, each stage of each trial a Prefect task.

A trial that fails does not stop the others; the same command tries it again, and whatever it had finished is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.iterate import PrefectStages
from flows.trials import attempt, judge_before, look
from pipeline.common.errors import UserError
from pipeline.compare.plan import Plan, Variant, make_plan
from pipeline.compare.stages import TrialStages
from pipeline.compare.table import record
from pipeline.compare.trials import Judged, Trial, Trials
from pipeline.generate.engine import engine_environment
from pipeline.run.local import OnStage
from pipeline.run.process import Event
from pipeline.run.processes import Processes

T = TypeVar("T")


class TrialTasks(PrefectStages):
    """The stages of one trial, each a Prefect task with the trial's name.

    Args:
        variant: None for the policy before training.
        processes: shared by all trials.
    """

    def __init__(self, plan: Plan, variant: Variant | None, on_stage: OnStage, processes: Processes) -> None:
        self._title = plan.title(variant) if variant else "before training"
        self.last = self._title
        super().__init__(plan.judging(variant), on_stage)
        self.local = TrialStages(plan, variant, self._tell, processes=processes)

    def _tell(self, stage: str, event: Event) -> None:
        self.last = f"{self._title}: {stage.split()[0]}"
        self._found = event["event"] == "found"
        self._bars.tell(_key(self.last), event)
        self._on_stage(self.last, event)

    def _task(self, name: str, title: str, work: Callable[[], T]) -> T:
        return super()._task(name, f"{self._title}: {name}", work)


@flow(name="compare", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def compare(name: str, order: Mapping[str, Any], on_stage: OnStage) -> str:
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


def work_on(trials: Trials, on_stage: OnStage) -> None:
    """Make what is missing. Failures are written down in `trials`."""
    processes = Processes(engine_environment())
    try:
        _work_with(processes, trials, on_stage)
    finally:
        processes.close()


def _work_with(processes: Processes, trials: Trials, on_stage: OnStage) -> None:
    plan = trials.plan
    if trials.before is None:
        judged = _try(TrialTasks(plan, None, on_stage, processes), on_stage, lambda stages: judge_before(plan, stages))
        if isinstance(judged, Judged):
            trials.before = judged
    for variant in trials.missing:
        tasks = TrialTasks(plan, variant, on_stage, processes)
        trial = _try(tasks, on_stage, lambda stages: attempt(plan, stages))
        if isinstance(trial, Trial):
            trials.done[variant] = trial
        else:
            trials.failed[variant] = trial


def _try(tasks: TrialTasks, on_stage: OnStage, work: Callable[[TrialTasks], T]) -> T | str:
    """What the work gives, or why it failed."""
    try:
        return work(tasks)
    except UserError as error:
        on_stage(tasks.last, {"event": "failed", "message": str(error)})
        return str(error)


def _key(text: str) -> str:
    """A key that Prefect takes for an artifact."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in text.lower()).strip("-")
