"""The iterate flow: the chain of stages as Prefect tasks.

Finished work is found in the store by its key, whatever Prefect remembers: such a task ends in the state Cached. A stage
that crashed is tried once more; an error of the user's is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from flows.chain import chain, generates_next
from pipeline.common.errors import StageCrashed
from pipeline.config.run import RunConfig
from pipeline.run.local import LocalStages, OnStage
from pipeline.run.parts import Part
from pipeline.run.process import Event
from pipeline.run.record import Answers, Run, save_run
from pipeline.run.status import status
from pipeline.run.stopping import Pause
from pipeline.store import Artifact

T = TypeVar("T")
PROGRESS_SECONDS = 2.0
"""Seconds between updates of a progress bar in Prefect's UI: each is a request."""


class PrefectStages:
    """The stages of a run, each a Prefect task."""

    def __init__(self, config: RunConfig, on_stage: OnStage) -> None:
        self._bars = ProgressArtifacts()
        self._on_stage = on_stage
        self._found = False
        self.local = LocalStages(config, self._tell)

    def _tell(self, stage: str, event: Event) -> None:
        self._found = event["event"] == "found"
        self._bars.tell(stage, event)
        self._on_stage(stage, event)

    def _task(self, name: str, title: str, work: Callable[[], T]) -> T:
        result: list[T] = []

        def stage() -> State[Any]:
            result.append(work())
            return Completed(name="Cached") if self._found else Completed()

        as_task = Task(
            stage,
            name=name,
            task_run_name=title,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=1,
            retry_delay_seconds=2,
            retry_condition_fn=_may_pass,
        )
        as_task()
        return result[-1]

    def base(self) -> Artifact:
        return self._task("import", "base model", self.local.base)

    def prompts(self, base: Artifact) -> tuple[Artifact, Artifact]:
        return self._task("prompts", "prompts", lambda: self.local.prompts(base))

    def generate(self, iteration: int, policy: Artifact, train: Artifact | None, heldout: Artifact) -> Answers:
        work = lambda: self.local.generate(iteration, policy, train, heldout)  # noqa: E731
        return self._task("generate", f"generate {iteration}", work)

    def evaluate(self, iteration: int, policy: Artifact, answers: Answers) -> Artifact:
        return self._task("evaluate", f"evaluate {iteration}", lambda: self.local.evaluate(iteration, policy, answers))

    def shape(self, iteration: int, rollouts: Artifact) -> Artifact:
        return self._task("shape", f"shape {iteration}", lambda: self.local.shape(iteration, rollouts))

    def score(self, iteration: int, policy: Artifact, rollouts: Artifact) -> dict[str, Artifact]:
        return self._task("score", f"score {iteration}", lambda: self.local.score(iteration, policy, rollouts))

    def replay(self, iteration: int, fresh: Part, earlier: Sequence[Artifact]) -> tuple[Part, ...]:
        if not self.local.config.replay.is_on:
            return ()
        return self._task("replay", f"replay {iteration}", lambda: self.local.replay(iteration, fresh, earlier))

    def train(self, iteration: int, policy: Artifact, parts: Sequence[Part]) -> Artifact:
        return self._task("train", f"train {iteration}", lambda: self.local.train(iteration, policy, parts))


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether a failure is a crash, which may pass, and not an answer to the user, which will not."""
    return isinstance(state.result(raise_on_failure=False), StageCrashed)


class ProgressArtifacts:
    """A progress bar per long stage in Prefect's UI."""

    def __init__(self) -> None:
        self._bars: dict[str, tuple[Any, float]] = {}

    def tell(self, stage: str, event: Event) -> None:
        if event["event"] != "progress":
            return
        with suppress(Exception):  # a server that is away for a moment costs a bar, and not the stage
            self._draw(stage, event)

    def _draw(self, stage: str, event: Event) -> None:
        share = 100.0 * event["done"] / max(event["total"], 1)
        now = time.monotonic()
        if stage not in self._bars:
            key = stage.replace(" ", "-")
            self._bars[stage] = create_progress_artifact(progress=share, key=key, description=stage), now
        elif now - self._bars[stage][1] > PROGRESS_SECONDS or share == 100.0:
            update_progress_artifact(artifact_id=self._bars[stage][0], progress=share)
            self._bars[stage] = self._bars[stage][0], now


@flow(name="iterate", flow_run_name="{name}", persist_result=False, validate_parameters=False)
def iterate(
    name: str,
    config: dict[str, Any],
    until: list[Any] | None = None,
    on_stage: OnStage | None = None,
    max_hours: float | None = None,
) -> None:
    """N rounds of generate, evaluate, shape, train.

    Args:
        name: of the run.
        config: a RunConfig as JSON.
        until: stop after this stage, such as ["train", 0].
        on_stage: told what happens.
        max_hours: start no further stage after this long; the next run goes on from there.
    """
    started = time.monotonic()
    pause: Pause = lambda run: max_hours is not None and time.monotonic() - started > 3600 * max_hours  # noqa: E731
    settings = RunConfig.model_validate(config)
    last = (str(until[0]), int(until[1])) if until else None
    stages = PrefectStages(settings, on_stage or _log)
    stages.local.last = last
    if generates_next(chain(settings, LocalStages(settings, only_look=True), until=last)):
        stages.local.warm_up()
    try:
        run = chain(settings, stages, lambda run: save_run(run, settings.directory), last, pause)
    finally:
        stages.local.close()
    publish(run)


def _log(stage: str, event: Event) -> None:
    if event["event"] != "progress":
        get_run_logger().info("%s: %s", stage, event.get("message", event["event"]))


def publish(run: Run) -> None:
    """The table of iterations and links to the artifacts, for Prefect's UI."""
    columns = (
        "iteration",
        "pass_at_1",
        "pass_at_1_low",
        "pass_at_1_high",
        "greedy_accuracy",
        "reward_mean",
        "kl_behavior",
        "tokens",
    )
    rows = [{column: row.get(column) for column in columns} for row in status(run)["iterations"]]
    key = "".join(c if c.isalnum() else "-" for c in run.config.name.lower()).strip("-")
    create_table_artifact(table=rows, key=f"{key}-iterations", description=f"Run {run.config.name}, one row per checkpoint")
    place = run.config.directory.resolve()
    links = {"artifacts": ("Where the artifacts lie", place), "report": ("The run's report", place / "report.html")}
    for name, (description, target) in links.items():
        create_link_artifact(link=target.as_uri(), link_text=str(target), key=f"{key}-{name}", description=description)
