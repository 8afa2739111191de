"""The frozen snapshot, ready to train from: kept completions joined with their advantages, tokens in memory-mapped files.

Only what there is of each group is held in memory; tokens, and the few numbers of each completion, are mapped from files. The
files are scratch: `layout` makes them anew on every start, shard by shard, and they are removed when the artifact is finished.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

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
SCALARS = ["sample_index", "advantage", "weight", "reward", "temperature", "policy_version", "from_parent", "live"]
"""Those of them that are of the completion itself, not of where its tokens lie."""
GROUPS, PAIR_ROWS = "groups.arrow", "pairs.arrow"
"""Files of the groups' names and the pairs."""
_PAIR = ["group_id", "chosen_index", "rejected_index", "preference"]


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
        numbers = {column: self._index[column][first:end].tolist() for column in (*SCALARS, "start", "length")}
        rows = (dict(zip(numbers, row, strict=True)) for row in zip(*numbers.values(), strict=True))
        completions = [self._completion(name, **row) for row in rows]
        return TrainingGroup(self._prompts[start : start + length], completions, self._pairs.get(name, []))

    def _completion(self, group: str, *, start: int, length: int, **numbers: Any) -> TrainingCompletion:
        part = slice(start, start + length)
        arrays: dict[str, Any] = {name: self._columns[name][part] if name in self._columns else None for name in TOKENS}
        return TrainingCompletion(group_id=group, **arrays, **numbers)


def reopened(directory: Path) -> TrainingSnapshot:
    """The snapshot that `open_snapshot` laid out here. Its index is mapped as its tokens are, and ranks share both."""
    columns = [name for name in TOKENS if (directory / f"{name}.bin").exists()]
    groups: list[str] = pl.scan_ipc(directory / GROUPS, glob=False).collect()["group_id"].to_list()
    pairs = pl.scan_ipc(directory / PAIR_ROWS, glob=False).collect() if (directory / PAIR_ROWS).exists() else None
    return TrainingSnapshot(directory, columns, groups, pairs)


def index_name(column: str) -> str:
    """The file of one of `NUMBERS`."""
    return f"index-{column}.bin"


def _mapped(path: Path, kind: type[np.generic]) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.zeros(0, kind)
    return np.memmap(path, dtype=kind, mode="r")
