"""The frozen snapshot, ready to train from: kept completions joined with their advantages, tokens in memory-mapped files.

Only what there is of each group is held in memory; tokens, and the few numbers of each completion, are mapped from files. The
files are scratch: they are made anew on every start, shard by shard, and removed when the artifact is finished.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
from schemas import Credits, Pairs, Shaped

KEY = ["group_id", "sample_index"]
TOKENS = {
    "tokens": np.int32,
    "behavior": np.float32,
    "mask": np.bool_,
    "reference": np.float32,
    "proximal": np.float32,
    "credit": np.float32,
    "token_weight": np.float32,
}
"""What there may be of every completion token, and how it is held on disk."""
NUMBERS = {
    "sample_index": np.int32,
    "advantage": np.float32,
    "weight": np.float32,
    "reward": np.float64,
    "temperature": np.float64,
    "policy_version": np.int32,
    "from_parent": np.bool_,
    "live": np.bool_,
    "starts_group": np.bool_,
    "length": np.int64,
    "start": np.int64,
    "prompt_length": np.int64,
    "prompt_start": np.int64,
}
"""What there is of every completion: the index, a file a column, beside those of tokens."""
GROUPS, PAIR_ROWS = "groups.arrow", "pairs.arrow"
"""Files of the groups' names and the pairs."""


@dataclass(frozen=True)
class TrainingCompletion:
    """One completion to train on."""

    group_id: str
    sample_index: int
    tokens: NDArray[np.int32]
    behavior: NDArray[np.float32] | None
    """log mu per token; None if the snapshot has none that can be used."""
    mask: NDArray[np.bool_]
    reference: NDArray[np.float32] | None = None
    proximal: NDArray[np.float32] | None = None
    credit: NDArray[np.float32] | None = None
    """Advantage of each token's turn; None where turns have none of their own."""
    token_weight: NDArray[np.float32] | None = None
    """Of each token in the margin of a pair; None: all weigh 1."""
    advantage: float = 0.0
    weight: float = 1.0
    reward: float = float("nan")
    temperature: float = 1.0
    policy_version: int = 0
    from_parent: bool = True
    """Whether the policy that training starts from drew it."""
    live: bool = True
    """Whether its loss may have a gradient. What is dead is counted and not computed (see `Algorithm.dead_at`)."""


@dataclass(frozen=True)
class TrainingGroup:
    """Completions of one prompt."""

    prompt: NDArray[np.int32]
    completions: list[TrainingCompletion]
    pairs: list[tuple[int, int, float]] = field(default_factory=list)
    """Sample indices of chosen and rejected completions, and the preference."""

    @property
    def live(self) -> list[TrainingCompletion]:
        """Those that are computed."""
        return [completion for completion in self.completions if completion.live]


