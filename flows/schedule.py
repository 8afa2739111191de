"""A run that goes on by itself: every firing of a schedule does some more iterations, from where the last one stopped."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import flow, get_client, get_run_logger, runtime
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, State, StateType
from prefect.events import emit_event
from prefect.schedules import Cron, Schedule
from prefect.states import Completed, Crashed, Failed
from prefect.types.entrypoint import EntrypointType

from flows.answers import looking
from flows.aside import aside
from flows.chain import chain
from flows.firings import INTERRUPTED, Clock, Watch
from flows.iterate import iterate
from flows.server import check_named_server
from flows.times import is_missed
from pipeline.common.errors import UserError
from pipeline.config.load import change_config, load_config
from pipeline.config.run import RunConfig
from pipeline.look.report.page import write_report
from pipeline.look.report.terminal import closing_lines
from pipeline.prepare.check import check_config
from pipeline.run.deed import deed_of
from pipeline.run.record import load_run, recorded_config, save_run
from pipeline.run.state import Run
from pipeline.run.telling import Warn, message, tell, tell_of_end, telling_of_failure
from pipeline.store.lock import Lock, is_held

ALONE = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW, grace_period_seconds=600)
"""A firing that comes while another one works is cancelled, not queued."""
AT_WORK = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
"""States in which a firing has its slot."""


@flow(name="scheduled", flow_run_name="{config} by schedule", persist_result=False)
def scheduled(
    directory: str,
    config: str,
    overrides: list[str] | None = None,
    max_hours: float | None = None,
    cron: str | None = None,
    timezone: str = "UTC",
) -> State[Any]:
    """One firing: `iterations` more rounds of the run, or what an earlier firing left undone.

    Args:
        directory: where relative paths of the config start.
        config: the run's YAML file.
        overrides: `key=value` texts.
        max_hours: start no further stage after this long; the next firing goes on.
        cron, timezone: of the schedule.

    Returns:
        Completed; named Missed, without any work, if the next firing is due too; named Stopped if a rule of `stop` ended the
        run (its schedule is then paused), and Failed if that rule says that something went wrong.
    """
    planned, now = runtime.flow_run.scheduled_start_time, datetime.now(UTC)
    if cron and planned and is_missed(cron, timezone, planned, now):
        return Completed(name="Missed", message=f"planned for {planned:%Y-%m-%d %H:%M %Z}, and the next firing is due")
    os.chdir(directory)
    settings = load_config(config, overrides or ())
    warn = get_run_logger().warning
    try:
        with telling_of_failure(settings, warn):
            found, did = _fire(settings, max_hours, warn)
    except UserError as error:
        get_run_logger().error(str(error))
        return Failed(message=str(error))
    for line in closing_lines(found):
        get_run_logger().info(line)
    return _conclude(found, did)


def _fire(settings: RunConfig, max_hours: float | None, warn: Warn) -> tuple[Run, str]:
    """Do what a firing does. Returns the run, and in words what was done."""
    started = time.monotonic()
    with Lock(settings.directory / "schedule.lock"):
        before, target = look(settings)
        found = before
        if before.stopped:
            save_run(before, settings.directory)
        else:
            target_config = change_config(settings, [f"iterations={target}"])
            check_config(target_config)
            iterate(settings.name, target_config.model_dump(mode="json"), max_hours=max_hours)
            found = load_run(settings.directory)
            tell_of_end(found, warn)
        write_report(found, settings.directory / "report.html")
    return found, deed_of(before, found, time.monotonic() - started)


def look(config: RunConfig) -> tuple[Run, int]:
    """What there is of a scheduled run, and the iteration that this firing works towards.

    An unfinished firing is finished first; a finished one is followed by `config.iterations` more. Rounds that are there
    already are none of these, whatever the record says: `rollbook run` by hand writes one of the config's own iterations.

    Raises:
        IntegrityError: the run's record is damaged, so that it cannot be told how far earlier firings were to go.
    """
    recorded = recorded_config(config.directory)
    aim = max(config.iterations, recorded.iterations if recorded else 0)
    while True:
        found = chain(change_config(config, [f"iterations={aim}"]), looking(config))
        if found.missing is not None or found.stopped:
            return found, aim
        aim += config.iterations


def _conclude(run: Run, did: str) -> State[Any]:
    if run.stopped is None:
        return Completed(message=did)
    _pause()
    why = f"stopped after iteration {run.stopped.iteration}: {run.stopped.why}; {did}"
    place = {"prefect.resource.id": f"rollbook.run.{run.config.name}", "prefect.resource.name": run.config.name}
    emit_event("rollbook.run.stopped", resource=place, payload={"rule": run.stopped.rule, "why": run.stopped.why})
    return Completed(name="Stopped", message=why) if run.stopped.healthy else Failed(name="Stopped", message=why)


def _pause() -> None:
    """Stop the schedule that started this firing, if one did."""
    if runtime.deployment.id:
        with get_client(sync_client=True) as client:
            client.pause_deployment(runtime.deployment.id)


@dataclass(frozen=True)
class Firings:
    """When a schedule fires."""

    cron: str | None
    """None: only when asked."""
    timezone: str
    """Zone of the cron line."""
    max_hours: float | None
    """Longest that one firing goes on starting stages."""

    @property
    def schedule(self) -> Schedule | None:
        return Cron(self.cron, timezone=self.timezone) if self.cron else None


def parameters_of(config: Path, overrides: list[str], firings: Firings) -> tuple[RunConfig, dict[str, Any]]:
    """The run, and what a firing is told; the config is checked first, so that a typo shows now and not at night."""
    settings = load_config(config, overrides)
    if settings.phases and settings.phases[-1].last is not None:
        place, first = len(settings.phases) - 1, settings.phases[-1].first
        raise UserError(
            f"phases.{place}.iterations: it ends with iteration {settings.phases[-1].last}, and every firing adds iterations; "
            f"expected {first}-, which holds for all from there on"
        )
    check_config(settings)
    return settings, {"directory": str(Path.cwd()), "config": str(config), "overrides": overrides, **asdict(firings)}


def serve(settings: RunConfig, told: dict[str, Any], firings: Firings) -> None:
    """Serve a schedule from this process until it is stopped. Needs PREFECT_API_URL.

    What Prefect and the firings print goes to `logs/schedule.log` of the run; standard error has a line for each firing.

    Args:
        settings: the run.
        told: what a firing is told, by `parameters_of`.
        firings: when; with a cron line.

    Raises:
        KeyboardInterrupt: Ctrl-C, which Prefect answers by returning.
        SystemExit: SIGTERM, which Prefect answers with status 0.
    """
    assert firings.cron
    clock = Clock(firings.cron, firings.timezone)
    with aside(settings.directory / "logs" / "schedule.log") as say:
        crashed = lambda why: tell(settings, message(settings, "failed", f"a firing crashed: {why}"), say)  # noqa: E731
        watch = Watch(settings.name, clock, say, crashed)
        try:
            with watch.watching():
                scheduled.serve(
                    name=settings.name,
                    schedule=firings.schedule,
                    parameters=told,
                    global_limit=ALONE,
                    entrypoint_type=EntrypointType.MODULE_PATH,
                    print_starting_message=False,
                    paused=False,
                )
        except SystemExit:
            raise SystemExit(128 + signal.SIGTERM) from None
    raise KeyboardInterrupt


def free_slot(name: str, directory: Path) -> int:
    """End firings that Prefect still counts as at work though their process is gone, so that the next one need not be skipped.

    Ctrl-C and a kill may take the server before a firing's last word: its slot is then taken for good, in the server's database.
    For a server of this machine alone: elsewhere the lock of another machine's firing may not be seen.

    Args:
        name: of the deployment of `scheduled`.
        directory: of its run, where a firing that works holds a lock.

    Returns:
        How many were ended.
    """
    from prefect.exceptions import ObjectNotFound

    if is_held(directory / "schedule.lock"):
        return 0
    with get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(f"{scheduled.name}/{name}")
        except ObjectNotFound:
            return 0
        left = client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
            flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=AT_WORK))),
        )
        for run in left:
            client.set_flow_run_state(run.id, Crashed(message=INTERRUPTED), force=True)
        limit = client.read_deployment(deployment.id).global_concurrency_limit
        if limit is not None and limit.active_slots:
            client.update_global_concurrency_limit(limit.name, GlobalConcurrencyLimitUpdate(active_slots=0))
    return len(left)


def deploy(config: Path, pool: str, overrides: list[str], firings: Firings) -> str:
    """Register the schedule with a work pool. Returns the deployment's name, which ends with the run's.

    Raises:
        UserError: there is no such work pool, or no server where PREFECT_API_URL says.
    """
    from prefect.exceptions import ObjectNotFound

    settings, told = parameters_of(config, overrides, firings)
    check_named_server()
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(pool)
        except ObjectNotFound:
            raise UserError(
                f"there is no work pool {pool!r}; make one with `prefect work-pool create {pool} --type process`"
            ) from None
    code = Path(__file__).parent.parent
    flow_of_code: Any = scheduled.from_source(source=str(code), entrypoint="flows/schedule.py:scheduled")
    flow_of_code.deploy(
        name=settings.name,
        work_pool_name=pool,
        schedule=firings.schedule,
        parameters=told,
        concurrency_limit=ALONE,
        build=False,
        push=False,
        print_next_steps=False,
        ignore_warnings=True,
    )
    return f"{scheduled.name}/{settings.name}"
