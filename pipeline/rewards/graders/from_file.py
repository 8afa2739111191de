"""from_file: the rewards that a file holds, made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.common.errors import UserError
from pipeline.common.near import did_you_mean
from pipeline.rewards.graders.labels import COMPLETION, KEYS, Labels, completion_hash, refuse_missing
from pipeline.rewards.items import RewardItem, Score
from pipeline.store.files import sha256_of

WORK = ("path",)
By = Literal["prompt_id+sample_index", "group_id+sample_index", "completion_sha256", "prompt_id+completion_sha256"]


def from_file(
    *,
    path: str,
    label: str = "reward",
    by: By = "prompt_id+sample_index",
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, float] | None = None,
    missing: float | None = None,
) -> FileRewards:
    """Rewards of a CSV, JSONL or Parquet file, joined to the completions.

    A completion without a row is an error of its own row, which names what was looked for, or has the reward `missing`. If
    the file has a column completion_sha256, a row whose hash is another completion's counts as wrong.

    Args:
        path: the file. Its sha256 is in the recipe, its place is not.
        label: column of the rewards. Empty cells count as no row.
        by: columns that a row is found by. completion_sha256 is the hash of the completion's text, in hex.
        columns: the file's names for these columns, if they are others: {prompt_id: id}.
        values: numbers that words stand for: {good: 1, bad: 0}.
        missing: reward of completions that the file does not have.
    """
    return FileRewards(Labels(Path(path), by, label, columns or {}, values or {}), by, missing)


class FileRewards:
    """See `from_file`."""

    seconds_per_item: float | None = None

    def __init__(self, labels: Labels, by: str, missing: float | None) -> None:
        self._labels, self._keys, self._missing = labels, by.split("+"), missing
        self.notes: list[str] = [f"{labels.path.name}: {labels.rows:,} labels of {len(labels):,} completions"]

    def grade(self, items: Sequence[RewardItem]) -> list[Score]:
        return [self._score(item) for item in items]

    def _score(self, item: RewardItem) -> Score:
        known = {
            "prompt_id": str(item.prompt.get("prompt_id")),
            "group_id": item.group_id,
            "sample_index": str(item.sample_index),
            COMPLETION: completion_hash(item.completion) if COMPLETION in self._keys else "",
        }
        found = self._labels.find([known[key] for key in self._keys], item.completion)
        if found is not None and found.fits:
            return Score(found.value)
        if found is not None:
            return Score(None, f"{self._labels.path.name}, {found.place}: labels another completion (its {COMPLETION} differs)")
        if self._missing is not None:
            return Score(self._missing)
        wanted = ", ".join(f"{key} {known[key]}" for key in self._keys)
        return Score(None, f"{self._labels.path.name}: no label with {wanted}")


def check(
    *,
    path: str,
    label: str = "reward",
    by: str = KEYS[0],
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, float] | None = None,
    **_: object,
) -> None:
    """Raise if the file is not there or lacks a column."""
    refuse_mistyped(columns, values)
    refuse_missing(Path(path), [*((columns or {}).get(key, key) for key in by.split("+")), label])


def source(*, path: str, **_: object) -> str:
    """sha256 of the file."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file{did_you_mean(path)}")
    return sha256_of(Path(path))


def refuse_mistyped(columns: Any, values: Any) -> None:
    """Raise if what should be a mapping is none."""
    keys = {part for key in KEYS for part in key.split("+")}
    if columns is not None and not (isinstance(columns, Mapping) and all(isinstance(name, str) for name in columns.values())):
        raise UserError(f"args.columns: expected a mapping such as {{prompt_id: id}}, found {columns!r}")
    if unknown := sorted(set(columns or ()) - keys):
        raise UserError(f"args.columns: {unknown[0]!r} is no column to find rows by; expected {', '.join(sorted(keys))}")
    numbers = isinstance(values, Mapping) and all(
        isinstance(word, str) and isinstance(value, int | float) and not isinstance(value, bool) for word, value in values.items()
    )
    if values is not None and not numbers:
        raise UserError(
            f'args.values: expected a mapping of words to numbers such as {{"yes": 1, "no": 0}}, found {values!r}. '
            "YAML takes yes, no, on and off for truth values unless they are in quotes"
        )
