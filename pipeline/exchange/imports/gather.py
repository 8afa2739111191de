"""Groups made whole: rows come in any order, are kept on disk by the range of their group, and are read back range by range.

In memory are a name and a size per group, some thousand rows on their way to disk, and a few ranges of groups at a time. A
journal says from time to time how far an import is; one that was killed goes on from there, and its files are the same.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.lengths import length
from pipeline.exchange.imports.format import LONGEST_CONTENT
from pipeline.exchange.imports.known import Known, Misfit, Position
from pipeline.exchange.imports.rows import COMPONENTS, GROUP, ORDER, OWN, SCHEMA, group_key
from pipeline.exchange.imports.simple import SimpleBatch
from pipeline.generate.names import GroupNames
from pipeline.sources.readers import is_jsonl
from pipeline.store.files import whole_file
from schemas import Origins, Rollouts, SetAside

JOURNAL_SECONDS = 5.0
"""What a kill costs, about."""
RANGE_GROUPS = 1024
"""Groups that are in memory together."""
SHARD_ROWS, SHARD_TOKENS = 4096, 1 << 22
"""A file is as large as this, in whole groups."""
BUFFER_ROWS, BUFFER_SIZE = 4096, 1 << 21
"""Rows on their way to disk, and their tokens (a token is about as much as four characters of text)."""
MOST_CONTENT = 64 << 20
"""Characters of rows set aside that are kept; of further ones only place and reason."""


JOURNAL = "journal.json"


class Gathering:
    """The rows of one import on their way to their files.

    Args:
        scratch: a directory of its own; what an earlier attempt left there is gone on from.
        key: of the artifact, whose beginning is part of every group's name.
    """

    def __init__(self, scratch: Path, key: str) -> None:
        self._scratch, self._suffix = scratch, f"@{key[:8]}"
        self._numbers: dict[bytes, int] = {}
        self._names: list[str] = []
        self._prompts: list[str] = []
        """Of the groups that the journal does not have yet."""
        self._group_names = GroupNames()
        self._buffer: list[dict[str, Any]] = []
        self._size = self._written = 0
        self._columns: set[str] = set()
        self._aside: dict[str, Misfit] = {}
        self._content = 0
        self.added = self.rows = 0
        """Rows that came, and those that fit the table; the latter are known once they are flushed."""
        self.position: Position = (0, 0)
        """Where the rows that are gathered end: files, and rows of the file after them (or completions, as `stage` has it)."""
        self.remarks: list[str] = []
        self._since = time.monotonic()
        if not self._recovered():
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)

    @property
    def set_aside(self) -> list[Misfit]:
        return list(self._aside.values())

    def add(self, known: Known, row: dict[str, Any]) -> None:
        self.added += 1
        number = self._number(group_key(known, row), row["prompt_id"])
        self._columns |= known.components.keys()
        self._buffer.append({**row, GROUP: number, ORDER: self._written + len(self._buffer)})
        self._size += len(row["completion_token_ids"]) + len(row["prompt_token_ids"]) + len(row["rest"] or "") // 4
        if len(self._buffer) >= BUFFER_ROWS or self._size >= BUFFER_SIZE:
            self.flush()

    def add_batch(self, batch: SimpleBatch) -> None:
        """Rows that are a frame already."""
        self.flush()
        prompts = batch.frame["prompt_id"].to_list()
        numbers = [self._number(key, prompt) for key, prompt in zip(batch.keys, prompts, strict=True)]
        own = pl.int_range(self._written, self._written + len(numbers), dtype=pl.Int64)
        self.added += len(numbers)
        self._columns.update(batch.components)
        self._keep(batch.frame.with_columns(pl.Series(GROUP, numbers, pl.Int64), own.alias(ORDER)).select(list(SCHEMA)))

    def _number(self, key: bytes, prompt_id: str) -> int:
        """Of a group."""
        number = self._numbers.setdefault(key, len(self._numbers))
        if number == len(self._names):
            self._names.append(self._group_names.next(prompt_id) + self._suffix)
            self._prompts.append(prompt_id)
        return number

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
        self._buffer, self._size = [], 0
        self._keep(frame)

    def _keep(self, frame: pl.DataFrame) -> None:
        """Write rows to disk."""
        checked = Rollouts.check(frame.with_columns(group_id=pl.col(ORDER).cast(pl.String), sample_index=pl.lit(0, pl.Int32)))
        for row in checked.bad.iter_rows(named=True):
            self.leave_out(_misfit(row))
        for (number,), part in checked.good.drop(OWN).group_by(pl.col(GROUP) // RANGE_GROUPS):
            part.write_ipc(self._scratch / f"{number:06d}-{self._written:012d}.arrow", compression="lz4")
        self.rows += len(checked.good)
        self._written += len(frame)

    def reached(self, position: Position, remarks: Sequence[str], *, at_end: bool = False) -> None:
        """Write into the journal that rows are gathered up to here, if it is time to.

        Args:
            remarks: what there is to say of how they were read.
        """
        if not at_end and time.monotonic() - self._since < JOURNAL_SECONDS:
            return
        self.flush()
        if self._prompts:
            first = len(self._names) - len(self._prompts)
            keys = list(islice(self._numbers, first, None))
            pl.DataFrame({"key": keys, "prompt_id": self._prompts}).write_ipc(self._scratch / f"groups-{first:09d}.arrow")
            self._prompts = []
        said = {
            "position": position,
            "remarks": list(remarks),
            "columns": sorted(self._columns),
            "aside": self.set_aside,
            "counts": [self._written, self._content, self.added, self.rows],
            "files": {path.name: path.stat().st_size for path in self._gathered()},
        }
        with whole_file(self._scratch / JOURNAL) as temporary:
            temporary.write_text(json.dumps(said), encoding="utf-8")
        self._since = time.monotonic()

    def _recovered(self) -> bool:
        """Whether an earlier attempt got somewhere, which is taken up; files that its journal does not name are removed."""
        try:
            said = json.loads((self._scratch / JOURNAL).read_text(encoding="utf-8"))
            if any((self._scratch / name).stat().st_size != size for name, size in said["files"].items()):
                return False
            groups = sorted(name for name in said["files"] if name.startswith("groups-"))
            for name in groups:
                for key, prompt in pl.read_ipc((self._scratch / name).read_bytes()).iter_rows():
                    self._number(key, prompt)
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError):
            self._numbers, self._names, self._group_names = {}, [], GroupNames()
            self._prompts = []
            return False
        for path in self._gathered():
            if path.name not in said["files"]:
                path.unlink()
        self._prompts = []
        self.position, self.remarks = tuple(said["position"]), said["remarks"]
        self._columns = set(said["columns"])
        self._aside = {place: Misfit(place, why, content) for place, why, content in said["aside"]}
        self._written, self._content, self.added, self.rows = said["counts"]
        return True

    def _gathered(self) -> list[Path]:
        return sorted(self._scratch.glob("*.arrow"))

    def shards(self) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        """Rows of the rollouts and of the origins, file by file, in the order in which groups came."""
        self.flush()
        ranges = sorted({path.name.partition("-")[0] for path in self._scratch.glob("[0-9]*.arrow")}, key=int)
        for number in ranges:
            files = sorted(self._scratch.glob(f"{number}-*.arrow"))
            frame = pl.concat([pl.read_ipc(file.read_bytes()) for file in files]).sort(GROUP, ORDER)
            for shard in _cut(frame):
                yield self._tables(shard)

    def aside_table(self) -> pl.DataFrame:
        """Rows of a `SetAside` table."""
        rows = [(one.place, one.why, one.content) for one in self.set_aside]
        return pl.DataFrame(rows, schema=dict.fromkeys(SetAside.columns(), pl.String), orient="row")

    def _tables(self, shard: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        names = pl.Series(self._names, dtype=pl.String).gather(shard[GROUP])
        whole = shard.with_columns(group_id=names, sample_index=(pl.int_range(pl.len()).over(GROUP)).cast(pl.Int32))
        parts = [json.loads(text) if text else {} for text in shard[COMPONENTS]] if self._columns else []
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
    unit = "line" if is_jsonl(Path(row["file"])) else "row"
    content = json.dumps({name: row[name] for name in SCHEMA if not name.startswith("_")}, default=str)
    return Misfit(f"{row['file']}, {unit} {row['number']}", row["reasons"], content[:LONGEST_CONTENT])
