"""The frozen snapshot, ready to train from: kept completions joined with their advantages, tokens in memory-mapped files.

Only the index (a few numbers per completion) is held in memory. The files are scratch: they are made anew on every start,
shard by shard, and removed when the artifact is finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipeline.algorithms import Algorithm
from pipeline.artifacts import Artifact, read_table
from pipeline.artifacts.tables import scan_table
from pipeline.errors import DataError, UserError
from schemas import Rollouts, Shaped


@dataclass(frozen=True)
class Completion:
    """One completion to train on."""

    group_id: str
    sample_index: int
    tokens: NDArray[np.int32]
    behavior: NDArray[np.float32]
    """log mu per token; zeros if the snapshot has none."""
    mask: NDArray[np.bool_]
    advantage: float
    weight: float
    reward: float
    temperature: float


@dataclass(frozen=True)
class Group:
    """The kept completions of one prompt."""

    prompt: NDArray[np.int32]
    completions: list[Completion]


class Snapshot:
    """Groups of kept completions, by number."""

    def __init__(self, directory: Path, index: pl.DataFrame, has_behavior: bool) -> None:
        self.has_behavior = has_behavior
        self._index = index
        self._bounds = [*np.flatnonzero(index["starts_group"].to_numpy()).tolist(), len(index)]
        self._tokens: NDArray[np.int32] = _mapped(directory / "tokens.bin", np.int32)
        self._behavior: NDArray[np.float32] = _mapped(directory / "behavior.bin", np.float32)
        self._mask: NDArray[np.bool_] = _mapped(directory / "mask.bin", np.bool_)
        self.groups: list[str] = index.filter("starts_group")["group_id"].to_list()
        self.sizes: list[int] = np.diff(self._bounds).tolist()

    @property
    def completions(self) -> int:
        return len(self._index)

    @property
    def tokens(self) -> int:
        return int(self._index["completion_tokens"].sum())

    def __getitem__(self, group: int) -> Group:
        rows = self._index[self._bounds[group] : self._bounds[group + 1]]
        first = rows.row(0, named=True)
        prompt = self._tokens[first["prompt_start"] : first["prompt_start"] + first["prompt_tokens"]]
        return Group(prompt, [self._completion(row) for row in rows.iter_rows(named=True)])

    def _completion(self, row: dict[str, object]) -> Completion:
        start, length = int(row["completion_start"]), int(row["completion_tokens"])  # type: ignore[call-overload]
        part, aligned = slice(start, start + length), slice(int(row["aligned_start"]), int(row["aligned_start"]) + length)  # type: ignore[call-overload]
        fields = {name: row[name] for name in ("group_id", "sample_index", "advantage", "weight", "reward", "temperature")}
        return Completion(tokens=self._tokens[part], behavior=self._behavior[aligned], mask=self._mask[aligned], **fields)  # type: ignore[arg-type]


def open_snapshot(directory: Path, rollouts: Artifact, shaped: Artifact, algorithm: Algorithm) -> Snapshot:
    """Join rollouts and shaped rows and lay their tokens out for training.

    Raises:
        DataError: the tables do not belong together, or nothing is kept.
        UserError: the algorithm needs a ratio that these rollouts cannot give; says which column and how to get it.
    """
    kept = read_table(shaped, Shaped).filter("keep").drop("keep", "drop_reason")
    if kept.is_empty():
        raise DataError(
            f"{shaped.path}: no completion is kept for training. Its drop_reason column says why; see `shape` in the config"
        )
    directory.mkdir(parents=True, exist_ok=True)
    has_behavior = _check_ratio(rollouts, kept, algorithm)
    scan_table(rollouts, Rollouts)
    parts, offset, aligned = [], 0, 0
    with (
        (directory / "tokens.bin").open("wb") as tokens,
        (directory / "behavior.bin").open("wb") as behavior,
        (directory / "mask.bin").open("wb") as mask,
    ):
        for path in rollouts.tables("rollouts"):
            rows = _joined(path, kept)
            lengths = rows["completion_token_ids"].list.len().cast(pl.Int64)
            prompts = rows.filter("starts_group")["prompt_token_ids"]
            prompt_starts = offset + prompts.list.len().cast(pl.Int64).cum_sum().shift(1, fill_value=0)
            prompts.explode(empty_as_null=False).to_numpy().astype(np.int32).tofile(tokens)
            offset += int(prompts.list.len().sum())
            rows["completion_token_ids"].explode(empty_as_null=False).to_numpy().astype(np.int32).tofile(tokens)
            starts = lengths.cum_sum().shift(1, fill_value=0)
            _behavior_of(rows, lengths).astype(np.float32).tofile(behavior)
            _mask_of(rows, lengths).astype(np.bool_).tofile(mask)
            parts.append(
                rows.select(
                    "group_id", "sample_index", "advantage", "weight", "starts_group",
                    pl.col("reward").fill_null(float("nan")),
                    pl.col("temperature").fill_null(1.0),
                    prompt_tokens=pl.col("prompt_token_ids").list.len().cast(pl.Int64),
                    completion_tokens=lengths,
                    completion_start=offset + starts,
                    aligned_start=aligned + starts,
                    prompt_start=prompt_starts.gather(rows["starts_group"].cum_sum().cast(pl.Int64) - 1),
                )
            )  # fmt: skip
            offset += int(lengths.sum())
            aligned += int(lengths.sum())
    index = pl.concat(parts)
    if len(index) != len(kept):
        raise DataError(f"{shaped.path}: {len(kept) - len(index)} of its rows are not in {rollouts.path}")
    return Snapshot(directory, index, has_behavior)


def _joined(path: Path, kept: pl.DataFrame) -> pl.DataFrame:
    columns = ["group_id", "sample_index", "prompt_token_ids", "completion_token_ids", "behavior_logprobs", "action_mask"]
    rows = pl.read_parquet(path, columns=[*columns, "reward", "temperature"])
    rows = rows.join(kept, on=["group_id", "sample_index"], how="inner", maintain_order="left")
    rows = rows.sort("group_id", "sample_index")
    return rows.with_columns(starts_group=pl.col("group_id") != pl.col("group_id").shift(1, fill_value=""))


def _behavior_of(rows: pl.DataFrame, lengths: pl.Series) -> NDArray[np.float32]:
    if rows["behavior_logprobs"].null_count():
        return np.zeros(int(lengths.sum()), np.float32)
    return rows["behavior_logprobs"].explode(empty_as_null=False).to_numpy()


def _mask_of(rows: pl.DataFrame, lengths: pl.Series) -> NDArray[np.bool_]:
    if rows["action_mask"].null_count() == len(rows):
        return np.ones(int(lengths.sum()), np.bool_)
    pairs = zip(rows["action_mask"], lengths, strict=True)
    return np.concatenate([np.ones(n, np.bool_) if mask is None else mask.to_numpy() for mask, n in pairs])


def _check_ratio(rollouts: Artifact, kept: pl.DataFrame, algorithm: Algorithm) -> bool:
    """Whether the kept rows have behavior logprobs that are those of the sampling density.

    Raises:
        UserError: they do not, and the algorithm needs them.
    """
    scalars = scan_table(rollouts, Rollouts).select(
        "group_id",
        "sample_index",
        absent=pl.col("behavior_logprobs").is_null(),
        cut=(pl.col("top_p") < 1) | (pl.col("top_k") > 0) | (pl.col("min_p") > 0),
        greedy=pl.col("temperature") == 0,
        raw=(pl.col("logprobs_mode") == "raw_logprobs") & (pl.col("temperature") != 1),
        unknown=pl.col("logprobs_mode") == "unknown",
    )
    rows = scalars.collect().join(kept.select("group_id", "sample_index"), on=["group_id", "sample_index"], how="semi")
    for column, problem in _PROBLEMS.items():
        count = int(rows[column].sum() or 0)
        if count and algorithm.needs:
            raise UserError(
                f"{rollouts.path}: {algorithm.name} needs behavior_logprobs, but {count} of {len(rows)} kept completions "
                f"{problem}. Methods without a ratio (such as reinforce) can train on them"
            )
        if count:
            return False
    return True


_PROBLEMS = {
    "absent": "have none. Score them with the checkpoint that generated them",
    "greedy": "were drawn at temperature 0, where the sampling density is a point. Generate with a temperature above 0",
    "cut": "were drawn with top_p, top_k or min_p, and the cut support was not recorded. Generate with top_p=1, top_k=0, min_p=0",
    "raw": "hold raw logprobs at a temperature that is not 1. Generate with processed logprobs",
    "unknown": "hold logprobs of an unknown mode. Score them with the checkpoint that generated them",
}


def _mapped(path: Path, kind: type) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.memmap(path, dtype=kind, mode="r")
