"""Pairs of stored completions for people to compare, and the file of their labels, one JSON object a line.

A label is what `rollbook import --format preference` reads: prompt, chosen, rejected and a score of each (1 and 0, or 1/2 and 1/2
of completions that are as good as each other), beside which pair it was of which rollouts, and whose.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pipeline.common.errors import UserError
from pipeline.store import Artifact
from pipeline.store.tables import scan_table
from schemas import Rollouts

Verdict = Literal["first", "second", "equal"]
KEY = ("rollouts", "group_id", "chosen_index", "rejected_index", "annotator")


@dataclass(frozen=True)
class ShownPair:
    """Two completions of one prompt, in the order in which they are shown."""

    group_id: str
    prompt_id: str
    prompt: str
    first: str
    second: str
    indices: tuple[int, int]
    """Sample index of each."""


def pairs_of(rollouts: Artifact, seed: int) -> Iterator[ShownPair]:
    """Pairs of completions that differ as texts, one a group, in an order that a hash of group and seed decides.

    Both completions of a pair, and which of them is shown first, are drawn by the same hash: neither length nor reward plays a
    part. Completions that failed in the engine are left out; groups whose texts are all alike give no pair.
    """
    rollouts.verify()
    columns = ("group_id", "sample_index", "prompt_id", "prompt_text", "completion_text")
    rows = scan_table(rollouts, Rollouts).filter(pl.col("status") != "engine_error").select(columns).collect()
    groups = {str(name[0]): group for name, group in rows.group_by("group_id", maintain_order=True)}
    for name in sorted(groups, key=lambda name: _draw(seed, name)):
        group = groups[name].unique("completion_text", keep="first", maintain_order=True).to_dicts()
        drawn = sorted(group, key=lambda row: _draw(seed, f"{name} {row['sample_index']}"))[:2]
        if len(drawn) == 2:
            one, two = drawn
            texts, indices = (one["completion_text"], two["completion_text"]), (one["sample_index"], two["sample_index"])
            yield ShownPair(name, one["prompt_id"], one["prompt_text"], *texts, indices)


def _draw(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


class LabelFile:
    """Labels that were given, each on the disk before the next pair is shown."""

    def __init__(self, path: Path, rollouts: Artifact, annotator: str) -> None:
        """Open a file, which may hold labels already: of these rollouts, of others, of other people.

        Raises:
            UserError: it holds something else; says where.
        """
        if path.suffix != ".jsonl":
            raise UserError(f"--out {path}: expected a name that ends with .jsonl")
        self._path, self._rollouts, self._annotator = path, rollouts.id, annotator
        self._done = {frozenset(_pair(label)) for label in _read(path) if self._is_ours(label)}

    def __len__(self) -> int:
        """Pairs of these rollouts that this annotator labelled."""
        return len(self._done)

    def has(self, pair: ShownPair) -> bool:
        """Whether this annotator labelled the pair."""
        return frozenset((pair.group_id, index) for index in pair.indices) in self._done

    def add(self, pair: ShownPair, verdict: Verdict) -> None:
        """Write a label down."""
        sides = [(pair.first, pair.indices[0]), (pair.second, pair.indices[1])]
        (chosen, best), (rejected, worst) = sides if verdict != "second" else sides[::-1]
        scores = (0.5, 0.5) if verdict == "equal" else (1.0, 0.0)
        label = {
            **{"prompt_id": pair.prompt_id, "prompt": pair.prompt, "chosen": chosen, "rejected": rejected},
            **{"score_chosen": scores[0], "score_rejected": scores[1]},
            **dict(zip(KEY, (self._rollouts, pair.group_id, best, worst, self._annotator), strict=True)),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(label, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._done.add(frozenset(_pair(label)))

    def _is_ours(self, label: dict[str, Any]) -> bool:
        return (label["rollouts"], label["annotator"]) == (self._rollouts, self._annotator)


def _pair(label: dict[str, Any]) -> tuple[tuple[str, int], tuple[str, int]]:
    return (label["group_id"], label["chosen_index"]), (label["group_id"], label["rejected_index"])


def _read(path: Path) -> list[dict[str, Any]]:
    """The labels of a file; none if it is not there. A last line that a crash cut short is taken out of it."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--out {path}: cannot be read: {error}") from None
    whole, _, rest = text.rpartition("\n")
    if rest:
        path.write_text(f"{whole}\n" if whole else "", encoding="utf-8")
    labels = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            label = json.loads(line)
            if not isinstance(label, dict) or any(name not in label for name in KEY):
                raise ValueError
        except (ValueError, RecursionError):
            raise UserError(
                f"--out {path}, line {number}: no label: expected a JSON object with {', '.join(KEY)}. Name a file of labels, or "
                "one that is not there yet"
            ) from None
        labels.append(label)
    return labels
