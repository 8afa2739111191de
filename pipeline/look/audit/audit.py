"""An audit: everything below a path opened and hashed by several threads, its tables checked beside that, figures recomputed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from pipeline.look.audit.findings import Count, Figure, Finding, Ledger, Severity, Spot
from pipeline.look.audit.gather import gather
from pipeline.look.audit.hashes import Hashes
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.hygiene import overlap_figures
from pipeline.look.audit.integrity import check_lineage, check_listing
from pipeline.look.audit.lineage import Graph, graph_of
from pipeline.look.audit.pool import Pools
from pipeline.look.audit.record import check_record
from pipeline.look.audit.remedies import with_commands
from pipeline.look.audit.rows import Share, TableFile, open_table
from pipeline.look.audit.scope import Scope, scope_of
from pipeline.look.audit.tables.checkpoint import CheckpointChecks
from pipeline.look.audit.tables.checks import Checks, joined
from pipeline.look.audit.tables.comparison import ComparisonChecks
from pipeline.look.audit.tables.evaluation import EvaluationChecks
from pipeline.look.audit.tables.per_completion import ScoresChecks, ShapedChecks
from pipeline.look.audit.tables.prompts import PromptsChecks
from pipeline.look.audit.tables.revisions import RevisionsChecks
from pipeline.look.audit.tables.rollouts import RolloutsChecks
from pipeline.look.audit.world import World
from pipeline.store.cache import working
from schemas import TABLES, Prompts
from schemas.manifest import File

if TYPE_CHECKING:
    from pipeline.look.audit.deep.logprobs import Distribution

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done, how many bytes of it are done, and how many there are."""
CHECKS: dict[str, type[Checks]] = {
    "checkpoint": CheckpointChecks,
    "comparison": ComparisonChecks,
    "evaluation": EvaluationChecks,
    "optimizer": Checks,
    "prompts": PromptsChecks,
    "reward_model": Checks,
    "revisions": RevisionsChecks,
    "rollouts": RolloutsChecks,
    "scores": ScoresChecks,
    "shaped": ShapedChecks,
}


@dataclass(frozen=True)
class Audit:
    """What an audit found."""

    path: str
    kind: str
    """artifact, run or store."""
    deep: bool
    created: str
    """UTC time."""
    seconds: float
    bytes: int
    """Read and hashed."""
    held: tuple[Held, ...]
    """What was audited."""
    findings: tuple[Finding, ...]
    counts: tuple[Count, ...]
    figures: tuple[Figure, ...]
    distributions: tuple[Distribution, ...]
    """How far recomputed logprobs lie from the stored ones; empty unless the audit is deep."""
    graph: Graph
    """Lineage of what was audited."""

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def status(self) -> int:
        """0 sound, 1 findings, 2 cannot tell. Notes count for nothing."""
        if self.count("error") or self.count("warning"):
            return 1
        return 2 if self.count("unknown") else 0


def audit(
    path: str | Path,
    *,
    deep: bool = False,
    samples: int = 64,
    steps: int = 2,
    on_progress: OnProgress = lambda what, done, total: None,
) -> Audit:
    """Audit an artifact, a run directory or a store. Nothing in it is changed, and none of its code is run.

    Args:
        deep: also recompute figures from what they were computed from.
        samples: completions whose logprobs a deep audit recomputes, per artifact; 0 for all.
        steps: training steps that a deep audit takes again, per checkpoint.

    Raises:
        UserError: there is nothing to audit.
    """
    with working():
        return _audit(scope_of(path), deep, samples, steps, on_progress)


def _audit(scope: Scope, deep: bool, samples: int, steps: int, on_progress: OnProgress) -> Audit:
    started, ledger = time.monotonic(), Ledger()
    gathered = gather(scope, ledger)
    ledger.count("integrity", "artifacts opened", len(gathered.audited), len(gathered.audited) + gathered.unopened)
    total = sum(file.bytes for held in gathered.audited for file in held.files)
    hashes = Hashes(lambda done: on_progress("reading", done, total), lambda file: deep or not file.path.endswith(".safetensors"))
    world = World(gathered.shelf, hashes, ledger, deep)
    for held in gathered.audited:
        check_listing(held, ledger)
    check_lineage(gathered.audited, gathered.shelf, ledger, alone=scope.artifact is not None and not scope.shared)
    if scope.record is not None:
        check_record(scope, gathered.shelf, ledger)
    reading = _Reading(gathered.audited, world)
    reading.run()
    for figure, row in overlap_figures(reading.questions(), world):
        ledger.figure(figure, ledger.at(figure.artifact), row)
    distributions: tuple[Distribution, ...] = ()
    if deep:
        from pipeline.look.audit.deep.derive import derive

        distributions = derive(gathered.audited, world, samples=samples, steps=steps, on_work=on_progress)
    return Audit(
        path=scope.path,
        kind=scope.kind,
        deep=deep,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.monotonic() - started, 3),
        bytes=hashes.bytes,
        held=gathered.audited,
        findings=with_commands(ledger.findings, scope, gathered.audited),
        counts=tuple(ledger.counts),
        figures=tuple(ledger.figures),
        distributions=distributions,
        graph=graph_of(gathered.audited, gathered.shelf),
    )


