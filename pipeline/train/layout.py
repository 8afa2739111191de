"""How a snapshot comes about: kept completions joined with their advantages, scores and credits, file by file."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.algorithms import Algorithm
from pipeline.algorithms.cells.cell import ADVANTAGE, PAIRS
from pipeline.common.errors import DataError
from pipeline.common.lengths import length
from pipeline.generate.mixture.order import MIXTURE
from pipeline.run.parts import Part
from pipeline.shape.behavior import has_behavior
from pipeline.store import Artifact, read_table
from pipeline.store.tables import scan_table
from pipeline.train.credit import with_credit
from pipeline.train.rows import KEY, in_groups, read_rows
from pipeline.train.snapshot import GROUPS, NUMBERS, PAIR_ROWS, SCALARS, TOKENS, TrainingSnapshot, index_name, reopened
from schemas import Credits, Pairs, Shaped

_PAIR_TYPES = {name: column.dtype for name, column in Pairs.columns().items()}


def open_snapshot(directory: Path, parts: Sequence[Part], algorithm: Algorithm, policy: str) -> TrainingSnapshot:
    """Join rollouts, shaped rows and scores, and lay their tokens out for training.

    Args:
        directory: scratch.
        parts: the iteration's own rollouts, then those that are replayed, whose groups are named after their artifact.
        policy: id of the checkpoint that training starts from.

    Raises:
        DataError: the tables do not belong together.
        UserError: the algorithm needs a ratio that these rollouts cannot give; says which column and how to get it.
    """
    columns = ["tokens", "mask", *parts[0].scores]
    behavior = [has_behavior(part.rollouts, _kept_of_files(part, algorithm), algorithm) for part in parts]
    if all(behavior):
        columns.append("behavior")
    if len({bool(part.shaped.tables("credits")) for part in parts}) > 1:
        raise DataError("some shaped tables have credits of turns and some have none; they were not shaped alike")
    if parts[0].shaped.tables("credits"):
        columns.append("credit")
    if algorithm.weighs_tokens and any(part.rollouts.tables("revisions") for part in parts):
        columns.append("token_weight")
    with _Layout(directory, columns) as layout:
        for number, part in enumerate(parts):
            prefix = f"{part.rollouts.id[:16]}/" if number else ""
            _lay_out(layout, part, algorithm, policy, prefix)
    pl.concat(layout.groups).to_frame().write_ipc(directory / GROUPS)
    if layout.pairs:
        pl.concat(layout.pairs).write_ipc(directory / PAIR_ROWS)
    return reopened(directory)


def _kept_of_files(part: Part, algorithm: Algorithm) -> Iterator[tuple[Path, pl.DataFrame]]:
    """Of each file of rollouts the kept rows, with `live`: whether the algorithm learns something from them.

    Where the shaped table is cut as its rollouts are, as shaping cuts it, one file is held at a time.
    """
    scan_table(part.shaped, Shaped)
    paths, shaped = part.rollouts.tables("rollouts"), part.shaped.tables("shaped")
    paired = _paired(part) if PAIRS in algorithm.dead_at else None
    pulls = _pulls(part)
    if [(path.name, _rows_of(path)) for path in paths] == [(path.name, _rows_of(path)) for path in shaped]:
        frames: Iterator[pl.DataFrame] = (_kept(pl.scan_parquet(path, glob=False)) for path in shaped)
    else:
        frames = _by_file(part, paths)
    for path, rows in zip(paths, frames, strict=True):
        yield path, _with_live(rows, algorithm, paired, pulls)


def _kept(shaped: pl.LazyFrame) -> pl.DataFrame:
    return shaped.filter("keep").drop("keep", "drop_reason").collect()


def _rows_of(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)


def _pulls(part: Part) -> pl.DataFrame | None:
    """Keys of the completions whose turns have credits, with the largest; None where credits are not told apart by turns."""
    if not part.shaped.tables("credits"):
        return None
    return read_table(part.shaped, Credits).group_by(KEY).agg(pull=pl.col(ADVANTAGE).abs().max())


def _paired(part: Part) -> pl.DataFrame:
    """Keys of the completions that are an end of some pair."""
    pairs = read_table(part.shaped, Pairs) if part.shaped.tables("pairs") else pl.DataFrame(schema=_PAIR_TYPES)
    ends = [pairs.select("group_id", sample_index=f"{end}_index") for end in ("chosen", "rejected")]
    return pl.concat(ends).unique().with_columns(paired=True)


def _with_live(rows: pl.DataFrame, algorithm: Algorithm, paired: pl.DataFrame | None, pulls: pl.DataFrame | None) -> pl.DataFrame:
    """Rows of the shaped table with `live`: whether the algorithm learns something from them."""
    if pulls is not None:
        live = pl.all_horizontal(pl.lit(True), *(pl.col("pull" if n == ADVANTAGE else n) != 0 for n in algorithm.dead_at))
        return rows.join(pulls, on=KEY, how="left", maintain_order="left").with_columns(live=live).drop("pull")
    live = pl.all_horizontal(pl.lit(True), *(pl.col(name) != 0 for name in algorithm.dead_at if name != PAIRS))
    if paired is None:
        return rows.with_columns(live=live)
    return rows.join(paired, on=KEY, how="left").with_columns(live=live & pl.col("paired").fill_null(False)).drop("paired")


def left_out(parts: Sequence[Part], snapshot: TrainingSnapshot) -> dict[str, int]:
    """How many completions are not computed, by the reason for which shaping dropped them; `dead` are those it kept."""
    reasons: Counter[str] = Counter()
    for path in (path for part in parts for path in part.shaped.tables("shaped")):
        reasons.update(pl.read_parquet(path, columns=["drop_reason"], glob=False)["drop_reason"].drop_nulls().to_list())
    reasons["dead"] = snapshot.completions - snapshot.live
    return {reason: count for reason, count in sorted(reasons.items()) if count}


class _Layout:
    """Files of flat tokens in the making, and what goes with them."""

    def __init__(self, directory: Path, columns: list[str]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.columns = columns
        self.groups: list[pl.Series] = [pl.Series("group_id", [], pl.String)]
        self.pairs: list[pl.DataFrame] = []
        self._tokens = self._prompt_tokens = 0
        self._stack = ExitStack()
        names = [f"{name}.bin" for name in [*columns, "prompts"]] + [index_name(name) for name in NUMBERS]
        self._files = {name: self._stack.enter_context((directory / name).open("wb")) for name in names}

    def __enter__(self) -> _Layout:
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def add(self, rows: pl.DataFrame) -> None:
        """Completions of whole groups."""
        rows = in_groups(rows)
        for name in self.columns:
            _flat(rows, name, TOKENS[name]).tofile(self._files[f"{name}.bin"])
        firsts = rows.filter("starts_group")
        _flat(firsts, "prompt_token_ids", np.int32).tofile(self._files["prompts.bin"])
        self.groups.append(firsts["group_id"])
        part = _index(rows)
        part = part.with_columns(pl.col("start") + self._tokens, pl.col("prompt_start") + self._prompt_tokens)
        for name, kind in NUMBERS.items():
            part[name].to_numpy().astype(kind).tofile(self._files[index_name(name)])
        self._tokens += int(part["length"].sum())
        self._prompt_tokens += int(part.filter("starts_group")["prompt_length"].sum())


def _lay_out(layout: _Layout, part: Part, algorithm: Algorithm, policy: str, prefix: str) -> None:
    """Add the kept completions of a part, file by file, their groups' names behind a prefix."""
    named = (pl.lit(prefix) + pl.col("group_id")).alias("group_id")
    drew = "" if MIXTURE in part.rollouts.recipe else policy  # a mixture's logprobs are not those of any checkpoint
    lost = 0
    for number, (path, here) in enumerate(_kept_of_files(part, algorithm)):
        if number and here.is_empty():
            continue
        rows = read_rows(path, drew).join(here, on=KEY, how="inner")
        for role, artifact in part.scores.items():
            rows = rows.join(_scored(artifact, number, role), on=KEY, how="left")
        if credits := part.shaped.tables("credits"):
            rows = with_credit(rows, pl.read_parquet(credits[number], glob=False))
        if "token_weight" in layout.columns:
            rows = _weighed(rows, part.rollouts, number)
        lost += len(here) - len(rows)
        layout.add(rows.with_columns(named))
    _refuse_lost(part, lost)
    if part.shaped.tables("pairs"):
        layout.pairs.append(read_table(part.shaped, Pairs).with_columns(named))


