"""What an audit finds and what it looked at.

A finding says where, what was expected, what is there, how bad that is and what to do. A count says how much was looked at,
so that silence can be told from sight.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, overload

Severity = Literal["error", "warning", "unknown", "note"]
Area = Literal["integrity", "schema", "derivation", "hygiene", "lineage"]
SEVERITIES: Mapping[Severity, str] = {
    "error": "not what it claims to be",
    "warning": "usable, but not without looking at this",
    "unknown": "could not be checked",
    "note": "worth knowing",
}
AREAS: Mapping[Area, str] = {
    "integrity": "Files, hashes, ids and keys.",
    "lineage": "Whether every artifact's parents are there, and whether the run's record names what is there.",
    "schema": "Columns, rows, and what tables say of one another.",
    "derivation": "Figures computed again from what they were computed from.",
    "hygiene": "Whether the data are good to learn from and to be judged by.",
}
LONGEST = 300
"""Characters of an expected or found value that are kept."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be."""

    area: Area
    check: str
    """Name of the check, such as sha256."""
    severity: Severity
    artifact: str | None
    """Kind and directory, such as rollouts/3f9c0d2e…; None for the run's record or the store itself."""
    id: str | None
    """The artifact's id, as its manifest states it."""
    file: str | None
    """Relative to the artifact; for a finding without one, to what was audited."""
    row: int | None
    """The first row of the file that is like this, from 0."""
    column: str | None
    expected: str
    found: str
    remedy: str
    count: int = 1
    """How many rows, values or files are like this."""
    path: str | None = None
    """The file or directory, as a shell takes it."""
    commands: tuple[str, ...] = ()
    """What mends it, one after the other; nothing where no command does."""

    @property
    def where(self) -> str:
        """Place in one line: artifact, file, row, column."""
        place = "/".join(part for part in (self.artifact, self.file) if part) or "."
        row = f", row {self.row}" if self.row is not None else ""
        column = f", {self.column}" if self.column else ""
        return f"{place}{row}{column}"


@dataclass(frozen=True, kw_only=True)
class Count:
    """How much was looked at."""

    area: Area
    what: str
    """Such as "rows" or "behavior logprobs recomputed"."""
    done: int
    total: int
    """How many there are."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of an artifact, for whoever wants to judge the data."""

    artifact: str
    name: str
    value: float | None
    """None if it is not defined for these data."""
    limit: str
    """What is still no finding, in words; empty if there is no limit."""
    beyond: bool
    severity: Severity = "note"
    remedy: str = ""


class Ledger:
    """Collects findings and counts from many threads. Equal findings of one file become one, with a count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._findings: dict[tuple[Any, ...], Finding] = {}
        self._counts: dict[tuple[Area, str], list[int]] = {}
        self._figures: list[Figure] = []

    def add(self, finding: Finding) -> None:
        key = (finding.check, finding.severity, finding.artifact, finding.file, finding.column, finding.expected)
        with self._lock:
            before = self._findings.get(key)
            if before is not None:
                first = before if (before.row or 0) <= (finding.row or 0) else finding
                finding = dataclasses.replace(first, count=before.count + finding.count)
            self._findings[key] = finding

    def count(self, area: Area, what: str, done: int, total: int | None = None) -> None:
        """Add to a count.

        Args:
            total: how many there are, if not all were looked at.
        """
        with self._lock:
            entry = self._counts.setdefault((area, what), [0, 0])
            entry[0] += done
            entry[1] += done if total is None else total

    def absorb(self, other: Ledger) -> None:
        """Add another ledger's counts."""
        for count in other.counts:
            self.count(count.area, count.what, count.done, count.total)

    def figure(self, figure: Figure, spot: Spot, row: int | None = None) -> None:
        """Keep a figure; one beyond its limit is a finding too.

        Args:
            row: the first row that makes it so.
        """
        with self._lock:
            self._figures.append(figure)
        if figure.beyond:
            said: dict[str, Any] = {"expected": f"{figure.name}: {figure.limit}", "found": f"{figure.value:.4g}"}
            spot.report(figure.severity, "hygiene", "figure", **said, remedy=figure.remedy, row=row)

    @property
    def figures(self) -> list[Figure]:
        with self._lock:
            return sorted(self._figures, key=lambda figure: (figure.artifact, figure.name))

    @property
    def findings(self) -> list[Finding]:
        """The worst first, then in order of places."""
        order = list(SEVERITIES)
        place = lambda f: (order.index(f.severity), f.artifact or "", f.file or "", f.row or 0, f.check, f.column or "")  # noqa: E731
        with self._lock:
            return sorted(self._findings.values(), key=place)

    @property
    def counts(self) -> list[Count]:
        order = list(AREAS)
        with self._lock:
            entries = [Count(area=area, what=what, done=n[0], total=n[1]) for (area, what), n in self._counts.items()]
        return sorted(entries, key=lambda count: (order.index(count.area), count.what))

    def at(self, artifact: str | None = None, id: str | None = None, file: str | None = None) -> Spot:
        return Spot(self, artifact, id, file)


@dataclass(frozen=True)
class Spot:
    """A ledger, open at one place."""

    ledger: Ledger
    artifact: str | None = None
    id: str | None = None
    file: str | None = None

    def of(self, file: str) -> Spot:
        """The same artifact, at one of its files."""
        return Spot(self.ledger, self.artifact, self.id, file)

    def report(
        self,
        severity: Severity,
        area: Area,
        check: str,
        *,
        expected: object,
        found: object,
        remedy: str,
        row: int | None = None,
        column: str | None = None,
        count: int = 1,
    ) -> None:
        self.ledger.add(
            Finding(
                area=area,
                check=check,
                severity=severity,
                artifact=_text(self.artifact),
                id=_text(self.id),
                file=_text(self.file),
                row=row,
                column=_text(column),
                expected=shortened(expected),
                found=shortened(found),
                remedy=remedy,
                count=count,
            )
        )

    def error(self, area: Area, check: str, **said: Any) -> None:
        self.report("error", area, check, **said)

    def warning(self, area: Area, check: str, **said: Any) -> None:
        self.report("warning", area, check, **said)

    def unknown(self, area: Area, check: str, **said: Any) -> None:
        self.report("unknown", area, check, **said)

    def note(self, area: Area, check: str, **said: Any) -> None:
        self.report("note", area, check, **said)


def shortened(value: object) -> str:
    """A value as text, with its end left out if it is long.

    >>> shortened([1, 2]), len(shortened("a" * 1000))
    ('[1, 2]', 300)
    """
    text = _text(value) if isinstance(value, str) else repr(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@overload
def _text(value: str) -> str: ...
@overload
def _text(value: None) -> None: ...
def _text(value: str | None) -> str | None:
    """Text that can be written: half a character, such as one of a file name in another encoding, becomes its escape."""
    return value if value is None else value.encode(errors="backslashreplace").decode()
