"""Batches of many files, checked together: a check of one thousand rows takes nearly as long as one of ten thousand."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import polars as pl

from pipeline.look.audit.findings import Ledger, Spot
from pipeline.look.audit.rows import RowBatch
from pipeline.look.audit.tables.checks import Checks
from schemas.table import Table

MOST_ROWS = 16384
"""Rows that are checked together."""
MOST_BYTES = 128 << 20
"""Memory of the rows that wait for company."""
Reported = Callable[[Spot], AbstractContextManager[None]]


@dataclass
class _PooledRows:
    """Batches with the same columns, of one table of an artifact."""

    checks: Checks
    table: type[Table]
    pieces: list[tuple[RowBatch, Spot]] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0


class Pools:
    """Batches that wait until there are enough to be checked. Safe to call from many threads.

    Args:
        ledger: where what was counted goes. Findings go where each batch's spot says.
        reported: turns a failure of a check into a finding.
    """

    def __init__(self, ledger: Ledger, reported: Reported) -> None:
        self._ledger, self._reported = ledger, reported
        self._lock = threading.Lock()
        self._waiting: dict[tuple[str, str, tuple[str, ...], bool], _PooledRows] = {}

    def add(self, checks: Checks, table: type[Table], batch: RowBatch, spot: Spot) -> None:
        """Check a batch, now or later."""
        key = (checks.held.name, table.title(), tuple(batch.frame.columns), batch.whole)
        with self._lock:
            pool = self._waiting.setdefault(key, _PooledRows(checks, table))
            pool.pieces.append((batch, spot))
            pool.rows += len(batch.frame)
            pool.bytes += int(batch.frame.estimated_size())
            if pool.rows < MOST_ROWS and sum(one.bytes for one in self._waiting.values()) < MOST_BYTES:
                return
            largest = key if pool.rows >= MOST_ROWS else max(self._waiting, key=lambda one: self._waiting[one].bytes)
            full = self._waiting.pop(largest)
        self._check(full)

    def rest(self) -> list[Callable[[], None]]:
        """The work that is left."""
        with self._lock:
            pools, self._waiting = list(self._waiting.values()), {}
        return [lambda pool=pool: self._check(pool) for pool in pools]  # type: ignore[misc]

    def _check(self, pool: _PooledRows) -> None:
        """If all rows together are sound, every batch is. If not, each is checked alone, so that findings name their places."""
        if len(pool.pieces) > 1 and self._sound(pool):
            return
        for batch, spot in pool.pieces:
            with self._reported(spot):
                pool.checks.check_batch(batch, pool.table, spot)

    def _sound(self, pool: _PooledRows) -> bool:
        first, spot = pool.pieces[0]
        scratch = Ledger()
        try:
            together = RowBatch(0, pl.concat([batch.frame for batch, _ in pool.pieces]), first.whole)
            pool.checks.check_batch(together, pool.table, pool.checks.held.spot(scratch, spot.file))
        except (Exception, pl.exceptions.PanicException):
            return False
        if scratch.findings:
            return False
        self._ledger.absorb(scratch)
        return True
