"""What every check of an audit can look up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.look.audit.findings import Ledger
from pipeline.look.audit.hashes import Hashes
from pipeline.look.audit.holdings import Held, Shelf
from pipeline.look.audit.rows import Share, TableFile, open_table
from schemas.table import Table


@dataclass(frozen=True)
class World:
    """The artifacts, the state of their files, and where findings go."""

    shelf: Shelf
    hashes: Hashes
    ledger: Ledger
    deep: bool

    def intact(self, held: Held) -> bool:
        """Whether all files of an artifact are as its manifest lists them."""
        return all(self.hashes.intact(held, file) for file in held.files)

    def read(self, held: Held, name: str) -> Path | None:
        """A file on this machine, if it is listed and intact."""
        file = held.file(name)
        return held.folder.local(file) if file and self.hashes.intact(held, file) else None

    def json(self, held: Held, name: str) -> Any:
        """Content of an intact JSON file; None if there is none that can be read."""
        path = self.read(held, name)
        try:
            return None if path is None else json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            return None

    def columns(self, held: Held, table: type[Table], columns: dict[str, pl.Expr]) -> pl.DataFrame | None:
        """Some columns of an artifact's table, with the file and row that each comes from; None if a file is damaged.

        Args:
            columns: what to keep, computed of a batch of rows. Only columns that they read are decoded.
        """
        parts = []
        for number, opened in enumerate(self.opened(held, table)):
            if opened is None:
                return None
            needed = sorted({name for column in columns.values() for name in column.meta.root_names()})
            for batch in opened.batches(needed):
                row = pl.int_range(pl.len(), dtype=pl.Int64) + batch.first
                parts.append(batch.frame.select(row=row, file=pl.lit(number, pl.Int32), **columns))
        return pl.concat(parts) if parts else None

    def opened(self, held: Held, table: type[Table]) -> Iterator[TableFile | None]:
        """The files of a table; None for one that is damaged (which is reported elsewhere)."""
        nowhere = Ledger()
        for file in held.tables(table.title()):
            intact = self.hashes.intact(held, file)
            yield open_table(held, file, held.spot(nowhere, file.path), Share(everything=True)) if intact else None