class TrainingSnapshot:
    """Groups of kept completions, by number."""

    def __init__(self, directory: Path, columns: list[str], groups: list[str], pairs: pl.DataFrame | None = None) -> None:
        """Open the files that `open_snapshot` wrote.

        Args:
            columns: which of `TOKENS` there are.
            groups: their names, in order.
            pairs: rows of a `Pairs` table.
        """
        self._pairs: dict[str, list[tuple[int, int, float]]] = {}
        for name, *pair in () if pairs is None else pairs.select(_PAIR).iter_rows():
            self._pairs.setdefault(name, []).append((pair[0], pair[1], pair[2]))
        self._index = {name: _mapped(directory / index_name(name), kind) for name, kind in NUMBERS.items()}
        self._bounds = np.append(np.flatnonzero(self._index["starts_group"]), self.completions)
        self._prompts = _mapped(directory / "prompts.bin", np.int32)
        self._columns = {name: _mapped(directory / f"{name}.bin", TOKENS[name]) for name in columns}
        self.groups = groups
        self.sizes: list[int] = np.diff(self._bounds).tolist()
        self.from_parent: list[bool] = self._any_of_group("from_parent").tolist()
        """Whether the policy that training starts from drew some of a group."""

    def _any_of_group(self, name: str) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = np.logical_or.reduceat(self._index[name], self._bounds[:-1])
        return found

    @property
    def has_behavior(self) -> bool:
        return "behavior" in self._columns

    @property
    def completions(self) -> int:
        return len(self._index["length"])

    @property
    def live(self) -> int:
        """Completions that are computed."""
        return int(self._index["live"].sum())

    @property
    def tokens(self) -> int:
        return int(self._index["length"].sum())

    @property
    def times_alone(self) -> float:
        """Tokens that are computed if every completion has its prompt to itself, by those if its group has it together."""
        live, prompts = self._index["live"], self._index["prompt_length"]
        tokens = float(self._index["length"].sum(where=live))
        alone = tokens + float(prompts.sum(where=live))
        shared = tokens + float(prompts[self._bounds[:-1]].sum(where=self._any_of_group("live")))
        return alone / shared if shared else 1.0

    @property
    def tokens_of_groups(self) -> list[int]:
        """Completion tokens of each group."""
        totals: list[int] = np.add.reduceat(self._index["length"], self._bounds[:-1]).tolist()
        return totals

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with its completion."""
        most = np.maximum.reduceat(self._index["length"], self._bounds[:-1]) + self._index["prompt_length"][self._bounds[:-1]]
        return int(most.max(initial=0))

    def __getitem__(self, group: int) -> TrainingGroup:
        first, end = self._bounds[group : group + 2].tolist()
        name, start, length = self.groups[group], self._index["prompt_start"][first], self._index["prompt_length"][first]
        numbers = {column: self._index[column][first:end].tolist() for column in (*_SCALARS, "start", "length")}
        rows = (dict(zip(numbers, row, strict=True)) for row in zip(*numbers.values(), strict=True))
        completions = [self._completion(name, **row) for row in rows]
        return TrainingGroup(self._prompts[start : start + length], completions, self._pairs.get(name, []))

    def _completion(self, group: str, *, start: int, length: int, **numbers: Any) -> TrainingCompletion:
        part = slice(start, start + length)
        arrays: dict[str, Any] = {name: self._columns[name][part] if name in self._columns else None for name in TOKENS}
        return TrainingCompletion(group_id=group, **arrays, **numbers)


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


def reopened(directory: Path) -> TrainingSnapshot:
    """The snapshot that `open_snapshot` laid out here. Its index is mapped as its tokens are, and ranks share both."""
    columns = [name for name in TOKENS if (directory / f"{name}.bin").exists()]
    groups: list[str] = pl.scan_ipc(directory / GROUPS, glob=False).collect()["group_id"].to_list()
    pairs = pl.scan_ipc(directory / PAIR_ROWS, glob=False).collect() if (directory / PAIR_ROWS).exists() else None
    return TrainingSnapshot(directory, columns, groups, pairs)


def index_name(column: str) -> str:
    """The file of one of `NUMBERS`."""
    return f"index-{column}.bin"


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
        rows = _in_groups(rows)
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
        rows = _read(path, drew).join(here, on=KEY, how="inner")
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


def groups_of(path: Path) -> Iterator[TrainingGroup]:
    """Every group of a rollouts file, without advantages."""
    rows = _in_groups(_read(path, policy="")).filter(pl.col("tokens").list.len() > 0)
    for _, frame in rows.group_by("group_id", maintain_order=True):
        completions = [
            TrainingCompletion(
                group_id=row["group_id"],
                sample_index=row["sample_index"],
                tokens=np.asarray(row["tokens"], np.int32),
                behavior=None,
                mask=np.ones(len(row["tokens"]), np.bool_),
                temperature=row["temperature"],
            )
            for row in frame.select(*KEY, "tokens", "temperature").iter_rows(named=True)
        ]
        yield TrainingGroup(np.asarray(frame["prompt_token_ids"][0], np.int32), completions)


def longest_of(paths: list[Path]) -> int:
    """Tokens of the longest prompt with its completion in rollouts files."""
    both = length("prompt_token_ids") + length("completion_token_ids")
    return int(pl.scan_parquet(paths, glob=False).select(both.max()).collect().item() or 0)


def _read(path: Path, policy: str) -> pl.DataFrame:
    """A rollouts file with null masks filled in. Greedy completions (temperature 0) are scored at temperature 1.

    Args:
        policy: id of the checkpoint that training starts from.
    """
    temperature = pl.col("temperature").fill_null(1.0)
    every = pl.col("completion_token_ids").list.eval(pl.element() >= 0)
    frame = pl.read_parquet(path, columns=[*KEY, *_READ], glob=False)
    return frame.select(
        *KEY,
        "prompt_token_ids",
        "policy_version",
        from_parent=pl.col("policy_id") == policy,
        tokens="completion_token_ids",
        behavior="behavior_logprobs",
        mask=pl.coalesce("action_mask", every),
        reward=pl.col("reward").fill_null(float("nan")),
        temperature=pl.when(temperature == 0).then(1.0).otherwise(temperature),
    )


def _in_groups(rows: pl.DataFrame) -> pl.DataFrame:
    rows = rows.sort(KEY)
    return rows.with_columns(starts_group=pl.col("group_id") != pl.col("group_id").shift(1, fill_value=""))


def _index(rows: pl.DataFrame) -> pl.DataFrame:
    """Where each completion and prompt of a file starts, counted from the file's own start."""
    tokens, prompt_length = length("tokens"), length("prompt_token_ids")
    written = pl.when("starts_group").then(prompt_length).otherwise(0)
    return rows.select(
        *_SCALARS,
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


def _mapped(path: Path, kind: type[np.generic]) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.memmap(path, dtype=kind, mode="r")


_READ = [
    "prompt_token_ids", "completion_token_ids", "behavior_logprobs", "action_mask", "reward", "temperature", "policy_id",
    "policy_version",
]  # fmt: skip
_PAIR = ["group_id", "chosen_index", "rejected_index", "preference"]
_PAIR_TYPES = {name: column.dtype for name, column in Pairs.columns().items()}
_SCALARS = ["sample_index", "advantage", "weight", "reward", "temperature", "policy_version", "from_parent", "live"]
