"""Pairs that people compared, from the file of `rollbook label`: who is preferred in a rollouts artifact, and how surely."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.common.errors import DataError, UserError
from pipeline.store import Artifact

COLUMNS = ("rollouts", "group_id", "chosen_index", "rejected_index", "score_chosen", "score_rejected")
"""Of a label."""
KEY = ["group_id", "chosen_index", "rejected_index"]
TYPES = {"group_id": pl.String, "chosen_index": pl.Int32, "rejected_index": pl.Int32, "preference": pl.Float32}


@dataclass(frozen=True)
class GivenPairs:
    """Preferences of a rollouts artifact that were given, not made from rewards."""

    rows: pl.DataFrame
    """KEY and preference, that the chosen one is better, at least 1/2; each pair once."""

    @property
    def sha256(self) -> str:
        """Of what they say, in whatever order they were given."""
        text = "\n".join(map(str, self.rows.sort(KEY).iter_rows()))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def pairs(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Rows of a `Pairs` table, of pairs whose completions are both there.

        Args:
            rows: kept rows with group_id, sample_index and reward.
        """
        ends = rows.select("group_id", "sample_index", pl.col("reward").cast(pl.Float64).fill_null(0.0))
        found = self.rows.join(
            ends.rename({"reward": "better"}), left_on=KEY[:2], right_on=["group_id", "sample_index"], how="inner"
        ).join(ends.rename({"reward": "worse"}), left_on=["group_id", "rejected_index"], right_on=["group_id", "sample_index"])
        return found.select(*KEY, "preference", margin=pl.col("better") - pl.col("worse")).sort(KEY)


def labels_of(path: Path, rollouts: Artifact) -> GivenPairs:
    """What people said of an artifact's pairs: the mean over those who labelled a pair.

    Raises:
        UserError: nobody labelled a pair of it, or all said that both are as good as each other.
        DataError: a line is no label, or contradicts another of the same annotator; names both.
    """
    rows = pl.DataFrame(list(_votes(path, rollouts.id)), schema={**TYPES, "annotator": pl.String}, orient="row")
    if rows.is_empty():
        raise UserError(
            f"shape.labels: {path}: no label of a pair of {rollouts.url}. Give some: rollbook label {rollouts.url} --out {path}"
        )
    mean = rows.group_by(KEY).agg(pl.col("preference").mean())
    if (mean["preference"] == 0.5).all():
        more = f" Go on: rollbook label {rollouts.url} --out {path}"
        raise UserError(_nothing_preferred(path, len(mean), f" of {rollouts.url}") + more)
    one, other = pl.col("chosen_index"), pl.col("rejected_index")
    flip = pl.col("preference") < 0.5
    turned = mean.select(
        "group_id",
        chosen_index=pl.when(flip).then(other).otherwise(one),
        rejected_index=pl.when(flip).then(one).otherwise(other),
        preference=pl.when(flip).then(1 - pl.col("preference")).otherwise(pl.col("preference")).cast(pl.Float32),
    )
    return GivenPairs(turned.sort(KEY))


def _nothing_preferred(path: Path, pairs: int, of: str) -> str:
    counted = f"1 pair{of} is labelled" if pairs == 1 else f"{pairs} pairs{of} are labelled"
    return (
        f"shape.labels: {path}: {counted}, and in all of them both completions are as good as each other, so that nothing is "
        "preferred."
    )


def check_labels(path: Path) -> None:
    """Raise for a file that is no file of labels. One that is not there yet is written when there are rollouts to label.

    Raises:
        UserError, DataError: as `labels_of`.
    """
    votes = [vote[3] for vote in _votes(path, None)]
    if votes and all(preference == 0.5 for preference in votes):
        raise UserError(_nothing_preferred(path, len(votes), ""))


def _votes(path: Path, rollouts: str | None) -> Iterator[tuple[str, int, int, float, str]]:
    """Of each label the pair, with the smaller index first, how sure it is of that one, and whose it is; repeated ones once."""
    known: dict[tuple[str, str, int, int, str], tuple[int, float]] = {}
    for number, label in _labels(path):
        chosen, rejected = int(label["chosen_index"]), int(label["rejected_index"])
        better, worse = float(label["score_chosen"]), float(label["score_rejected"])
        place, who = f"shape.labels: {path}, line {number}", str(label.get("annotator") or "")
        if chosen == rejected or min(better, worse) < 0 or not better + worse > 0:
            raise DataError(f"{place}: expected two completions, and scores of them that are not negative and not both 0")
        preference = better / (better + worse) if chosen < rejected else worse / (better + worse)
        key = (str(label["rollouts"]), str(label["group_id"]), min(chosen, rejected), max(chosen, rejected), who)
        before = known.setdefault(key, (number, preference))
        if before[1] != preference:
            whose = f"{who} " if who else ""
            raise DataError(
                f"{place}: {whose}contradicts line {before[0]}: the same pair of group {key[1]} with another preference. Keep one"
            )
        if before[0] == number and rollouts in (None, key[0]):
            yield (*key[1:4], preference, who)


def _labels(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines with their numbers; none of a file that is not there."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"shape.labels: {path}: cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        try:
            label = json.loads(line)
            if not isinstance(label, dict) or any(name not in label for name in COLUMNS):
                raise ValueError
            for name in COLUMNS[2:]:
                float(label[name])
        except (ValueError, TypeError, RecursionError):
            if number == len(lines) and number > 1:  # cut short by a crash; `rollbook label` takes it out
                return
            raise DataError(
                f"shape.labels: {path}, line {number}: no label: expected a JSON object with {', '.join(COLUMNS)}, as "
                "`rollbook label` writes it"
            ) from None
        yield number, label
