"""The iterate flow: the chain of stages as Prefect tasks.

Finished work is found in the store by its key, whatever Prefect remembers: such a task ends in the state Cached. A stage
that crashed is tried once more; an error of the user's is not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact, create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed
from prefect.tasks import Task

from flows.answers import hands, local, looking, working
from flows.chain import chain, generates_next
from pipeline.common.errors import StageCrashed
from pipeline.config.run import RunConfig
from pipeline.generate.order import generator
from pipeline.look.trackers.live import Live
from pipeline.run.answers import Listener
from pipeline.run.order import Answerer, Missing, Order
from pipeline.run.process import Event
from pipeline.run.record import save_run
from pipeline.run.retention import Retention
from pipeline.run.state import Run
from pipeline.run.status import status
from pipeline.run.stopping import Pause
from pipeline.store import Artifact, Store

PROGRESS_SECONDS = 2.0
"""Seconds between updates of a progress bar in Prefect's UI: each is a request."""


class AsTask:
    """Has every order answered as a Prefect task.

    Args:
        inner: answers.
        look: finds what is finished, to say which tasks had nothing to do.
        title: what a task is called.
    """

    def __init__(self, inner: Answerer, look: Answerer, title: Callable[[Order], str] = lambda order: order.title) -> None:
        self._inner, self._look, self._title = inner, look, title

    def answer(self, order: Order) -> tuple[Artifact, ...]:
        result: list[tuple[Artifact, ...]] = []

        def stage() -> State[Any]:
            found = self._is_there(order)
            result.append(self._inner.answer(order))
            return Completed(name="Cached") if found else Completed()

        as_task = Task(
            stage,
            name=order.stage,
            task_run_name=self._title(order),
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=1,
            retry_delay_seconds=2,
            retry_condition_fn=_may_pass,
        )
        as_task()
        return result[-1]

    def _is_there(self, order: Order) -> bool:
        try:
            self._look.answer(order)
        except Missing:
            return False
        return True


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
    on_stage: Listener | None = None,
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
    also: Listener = on_stage or _log
    said = lambda text: also("tracker", {"event": "note", "message": text})  # noqa: E731
    live = Live(settings, said, said) if settings.track.to else None
    tell = told(ProgressArtifacts(), *([live.tell] if live else []), also)

    retention = Retention(Store(settings.store_url), lambda message: also("keep", {"event": "note", "message": message}))

    def changed(run: Run) -> None:
        save_run(run, settings.directory)
        retention.apply(run)
        if live:
            live.see(run)

    with hands() as processes, closing(live) if live else nullcontext():
        if generates_next(chain(settings, looking(settings), until=last)):
            local(settings, processes).warm_up(generator(settings))
        answers = AsTask(working(settings, processes, tell), looking(settings))
        run = chain(settings, answers, changed, last, pause)
    publish(run)


def told(bars: ProgressArtifacts, *others: Listener) -> Listener:
    """Tells progress bars of Prefect's UI, and others."""

    def tell(title: str, event: Event) -> None:
        bars.tell(title, event)
        for other in others:
            other(title, event)

    return tell


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
