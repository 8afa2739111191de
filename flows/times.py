"""When a cron line fires: asked of Prefect's own schedules, so that it is what a server will do."""

from __future__ import annotations

import asyncio
import difflib
import zoneinfo
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from pipeline.common.errors import UserError

AROUND = timedelta(days=2)
"""How far before and after a change of the clocks firings are looked at."""
MOST = 200
"""Firings that are looked at there: a line that fires more often is not harmed by one that moves."""
LATE = timedelta(minutes=10)
"""A firing that starts later than this may have been missed, and is not if it is only slow to start."""


def first_firing(cron: str, timezone: str) -> datetime:
    """The next time that a cron line fires, in its zone.

    Raises:
        UserError: it is no cron line, there is no such zone, or it never fires.
    """
    if len(cron.split()) != 5:
        raise UserError(f"--cron {cron!r}: expected five fields (minute hour day month weekday), such as '0 2 * * *'")
    if timezone not in (zones := zoneinfo.available_timezones()):
        near = difflib.get_close_matches(timezone, zones, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else "Such as Europe/Berlin or America/New_York."
        raise UserError(f"--timezone {timezone!r}: there is no such zone. {hint}")
    from prefect.client.schemas.schedules import CronSchedule
    from pydantic import ValidationError

    try:
        CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise UserError(f"--cron {cron!r}: {error.errors()[0]['msg']}") from None
    try:
        return _firings(cron, timezone, datetime.now(UTC), 1)[0]
    except (ValueError, IndexError):  # no date in fifty years
        raise UserError(f"--cron {cron!r}: never fires, as no month that it names has that day") from None


def shifted_firing(cron: str, timezone: str, start: datetime) -> datetime | None:
    """The first firing of the year from `start` whose time of day the cron line does not name, since clocks change that night."""
    for change in _changes(timezone, start):
        begin = (change - AROUND).astimezone(zoneinfo.ZoneInfo(timezone))
        named = {(plain.hour, plain.minute) for plain in _firings(cron, "UTC", begin.replace(tzinfo=UTC), MOST)}
        for firing in _firings(cron, timezone, begin, MOST):
            if firing > change + AROUND:
                break
            if (firing.hour, firing.minute) not in named:
                return firing
    return None


def is_missed(cron: str, timezone: str, planned: datetime, now: datetime) -> bool:
    """Whether a firing comes so late that the next one is due too: of those that wait, only the newest works."""
    return now - planned > LATE and firing_after(cron, timezone, planned) <= now


def firing_after(cron: str, timezone: str, moment: datetime) -> datetime:
    """The first time after a moment at which a sound cron line fires, in its zone."""
    return _firings(cron, timezone, moment + timedelta(seconds=1), 1)[0]


def _firings(cron: str, timezone: str, start: datetime, count: int) -> Sequence[datetime]:
    from prefect.server.schemas.schedules import CronSchedule

    with ThreadPoolExecutor(1) as thread:  # a flow may have an event loop of its own in this one
        return list(
            thread.submit(asyncio.run, CronSchedule(cron=cron, timezone=timezone).get_dates(n=count, start=start)).result()
        )


def _changes(timezone: str, start: datetime) -> list[datetime]:
    """Days of the following year on which a zone's clocks change."""
    zone = zoneinfo.ZoneInfo(timezone)
    days = [start + timedelta(days=day) for day in range(367)]
    offsets = [day.astimezone(zone).utcoffset() for day in days]
    return [day for day, before, after in zip(days[1:], offsets, offsets[1:], strict=False) if before != after]
