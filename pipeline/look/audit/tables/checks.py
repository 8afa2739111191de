"""Checks of one artifact's tables: file by file in threads, then of the artifact as a whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from pipeline.look.audit.findings import Figure, Spot
from pipeline.look.audit.holdings import RESTORE, Held
from pipeline.look.audit.rows import RowBatch, TableFile, check_rows
from pipeline.look.audit.world import World
from schemas.table import Table

Facts = Mapping[str, pl.DataFrame]
"""What is kept of every file's rows, by the file's path: row, and whatever `facts` selects."""


class Checks:
    """What holds for every artifact; kinds add theirs."""

    def __init__(self, held: Held, world: World) -> None:
        self.held, self.world = held, world

    def facts(self, table: type[Table]) -> dict[str, pl.Expr]:
        """Columns that `conclude` needs of a table's rows."""
        return {"key": pl.struct(table.primary_key()).hash()} if table.primary_key() else {}

    def check_batch(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        """Report rows of a batch that are not as they should be. Called from many threads.

        A row is sound or not whatever other rows are with it, but for the keys that must differ. Counts go to the spot's ledger.
        """
        check_rows(batch, table, spot)

    def check_some(self, batch: RowBatch, table: type[Table], spot: Spot) -> None:
        """Report what is wrong with some rows of a file's batch, where looking at all would take long."""

    def figures(self, table: type[Table], rows: pl.DataFrame) -> Iterator[Figure]:
        """Figures of hygiene, from the facts of all files."""
        yield from ()

    def check_unread(self, opened: TableFile, spot: Spot) -> None:
        """Report what can be said of row groups whose lists are not read."""

    def conclude(self, table: type[Table], facts: Facts) -> None:
        """Report what only shows over all rows of a table."""
        self.check_unique(table, facts)

    def check_artifact(self) -> None:
        """Report what shows without any table's rows, before the tables are looked at."""

    def check_unique(self, table: type[Table], facts: Facts) -> None:
        """Report rows whose key is there already, in whichever file. (Twice in one batch is a broken rule.)"""
        rows = joined(facts)
        if "key" not in rows.columns:
            return
        twice = rows.filter(~pl.col("key").is_first_distinct())
        for file, row, count in twice.group_by("file").agg(pl.col("row").first(), pl.len()).iter_rows():
            self.spot(file).error(
                "schema",
                "unique",
                expected=f"{' + '.join(table.primary_key())} once in all files",
                found="a row whose key an earlier row has",
                remedy="Have it made anew by its run.",
                row=row,
                count=count,
            )

    def check_summary(self, found: Mapping[str, Any]) -> None:
        """Report figures of the manifest's summary that are not those of the rows.

        Args:
            found: figures of the rows by their names in the summary; one that the summary does not have is left alone.
        """
        for name, value in found.items():
            stated = self.held.summary.get(name)
            if name in self.held.summary and not same_figure(stated, value):
                self.spot("manifest.json").error(
                    "schema", "summary", expected=value, found=stated, remedy=RESTORE, column=f"content.summary.{name}"
                )

    def spot(self, file: str | None = None) -> Spot:
        return self.held.spot(self.world.ledger, file)


def joined(facts: Facts) -> pl.DataFrame:
    """Facts of all files in order, with the file's path."""
    parts = [frame.with_columns(file=pl.lit(path)) for path, frame in sorted(facts.items())]
    return pl.concat(parts, how="vertical") if parts else pl.DataFrame()


def same_figure(stated: Any, found: Any) -> bool:
    """Whether two figures are one. Floating-point sums may differ in their last digits, by the order of summing."""
    if isinstance(stated, float | int) and isinstance(found, float | int) and not isinstance(found, bool):
        return math.isclose(stated, found, rel_tol=1e-9, abs_tol=1e-12)
    return bool(stated == found)
