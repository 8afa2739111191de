"""Finding and fetching rows. Nothing is loaded beforehand: a filter scans the columns it names, a screen reads its own rows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import polars as pl

from pipeline.algorithms.cells.density import mean_logprob
from pipeline.common.errors import UserError
from pipeline.common.lengths import length
from pipeline.look.show.completions import with_roles
from pipeline.look.show.reading import read
from pipeline.look.turns import turns_of
from pipeline.look.view.columns import KEY, ViewColumn, columns_of
from pipeline.look.view.filters import RowFilter, parse_filter
from pipeline.look.view.parts import ViewPart
from pipeline.store import Artifact, scan_table
from schemas import Rollouts, Scores, Shaped

REMEMBERED = 8
"""Filters whose rows are kept, so that paging asks nothing anew: 8 bytes a row."""
SNIPPET = 240
"""Characters of a prompt and of a completion in the list."""
SINGLY = 16
"""Rows of one file that are read one by one; more are picked from a scan of it."""
LISTS = ("completion_token_ids", "behavior_logprobs", "action_mask")
_SHORT = ["prompt_id", "reward", "status", "policy_version"]
_LONG = [*_SHORT, "prompt_text", "completion_text", "answer", "finish_reason", "error", "source", "temperature", *LISTS]


class RowPool:
    """The rows of some rollouts artifacts, one after the other.

    Args:
        parts: the artifacts.
    """

    def __init__(self, parts: Sequence[ViewPart]) -> None:
        self.parts = list(parts)
        self.counts = [sum(file.rows or 0 for file in _files(part.rollouts)) for part in parts]
        self._starts = [0, *accumulate(self.counts)]
        self._frames: dict[tuple[str, str], pl.LazyFrame] = {}
        self._found: OrderedDict[tuple[str, str], pl.DataFrame] = OrderedDict()
        self._guard = threading.Lock()

    @property
    def total(self) -> int:
        return self._starts[-1]

    @cached_property
    def columns(self) -> Mapping[str, ViewColumn]:
        """Everything that can be filtered and sorted by."""
        extra = {name for number in range(len(self.parts)) for name in self._extra(number)}
        return columns_of(sorted(extra))

    def part(self, key: str) -> int:
        """The number of an artifact, by its name in addresses.

        Raises:
            UserError: it is not among those that are looked at.
        """
        for number, part in enumerate(self.parts):
            if part.key == key:
                return number
        raise UserError("this address names an artifact that is not among those that this page was started with")

    def page(self, text: str, sort: str, first: int, rows: int) -> tuple[list[dict[str, Any]], int]:
        """Some rows of what a filter finds, in an order, and how many it finds.

        Args:
            text: a filter.
            sort: a column's name, with - in front for the largest first; empty: as they are stored.

        Raises:
            UserError: the filter or the order cannot be understood.
            DataError, IntegrityError: a table cannot be read.
        """
        wanted = parse_filter(text, self.columns)
        if not wanted.expressions and not sort:
            places = [self._place(row) for row in range(first, min(first + rows, self.total))]
            return self._short(places), self.total
        with self._guard:
            found = self._find(wanted, text, sort)
        places = [(int(part), int(row)) for part, row in found.slice(first, rows).iter_rows()]
        return self._short(places), len(found)

    def group(self, number: int, group: str) -> list[dict[str, Any]]:
        """All of a group's completions, in the order of their numbers."""
        return self._long(number, pl.col("group_id") == group)

    def prompt(self, number: int, prompt: str, most: int) -> list[dict[str, Any]]:
        """Completions of a prompt."""
        return self._long(number, pl.col("prompt_id") == prompt, most)

    def _place(self, row: int) -> tuple[int, int]:
        number = next(n for n in range(len(self.parts)) if row < self._starts[n + 1])
        return number, row - self._starts[number]

    def _frame(self, artifact: Artifact, table: type[Rollouts] | type[Shaped] | type[Scores]) -> pl.LazyFrame:
        key = artifact.id, table.title()
        if key not in self._frames:
            self._frames[key] = scan_table(artifact, table)
        return self._frames[key]

    def _extra(self, number: int) -> list[str]:
        path = self.parts[number].rollouts.tables("rollouts")[:1]
        names = pl.read_parquet_schema(path[0]) if path else {}
        return [name for name, dtype in names.items() if Rollouts.is_extra(name) and dtype.is_numeric()]

    def _find(self, wanted: RowFilter, text: str, sort: str) -> pl.DataFrame:
        """Part and row of everything that a filter finds."""
        if (text, sort) in self._found:
            self._found.move_to_end((text, sort))
            return self._found[text, sort]
        name = sort.removeprefix("-")
        if name and name not in self.columns:
            raise UserError(f"sort: there is no column {name}")
        by = self.columns[name] if name else None
        found = pl.concat([self._matches(number, wanted, by) for number in range(len(self.parts))], how="vertical_relaxed")
        if by is not None:
            found = found.sort("by", descending=sort.startswith("-"), nulls_last=True, maintain_order=True)
        found = found.select(pl.col("part").cast(pl.UInt32), pl.col("row").cast(pl.UInt32))
        self._found[text, sort] = found
        while len(self._found) > REMEMBERED:
            self._found.popitem(last=False)
        return found

    def _matches(self, number: int, wanted: RowFilter, by: ViewColumn | None) -> pl.DataFrame:
        part = self.parts[number]
        rows = self._frame(part.rollouts, Rollouts).with_row_index("row")
        rows = rows.with_columns(set=pl.lit(part.set), place=pl.lit(part.place), part=pl.lit(number, dtype=pl.UInt32))
        absent = [pl.lit(None, dtype=pl.Float64).alias(name) for name in self.columns if Rollouts.is_extra(name)]
        there = set(self._extra(number))
        rows = rows.with_columns([column for column in absent if column.meta.output_name() not in there])
        if wanted.shaped or (by is not None and by.shaped):
            rows = self._with_shaped(rows, part)
        for expression in wanted.expressions:
            rows = rows.filter(expression)
        key = by.expression if by is not None else pl.lit(None)
        return read(rows.select("part", "row", key.alias("by")), part.rollouts)

    def _with_shaped(self, rows: pl.LazyFrame, part: ViewPart) -> pl.LazyFrame:
        names = [name for name in Shaped.columns() if name not in KEY]
        if part.shaped is None:
            return rows.with_columns([pl.lit(None, dtype=Shaped.columns()[name].dtype).alias(name) for name in names])
        shaped = self._frame(part.shaped, Shaped).select(*KEY, *names)
        return rows.join(shaped, on=KEY, how="left", maintain_order="left")

    def _short(self, places: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The rows of some places as the list shows them, in that order."""
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for number in dict.fromkeys(part for part, _ in places):
            rows = self._rows(number, sorted(row for part, row in places if part == number))
            for row in self._joined(rows, number).to_dicts():
                found[number, row["row"]] = {**row, "part": self.parts[number]}
        return [found[place] for place in places]

    def _rows(self, number: int, wanted: Sequence[int]) -> pl.DataFrame:
        """Some rows of an artifact, by their numbers in it."""
        part = self.parts[number]
        self._frame(part.rollouts, Rollouts)  # its files are checked before one is opened
        start, parts = 0, []
        for file, path in zip(_files(part.rollouts), part.rollouts.tables("rollouts"), strict=True):
            here = [row - start for row in wanted if start <= row < start + (file.rows or 0)]
            if here:
                parts += [read(rows, part.rollouts).with_columns(pl.col("row") + start) for rows in _picked(path, here)]
            start += file.rows or 0
        return pl.concat(parts)

    def _joined(self, rows: pl.DataFrame, number: int) -> pl.DataFrame:
        """Rows with what the shaped table has of them."""
        part = self.parts[number]
        wanted = pl.col("group_id").is_in(rows["group_id"].unique().to_list())
        if part.shaped is None:
            return self._with_shaped(rows.lazy(), part).collect()
        shaped = read(self._frame(part.shaped, Shaped).filter(wanted), part.shaped)
        return rows.join(shaped, on=KEY, how="left", maintain_order="left")

    def _long(self, number: int, wanted: pl.Expr, most: int | None = None) -> list[dict[str, Any]]:
        """Rows with their texts, tokens and turns, and their logprobs under other checkpoints."""
        part = self.parts[number]
        rows = self._frame(part.rollouts, Rollouts).filter(wanted).select(*KEY, *_LONG, *self._extra(number))
        frame = read(rows.head(most) if most else rows, part.rollouts)
        if frame.is_empty():
            return []
        frame = with_roles(self._joined(frame.sort(*KEY), number), part.rollouts)
        groups = pl.col("group_id").is_in(frame["group_id"].unique().to_list())
        for role, scores in part.scores.items():
            scored = self._frame(scores, Scores).filter(groups).select(*KEY, pl.col("logprobs").alias(f"scores {role}"))
            frame = frame.join(read(scored, scores), on=KEY, how="left", maintain_order="left")
        turns = turns_of(part.rollouts, frame.select(*KEY), part.shaped)
        return [{**row, "turns": turns.get((row["group_id"], row["sample_index"]), [])} for row in frame.to_dicts()]


def _files(rollouts: Artifact) -> list[Any]:
    return [file for file in rollouts.files if file.table and file.table.split("/")[0] == "rollouts"]


def _picked(path: Any, rows: Sequence[int]) -> list[pl.LazyFrame]:
    """Some rows of a file, as the list shows them; neighbors together."""
    whole = pl.scan_parquet(path, glob=False)
    runs: list[list[int]] = []
    for row in rows:
        if runs and row == runs[-1][-1] + 1:
            runs[-1].append(row)
        else:
            runs.append([row])
    if len(runs) > SINGLY:
        numbered = whole.with_row_index("row")
        return [numbered.filter(pl.col("row").is_in(list(rows))).select(pl.col("row").cast(pl.Int64), *_listed())]
    return [
        whole.slice(run[0], len(run)).select(*_listed()).with_row_index("row", run[0]).with_columns(pl.col("row").cast(pl.Int64))
        for run in runs
    ]


def _listed() -> list[Any]:
    texts = [pl.col(name).str.slice(0, SNIPPET) for name in ("prompt_text", "completion_text")]
    return [*KEY, *_SHORT, *texts, length("completion_token_ids").alias("tokens"), mean_logprob().alias("logprob")]
