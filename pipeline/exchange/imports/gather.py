"""Groups made whole: rows come in any order, are kept on disk by the range of their group, and are read back range by range.

In memory are a name and a size per group, some thousand rows on their way to disk, and one range of groups at a time.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.lengths import length
from pipeline.exchange.imports.format import LONGEST_CONTENT
from pipeline.exchange.imports.known import Known, Misfit
from pipeline.exchange.imports.rows import COMPONENTS, GROUP, ORDER, OWN, SCHEMA, group_key
from pipeline.generate.names import GroupNames
from schemas import Origins, Rollouts, SetAside

RANGE_GROUPS = 1024
"""Groups that are in memory together."""
SHARD_ROWS, SHARD_TOKENS = 4096, 1 << 22
"""A file is as large as this, in whole groups."""
BUFFER_ROWS, BUFFER_SIZE = 4096, 1 << 21
"""Rows on their way to disk, and their tokens (a token is about as much as four characters of text)."""
MOST_CONTENT = 64 << 20
"""Characters of rows set aside that are kept; of further ones only place and reason."""


class Gathering:
    """The rows of one import on their way to their files.

    Args:
        scratch: an empty directory.
        key: of the artifact, whose beginning is part of every group's name.
    """

    def __init__(self, scratch: Path, key: str) -> None:
        self._scratch, self._suffix = scratch, f"@{key[:8]}"
        self._numbers: dict[bytes, int] = {}
        self._names: list[str] = []
        self._group_names = GroupNames()
        self._buffer: list[dict[str, Any]] = []
        self._size = self._written = 0
        self._columns: set[str] = set()
        self._aside: dict[str, Misfit] = {}
        self._content = 0
        self.added = self.rows = 0
        """Rows that came, and those that fit the table; the latter are known once they are flushed."""
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    @property
    def set_aside(self) -> list[Misfit]:
        return list(self._aside.values())

    def add(self, known: Known, row: dict[str, Any]) -> None:
        self.added += 1
        number = self._numbers.setdefault(group_key(known, row), len(self._numbers))
        if number == len(self._names):
            self._names.append(self._group_names.next(row["prompt_id"]) + self._suffix)
        self._columns |= known.components.keys()
        self._buffer.append({**row, GROUP: number, ORDER: self._written + len(self._buffer)})
        self._size += len(row["completion_token_ids"]) + len(row["prompt_token_ids"]) + len(row["rest"] or "") // 4
        if len(self._buffer) >= BUFFER_ROWS or self._size >= BUFFER_SIZE:
            self.flush()

    def leave_out(self, misfit: Misfit) -> None:
        """Set a row aside; a place that comes twice, for two completions of a row, is named once with both reasons."""
        before = self._aside.get(misfit.place)
        if before is not None:
            if misfit.why not in before.why:
                self._aside[misfit.place] = before._replace(why=f"{before.why}; {misfit.why}")
            return
        content = misfit.content if self._content < MOST_CONTENT else None
        self._content += len(content or "")
        self._aside[misfit.place] = misfit._replace(content=content)

    def flush(self) -> None:
        """Write what is held to disk, by ranges of groups, without the rows that do not fit the table."""
        if not self._buffer:
            return
        frame = pl.DataFrame(self._buffer, schema=SCHEMA)
        checked = Rollouts.check(frame.with_columns(group_id=pl.col(ORDER).cast(pl.String), sample_index=pl.lit(0, pl.Int32)))
        for row in checked.bad.iter_rows(named=True):
            self.leave_out(_misfit(row))
        for _, part in checked.good.drop(OWN).group_by(pl.col(GROUP) // RANGE_GROUPS):
            number = part[GROUP][0] // RANGE_GROUPS
            part.write_parquet(
                self._scratch / f"{number:06d}-{self._written:012d}.parquet", compression="zstd", compression_level=1
            )
        self.rows += len(checked.good)
        self._written += len(self._buffer)
        self._buffer, self._size = [], 0

    def shards(self) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Rows of the rollouts and of the origins, file by file, in the order in which groups came."""
        self.flush()
        ranges = sorted({path.name.partition("-")[0] for path in self._scratch.glob("*.parquet")})
        for number in ranges:
            files = sorted(self._scratch.glob(f"{number}-*.parquet"))
            frame = pl.read_parquet(files, glob=False).sort(GROUP, ORDER)
            for shard in _cut(frame):
                yield self._tables(shard)

    def aside_table(self) -> pl.DataFrame:
        """Rows of a `SetAside` table."""
        rows = [(one.place, one.why, one.content) for one in self.set_aside]
        return pl.DataFrame(rows, schema=dict.fromkeys(SetAside.columns(), pl.String), orient="row")

    def _tables(self, shard: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        names = pl.Series(self._names, dtype=pl.String).gather(shard[GROUP])
        whole = shard.with_columns(group_id=names, sample_index=(pl.int_range(pl.len()).over(GROUP)).cast(pl.Int32))
        parts = [json.loads(text) if text else {} for text in shard[COMPONENTS]]
        columns = {
            f"reward_{name}": pl.Series([part.get(name) for part in parts], dtype=pl.Float64) for name in sorted(self._columns)
        }
        return whole.select(*Rollouts.columns()).with_columns(**columns), whole.select(*Origins.columns())


def _cut(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """A range of groups in files, each of whole groups."""
    sizes = frame.group_by(GROUP, maintain_order=True).agg(pl.len(), tokens=length("completion_token_ids").sum())
    start = rows = tokens = 0
    for _, count, size in sizes.iter_rows():
        if rows and (rows + count > SHARD_ROWS or tokens + size > SHARD_TOKENS):
            yield frame.slice(start, rows)
            start, rows, tokens = start + rows, 0, 0
        rows, tokens = rows + count, tokens + size
    yield frame.slice(start, rows)


def _misfit(row: dict[str, Any]) -> Misfit:
    unit = "line" if row["file"].endswith((".jsonl", ".ndjson")) else "row"
    content = json.dumps({name: row[name] for name in SCHEMA if not name.startswith("_")}, default=str)
    return Misfit(f"{row['file']}, {unit} {row['number']}", row["reasons"], content[:LONGEST_CONTENT])