class _Reading:
    """Every file read once: hashed, and if it is a table that is intact, its rows checked while other files are hashed."""

    def __init__(self, audited: Iterable[Held], world: World) -> None:
        self._audited, self._world = list(audited), world
        self._checks = {held.name: CHECKS.get(held.kind, Checks)(held, world) for held in self._audited}
        self._facts: dict[tuple[str, str], dict[str, pl.DataFrame]] = {}
        self._damaged: set[tuple[str, str]] = set()
        self._prepared: dict[str, threading.Lock] = {held.name: threading.Lock() for held in self._audited}
        self._ready: set[str] = set()
        self._pools = Pools(world.ledger, _reported)

    def run(self) -> None:
        files = [(held, file) for held in self._audited for file in held.files]
        files.sort(key=lambda pair: -pair[1].bytes)
        with ThreadPoolExecutor(_workers()) as pool:
            try:
                _finish(pool.submit(self._read, held, file) for held, file in files)
                _finish(pool.submit(check) for check in self._pools.rest())
                _finish(pool.submit(self._conclude, held) for held in self._audited)
            except BaseException:
                self._world.hashes.stop()
                pool.shutdown(cancel_futures=True)
                raise

    def _read(self, held: Held, file: File) -> None:
        spot = held.spot(self._world.ledger, file.path)
        intact = self._world.hashes.check(held, file, spot)
        self._world.ledger.count("integrity", "files", 1)
        self._world.ledger.count("integrity", "bytes", file.bytes if intact else 0, file.bytes)
        if file.table is None:
            return
        title = file.table.partition("/")[0]
        opened = None
        if intact:
            with _reported(spot):
                opened = open_table(held, file, spot, Share.of(held, self._world.deep))
        if opened is None:
            self._damaged.add((held.name, title))
            self._world.ledger.count("schema", "rows", 0, file.rows or 0)
            return
        with _reported(spot):
            self._check_table(held, opened, spot)

    def _check_table(self, held: Held, opened: TableFile, spot: Spot) -> None:
        self._prepare(held)
        checks, table, path = self._checks[held.name], opened.table, opened.file.path
        facts = checks.facts(table)
        parts = []
        for batch in opened.batches():
            checks.check_some(batch, table, spot)
            self._pools.add(checks, table, batch, spot)
            row = pl.int_range(pl.len(), dtype=pl.Int64) + batch.first
            parts.append(batch.frame.select(row=row, whole=pl.lit(batch.whole), **facts))
            self._world.ledger.count("schema", "rows", len(batch.frame))
        checks.check_unread(opened, spot)
        if parts:
            self._facts.setdefault((held.name, table.title()), {})[path] = pl.concat(parts)

    def _prepare(self, held: Held) -> None:
        """Have an artifact's checks look up what they need, once."""
        with self._prepared[held.name]:
            if held.name not in self._ready:
                self._ready.add(held.name)
                with _reported(held.spot(self._world.ledger)):
                    self._checks[held.name].check_artifact()

    def _conclude(self, held: Held) -> None:
        self._prepare(held)
        for (name, title), facts in list(self._facts.items()):
            if name == held.name and (name, title) not in self._damaged:
                spot, checks, table = held.spot(self._world.ledger), self._checks[name], TABLES[title]
                with _reported(spot):
                    checks.conclude(table, facts)
                    for figure in checks.figures(table, joined(facts)):
                        self._world.ledger.figure(figure, spot)

    def questions(self) -> dict[str, pl.DataFrame]:
        """Facts of every whole prompts artifact, by its name."""
        title = Prompts.title()
        there = {name for name, table in self._facts if table == title and (name, title) not in self._damaged}
        return {name: joined(self._facts[name, title]) for name in there}


class _reported:
    """Turn a failure of a check into a finding: that it could not be made is all that can be said."""

    def __init__(self, spot: Spot) -> None:
        self._spot = spot

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception | pl.exceptions.PanicException):
            return False
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        remedy = "Look at the file by hand; if it is as it should be, this is a fault of rollbook: please report it."
        self._spot.unknown("schema", "check failed", expected="a check that ends", found=found, remedy=remedy)
        return True


def _finish(jobs: Iterable[Future[None]]) -> None:
    for job in as_completed(list(jobs)):
        job.result()


def _workers() -> int:
    return min(16, (os.cpu_count() or 1) + 2)