def _by_file(part: Part, paths: list[Path]) -> Iterator[pl.DataFrame]:
    """The kept rows of each file, found in one pass over the keys of all: joined file by file, all would be sought in each."""
    kept = _kept(scan_table(part.shaped, Shaped))
    keys = pl.scan_parquet(paths, glob=False).select(KEY).collect()
    numbers = pl.Series("file", np.repeat(np.arange(len(paths)), [_rows_of(path) for path in paths]), pl.UInt32)
    placed = keys.with_columns(numbers).join(kept, on=KEY, how="inner").sort("file")
    _refuse_lost(part, len(kept) - len(placed))
    ends = placed["file"].search_sorted(pl.Series(range(len(paths)), dtype=pl.UInt32), side="right").to_list()
    placed = placed.drop("file")
    yield from (placed[start:end] for start, end in itertools.pairwise([0, *ends]))


def _refuse_lost(part: Part, lost: int) -> None:
    if lost:
        raise DataError(f"{part.shaped.path}: {lost} of its rows are not in {part.rollouts.path}")


def _index(rows: pl.DataFrame) -> pl.DataFrame:
    """Where each completion and prompt of a file starts, counted from the file's own start."""
    tokens, prompt_length = length("tokens"), length("prompt_token_ids")
    written = pl.when("starts_group").then(prompt_length).otherwise(0)
    return rows.select(
        *SCALARS,
        "starts_group",
        length=tokens,
        start=tokens.cum_sum() - tokens,
        prompt_length=prompt_length,
        prompt_start=written.cum_sum() - prompt_length,
    )


def _scored(artifact: Artifact, number: int, role: str) -> pl.DataFrame:
    """Scores of one file: scores artifacts are cut as their rollouts are."""
    return pl.read_parquet(artifact.tables("scores")[number], glob=False).rename({"logprobs": role})


def _weighed(rows: pl.DataFrame, rollouts: Artifact, number: int) -> pl.DataFrame:
    """Rows with the weights of their tokens: those of a revisions artifact, of any other 1."""
    ones = pl.col("tokens").list.eval(pl.lit(1.0, pl.Float32))
    if not (files := rollouts.tables("revisions")):
        return rows.with_columns(token_weight=ones)
    weights = pl.read_parquet(files[number], columns=[*KEY, "token_weights"], glob=False)
    return rows.join(weights.rename({"token_weights": "token_weight"}), on=KEY, how="left")


def _flat(rows: pl.DataFrame, column: str, kind: type[np.generic]) -> NDArray[Any]:
    """All lists of a column, one after the other."""
    if (missing := rows[column].null_count()) > 0:
        raise DataError(f"{missing} completions have no {column} logprobs; the scores are not those of these rollouts")
    return rows[column].explode(empty_as_null=False).to_numpy().astype(kind)
