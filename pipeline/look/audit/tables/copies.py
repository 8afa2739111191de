"""Rollouts made of other rollouts: what their stage copies is compared with the rows it was copied from.

Files are compared one at a time, each value by its hash. Values that the stage changes are compared with what it makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import polars as pl

from pipeline.generate.unknowns import LACKS_LOGPROBS
from pipeline.look.audit.findings import Ledger
from pipeline.look.audit.holdings import Held
from pipeline.look.audit.rows import HEAVY, MAKE_ANEW, Share, TableFile, open_table
from pipeline.look.audit.tables.checks import Checks
from schemas import Origins, Rollouts, Scores
from schemas.manifest import File
from schemas.rollouts import CUT, ENVIRONMENT_ERROR
from schemas.table import Table

KEY = ["group_id", "sample_index"]
ROLES = {"grade": "graded", "scored-logprobs": "rollouts", "repair": "damaged"}
"""Stages that make rollouts of rollouts, and what they call those."""
COMPARED = "rollouts compared with those they were made of"
GRADED = ("reward", "status", "error")
"""What grading gives another value."""
SCORED = ("behavior_logprobs", "logprobs_mode")
"""What scoring fills in."""
EMPTY = pl.col("completion_token_ids").list.len() == 0
REGRADED = {
    "status": pl.when(pl.col("status") == "reward_error").then(None).otherwise(pl.col("status").hash()),
    "error": pl.when(pl.col("status").is_in(["engine_error", ENVIRONMENT_ERROR]))
    .then(pl.col("error"))
    .otherwise(pl.lit(""))
    .hash(),
}
"""What grading leaves: whether and why the engine failed, and how the others ended. A grader may fail or not."""
ANSWERED = (
    pl.when(pl.col("status") != "reward_error")
    .then(pl.col("status"))
    .when(pl.col("finish_reason").is_in(CUT).fill_null(False))
    .then(pl.lit("truncated"))
    .otherwise(pl.lit("ok"))
)
"""The status of a completion, had its graders not failed."""


@dataclass(frozen=True)
class _Pair:
    """A file and the one that it was copied from."""

    path: str
    mine: TableFile
    theirs: TableFile


class Copies:
    """The checks of one rollouts artifact against the one it was made of."""

    def __init__(self, checks: Checks) -> None:
        self._checks, self._held, self._world = checks, checks.held, checks.world
        self._stage = self._held.manifest.content.stage.partition("/")[0]

    @cached_property
    def _parent(self) -> Held | None:
        role = ROLES.get(self._stage)
        return self._world.shelf.parent(self._held, role) if role else None

    @cached_property
    def _everything(self) -> bool:
        """Whether token lists and texts are compared too."""
        return Share.of(self._held, self._world.deep).everything

    def check_files(self) -> None:
        """Report shards of repaired rollouts that are not the damaged ones' whole shards. Manifests say all of it."""
        if self._stage in ROLES:
            self._world.ledger.count("schema", COMPARED, int(self._parent is not None), 1)
        if self._stage != "repair" or self._parent is None:
            return
        for file in self._held.files:
            if file != (there := self._parent.file(file.path)):
                found = f"{file.sha256}, there {there.sha256 if there else 'no such file'}"
                self._error(file.path, "the file of the damaged artifact", found)
        dropped = {str(entry.get("path")) for entry in (self._held.recipe.get("repair") or {}).get("dropped") or ()}
        kept = {file.path for file in self._held.files}
        for file in self._parent.files:
            if file.table is not None and file.path not in kept | dropped:
                self._error(file.path, "every file that was not dropped", "no such file")

    def check_rows(self, table: type[Table]) -> None:
        """Report rows whose copied values are not those of the rows they were copied from."""
        if self._parent is None or self._stage == "repair" or (table is not Rollouts and self._stage == "grade"):
            return
        mine, theirs = self._held.tables(table.title()), self._parent.tables(table.title())
        for path in sorted({file.path for file in theirs} - {file.path for file in mine}):
            self._error(path, f"every file of {self._theirs}", "no such file")
        for file in mine:
            pair = self._pair(file)
            if pair is not None and table is Origins:
                columns = {name: pl.col(name).hash() for name in Origins.columns() if name not in KEY}
                self._compare(pair, self._hashes(pair.mine, columns), self._hashes(pair.theirs, columns))
            elif pair is not None:
                self._compare_rollouts(pair)

    def _pair(self, file: File) -> _Pair | None:
        assert self._parent is not None
        there = self._parent.file(file.path)
        if there is None:
            self._error(file.path, f"a file of {self._theirs}", "it has no file of that name")
            return None
        mine, theirs = self._opened(self._held, file), self._opened(self._parent, there)
        return _Pair(file.path, mine, theirs) if mine and theirs and mine.table is theirs.table else None

    def _opened(self, held: Held, file: File) -> TableFile | None:
        """A table file that is whole; what is wrong with others is reported where they are looked at."""
        if not self._world.hashes.intact(held, file):
            return None
        return open_table(held, file, held.spot(Ledger(), file.path), Share(everything=True))

    def _compare_rollouts(self, pair: _Pair) -> None:
        graded = self._stage == "grade"
        names = list(Rollouts.columns()) if graded else pair.theirs.parquet.schema_arrow.names
        there = set(pair.mine.parquet.schema_arrow.names)
        for name in sorted(set(names) - there if graded else set(names) ^ there):
            self._error(pair.path, f"the columns of {self._theirs}", f"{name} in one of them only", column=name)
        left_out = {*KEY, *(GRADED if graded else SCORED), *(() if self._everything else HEAVY[Rollouts])}
        copied = {name: pl.col(name).hash() for name in names if name not in left_out and name in there}
        if graded:
            self._compare(pair, self._hashes(pair.mine, copied | REGRADED), self._ungraded(pair.theirs, copied))
        elif self._everything:
            filled = {name: pl.col(name).hash() for name in SCORED}
            self._compare(pair, self._hashes(pair.mine, copied | filled), self._filled(pair, copied))
        else:
            self._compare(pair, self._hashes(pair.mine, copied), self._hashes(pair.theirs, copied))

    def _ungraded(self, theirs: TableFile, copied: Mapping[str, pl.Expr]) -> pl.DataFrame:
        """What grading makes of rows: the names of groups end with the artifact that they are in."""
        assert self._parent is not None
        old, new = (f"@{held.manifest.content.key[:8]}" for held in (self._parent, self._held))
        rows = self._hashes(theirs, {**copied, **REGRADED, "status": ANSWERED.hash()})
        return rows.with_columns(group_id=pl.col("group_id").str.strip_suffix(old) + new)

    def _filled(self, pair: _Pair, copied: Mapping[str, pl.Expr]) -> pl.DataFrame:
        """What scoring makes of rows: those without logprobs of a known mode get the scores', empty completions an empty list."""
        none = pl.lit([], pl.List(pl.Float32))
        made = {
            "behavior_logprobs": pl.when(LACKS_LOGPROBS & EMPTY).then(none).otherwise(pl.col("behavior_logprobs")).hash(),
            "logprobs_mode": pl.when(LACKS_LOGPROBS).then(pl.lit("scored")).otherwise(pl.col("logprobs_mode")).hash(),
        }
        rows = self._hashes(pair.theirs, {**copied, **made, "lacking": LACKS_LOGPROBS & ~EMPTY})
        scores = self._scores(pair.path)
        self._world.ledger.count("schema", "files of logprobs compared with the scores", int(scores is not None), 1)
        if scores is None:
            given: pl.Expr = pl.lit(None, pl.UInt64)
        else:
            rows, given = rows.join(scores, on=KEY, how="left", maintain_order="left"), pl.col("given")
        logprobs = pl.when("lacking").then(given).otherwise("behavior_logprobs")
        return rows.with_columns(behavior_logprobs=logprobs).select(pl.exclude("lacking", "given"))

    def _scores(self, path: str) -> pl.DataFrame | None:
        """Hashes of the scores' logprobs for one file; None if they are not here whole."""
        scores = self._world.shelf.parent(self._held, "scores")
        file = scores.file(path) if scores else None
        opened = self._opened(scores, file) if scores and file else None
        if opened is None or opened.table is not Scores:
            return None
        return self._hashes(opened, {"given": pl.col("logprobs").hash()}).drop("row")

    def _hashes(self, opened: TableFile, columns: Mapping[str, pl.Expr]) -> pl.DataFrame:
        """Number, key and some hashes of every row of a file. A hash that is null can be anything."""
        names = sorted({*KEY, *(name for column in columns.values() for name in column.meta.root_names())})
        row = pl.int_range(pl.len(), dtype=pl.Int64)
        parts = [batch.frame.select(*KEY, **columns, row=row + batch.first) for batch in opened.batches(names)]
        schema = {"group_id": pl.String, "sample_index": pl.Int32, **dict.fromkeys(columns, pl.UInt64), "row": pl.Int64}
        return pl.concat(parts) if parts else pl.DataFrame(schema=schema)

    def _compare(self, pair: _Pair, mine: pl.DataFrame, theirs: pl.DataFrame) -> None:
        """Report rows of one file that are there once only, and values that differ."""
        for rows, others, found in ((mine, theirs, "a row that they have not"), (theirs, mine, "one of their rows is missing")):
            lost = rows.join(others, on=KEY, how="anti", maintain_order="left")
            if not lost.is_empty():
                group, sample = lost.select(KEY).row(0)
                said: dict[str, Any] = {"row": lost["row"][0] if rows is mine else None, "count": len(lost)}
                self._error(pair.path, f"the rows of {self._theirs}", f"{found}: {group}, sample {sample}", **said)
        both = mine.join(theirs, on=KEY, how="inner", maintain_order="left", suffix="_theirs")
        for name in set(mine.columns) - {*KEY, "row"}:
            other = both.filter(pl.col(name) != pl.col(f"{name}_theirs"))
            if not other.is_empty():
                row = int(other["row"][0])
                value = pl.scan_parquet(self._held.folder.local(pair.mine.file), glob=False).slice(row, 1).select(name)
                said = {"row": row, "column": name, "count": len(other)}
                self._error(pair.path, f"the {name} that follows from {self._theirs}", value.collect()[name].to_list()[0], **said)

    @property
    def _theirs(self) -> str:
        return f"the {ROLES[self._stage]} artifact {self._parent.name}" if self._parent else ""

    def _error(self, path: str, expected: str, found: object, **said: Any) -> None:
        self._checks.spot(path).error("schema", "copied", expected=expected, found=found, remedy=MAKE_ANEW, **said)
