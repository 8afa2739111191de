"""What a schedule says of its firings: one line each, with what it did and when the next one comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from prefect import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterEndTime,
)
from prefect.client.schemas.objects import FlowRun, StateType

from flows.times import firing_after
from pipeline.common.text import visible
from pipeline.config.stop import StopConfig

POLL_SECONDS = 5.0
"""How often the server is asked for firings that ended."""
BEFORE = timedelta(minutes=1)
"""A firing that was due so long before the schedule was started was missed: nobody waited for it."""
ENDS = ("target_pass_at_1", "patience", "max_drop", "min_entropy", "max_entropy", "max_kl", "max_failed_rewards", "max_tokens")
"""Rules of `stop` that are off unless they are set."""
INTERRUPTED = "aborted by an interrupt signal"
"""What Prefect says of a firing that Ctrl-C ended, together with its schedule."""
LONGEST = 400
"""Characters of a firing's message in its line."""


class FiringState(Protocol):
    """A state of Prefect's, as far as a line goes into it."""

    @property
    def type(self) -> StateType: ...

    @property
    def name(self) -> str | None: ...

    @property
    def message(self) -> str | None: ...


@dataclass(frozen=True)
class Clock:
    """When a schedule fires."""

    cron: str
    timezone: str

    def after(self, moment: datetime) -> str:
        return f"{firing_after(self.cron, self.timezone, moment):%Y-%m-%d %H:%M %Z}"


def firing_line(planned: datetime, state: FiringState, clock: Clock, now: datetime) -> str:
    """One line on a firing that ended.

    Args:
        planned: when it was to start.
        state: how it ended.
        clock: when the next one comes.
        now: what is not before this is still to come.
    """
    message = (state.message or "").split("\n")[0][:LONGEST]
    if state.name == "Missed":
        said = f"skipped: {message}"
    elif state.type == StateType.CANCELLED:
        limit = "concurrency limit" in message.lower()
        said = "skipped: an earlier firing is still at work" if limit else f"cancelled: {message or 'by hand'}"
    elif state.type == StateType.CRASHED:
        said = f"crashed: {message}"
    elif state.type == StateType.FAILED and state.name != "Stopped":
        said = f"failed: {message}"
    else:
        said = message
    then = f"next {clock.after(max(now, planned))}"
    if state.name == "Stopped":
        then = "the schedule is paused, and nothing fires until it is resumed"
    return visible(f"{clock_time(planned, clock)}  {said}; {then}")


def clock_time(moment: datetime, clock: Clock) -> str:
    """A moment in the zone of a schedule.

    >>> clock_time(datetime(2026, 12, 1, 1, 0, tzinfo=UTC), Clock("0 2 * * *", "Europe/Berlin"))
    '2026-12-01 02:00'
    """
    from zoneinfo import ZoneInfo

    return f"{moment.astimezone(ZoneInfo(clock.timezone)):%Y-%m-%d %H:%M}"


def endless(stop: StopConfig) -> str | None:
    """What is said at the start of a schedule that no rule ends; None if one may."""
    if any(getattr(stop, rule) is not None for rule in ENDS):
        return None
    only = ", other than rewards that teach nothing (stop.no_signal)" if stop.no_signal else ""
    return (
        f"no rule ends this run{only}: it fires until it is stopped by hand. stop.target_pass_at_1, stop.patience, stop.max_drop "
        "or stop.max_tokens end it"
    )


class Watch:
    """Tells of every firing of a deployment that ends, from the start on.

    Args:
        name: of the deployment of the flow `scheduled`.
        clock: when it fires.
        say: given the lines.
        on_crash: given the reason of a firing that ended without a last word: out of memory, say.
    """

    def __init__(self, name: str, clock: Clock, say: Callable[[str], None], on_crash: Callable[[str], None]) -> None:
        self._name, self._clock, self._say, self._on_crash = name, clock, say, on_crash
        self._since: Any = datetime.now(UTC)
        self._told: set[object] = set()
        self._over = threading.Event()

    @contextmanager
    def watching(self) -> Iterator[None]:
        threading.Thread(target=self._follow, daemon=True).start()
        try:
            yield
        finally:
            self._over.set()

    def _follow(self) -> None:
        while not self._over.wait(POLL_SECONDS):
            with suppress(Exception):  # a server that is away for a moment costs a look, and not the schedule
                self._look()

    def _look(self) -> None:
        with get_client(sync_client=True) as client:
            ended = client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["scheduled"])),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[self._name])),
                flow_run_filter=FlowRunFilter(end_time=FlowRunFilterEndTime(after_=self._since)),
            )
        self.hear(sorted(ended, key=lambda run: run.end_time or self._since))

    def hear(self, ended: Sequence[FlowRun]) -> None:
        """Tell of firings that ended, unless that was done; in one line of those that nobody was there for."""
        missed = [run for run in ended if run.id not in self._told and self._is_from_before(run)]
        if missed:
            self._told |= {run.id for run in missed}
            first, last = (
                clock_time(end(filter(None, (r.expected_start_time for r in missed))), self._clock) for end in (min, max)
            )
            self._say(f"{first} to {last}  skipped: {len(missed):,} firings were missed while no schedule was served")
        for run in ended:
            self._hear(run)

    def _is_from_before(self, run: FlowRun) -> bool:
        """Whether a firing was due when this schedule did not yet wait for any, and did not work."""
        planned, state = run.expected_start_time, run.state
        cancelled = state is not None and state.type == StateType.CANCELLED
        return cancelled and planned is not None and planned < self._since - BEFORE

    def _hear(self, run: FlowRun) -> None:
        planned, state = run.expected_start_time, run.state
        if run.id in self._told or state is None or planned is None or INTERRUPTED in (state.message or ""):
            return
        self._told.add(run.id)
        self._say(firing_line(planned, state, self._clock, datetime.now(UTC)))
        if state.type == StateType.CRASHED:
            self._on_crash(state.message or "no reason is known")
