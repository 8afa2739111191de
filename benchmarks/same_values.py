"""Two artifacts side by side: which one of another store is the same work, why their ids differ, and what their files hold."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

TOLERANCE = 1e-6
"""Of figures, as a share of the larger of 1 and the figure."""
LOGPROB_TOLERANCE = 1e-5
"""Nats; of what a policy says that was trained with other rounding: 1e-6 in figures of training is more in single tokens."""
ID_IN_TEXT = r"@[0-9a-f]{8}\b|\b[0-9a-f]{16,64}\b"
"""What names and rows hold of ids: `arith-train-02269@4f37dbfe`, a policy's id."""


@dataclass(frozen=True)
class Made:
    """An artifact of one side."""

    path: Path
    id: str
    content: dict[str, Any]

    @staticmethod
    def at(path: Path) -> Made:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        return Made(path, manifest["id"], manifest["content"])

    @property
    def kind(self) -> str:
        return str(self.content["kind"])

    @property
    def stage(self) -> str:
        return str(self.content["stage"])

    @property
    def parents(self) -> dict[str, str]:
        return {parent["role"]: parent["id"] for parent in self.content["parents"]}

    def recipe(self) -> dict[str, Any]:
        """The recipe's settings by their path, the stage's version among them, without ids of other artifacts."""
        return dict(_flat(self.content["recipe"])) | {"stage": self.stage}


@dataclass
class Pair:
    """The same work on both sides, if it is there."""

    base: Made | None
    head: Made | None
    parents: list[Pair] = field(default_factory=list)
    values: Values | None = None

    @property
    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Settings of the recipe that differ: what each side has; None where it has none."""
        if self.base is None or self.head is None:
            return {}
        one, other = self.base.recipe(), self.head.recipe()
        return {name: (one.get(name), other.get(name)) for name in one | other if one.get(name) != other.get(name)}

    @property
    def excused(self) -> bool:
        """Whether other values follow from a parent whose recipe changed, and with it its values."""
        return any(bool(one.changed and one.values and one.values.worst > TOLERANCE) or one.excused for one in self.parents)

    @property
    def rounded(self) -> bool:
        """Whether it was made with a policy whose weights differ by rounding."""
        return any(
            one.rounded or bool(one.values and 0 < one.values.weights and one.values.worst <= TOLERANCE) for one in self.parents
        )


@dataclass
class Values:
    """How far what two artifacts hold is apart."""

    worst: float
    """Largest difference of a figure, see TOLERANCE; infinite for text, numbers of rows and files."""
    where: str
    weights: float = 0.0
    """Largest difference of a trained weight."""


def pairs_of(base: list[Made], head: list[Made], known: dict[str, Pair] | None = None) -> list[Pair]:
    """Pair what a step made on both sides, parents first: same kind and stage, most parents paired, fewest settings changed.

    Args:
        base: in the order in which they were made, so that parents come before what is made of them.
        known: pairs of earlier steps, by the ids of both sides; those that are found here are added.
    """
    known = {} if known is None else known
    left, pairs = list(head), []
    for one in base:
        like = [other for other in left if (other.kind, _stage(other)) == (one.kind, _stage(one))]
        other = min(like, key=lambda made: _distance(one, made, known), default=None)
        if other is not None:
            left.remove(other)
        pair = Pair(one, other, [known[id] for id in one.parents.values() if id in known])
        pairs.append(pair)
        known.update({made.id: pair for made in (one, other) if made is not None})
    return pairs + [Pair(None, other) for other in left]


def verdict(pair: Pair) -> dict[str, Any]:
    """Why the ids differ, what the files hold, and whether that is fine."""
    one, other = pair.base, pair.head
    if one is None or other is None:
        return {"why": f"only in {'base' if one else 'head'}", "values": "", "fine": False}
    if one.id == other.id:
        return {"why": "same", "values": "same", "fine": True}
    pair.values = values = compared(one, other)
    near = values.worst <= (LOGPROB_TOLERANCE if one.kind in ("rollouts", "scores") and pair.rounded else TOLERANCE)
    if pair.changed:
        settings = "; ".join(f"{name} {_short(a)} -> {_short(b)}" for name, (a, b) in pair.changed.items())
        return {"why": f"recipe: {settings}", "values": _words(values), "fine": True}
    why = "parents" if one.content["key"] != other.content["key"] else "bytes: " + ", ".join(_files(one, other))
    return {"why": why, "values": _words(values), "fine": near or pair.excused}


def compared(one: Made, other: Made) -> Values:
    """What the files of two artifacts hold, apart from ids."""
    names = {file["path"] for file in one.content["files"]}
    if odd := names ^ {file["path"] for file in other.content["files"]}:
        return Values(float("inf"), f"{sorted(odd)[0]} on one side")
    found = Values(0.0, "")
    for name in sorted(set(_files(one, other))):
        first, second = one.path / name, other.path / name
        if name.endswith(".parquet"):
            worst, where = _frames_apart(_plain(first), _plain(second))
        elif name.endswith(".safetensors"):
            found.weights = max(found.weights, _weights_apart(first, second))
            continue
        else:
            worst, where = float("inf"), "bytes"
        if worst > found.worst:
            found.worst, found.where = worst, f"{name} {where}"
    return found


def _frames_apart(one: pl.DataFrame, other: pl.DataFrame) -> tuple[float, str]:
    """Largest difference of a figure, and its column."""
    if odd := set(one.columns) ^ set(other.columns):
        return float("inf"), f"{sorted(odd)[0]} on one side"
    if len(one) != len(other):
        return float("inf"), f"{len(one)} and {len(other)} rows"
    apart = ((_columns_apart(one[name], other[name]), name) for name in one.columns)
    return max(apart, default=(0.0, ""))


def _columns_apart(one: pl.Series, other: pl.Series) -> float:
    if one.equals(other, null_equal=True):
        return 0.0
    if isinstance(one.dtype, pl.List):
        if not one.list.len().equals(other.list.len(), null_equal=True):
            return float("inf")
        return _columns_apart(one.explode(), other.explode())
    if not one.dtype.is_float() or one.is_null().ne(other.is_null()).any():
        return float("inf")
    apart = ((one - other).abs() / one.abs().clip(1.0)).max()
    return float(apart) if isinstance(apart, float) else 0.0


def _plain(path: Path) -> pl.DataFrame:
    """A table without what holds ids."""
    frame = pl.read_parquet(path, glob=False)
    return frame.with_columns(pl.col(pl.String).str.replace_all(ID_IN_TEXT, ""))


def _weights_apart(one: Path, other: Path) -> float:
    from safetensors.torch import load_file

    first, second = load_file(one), load_file(other)
    if first.keys() != second.keys():
        return float("inf")
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def _files(one: Made, other: Made) -> list[str]:
    """Names of files whose bytes differ."""
    hashes = {file["path"]: file["sha256"] for file in other.content["files"]}
    return [file["path"] for file in one.content["files"] if hashes.get(file["path"]) != file["sha256"]]


def _distance(one: Made, other: Made, known: dict[str, Pair]) -> tuple[int, int]:
    strangers = sum(
        known.get(id) is None or known.get(id) is not known.get(other.parents.get(role, "")) for role, id in one.parents.items()
    )
    return strangers, len(Pair(one, other).changed)


def _stage(made: Made) -> str:
    return made.stage.partition("/")[0]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and any(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _flat(inner, f"{path}.{number}")
    else:
        yield path, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _words(values: Values) -> str:
    weights = f", weights within {_up(values.weights)}" if values.weights else ""
    if values.worst == 0:
        return f"equal{weights}"
    return f"within {_up(values.worst)} ({values.where}){weights}" if values.worst <= LOGPROB_TOLERANCE else (
        f"differ by {values.worst:.2g} ({values.where}){weights}"
    )  # fmt: skip


def _up(value: float) -> str:
    """One digit, rounded up: 1.2e-06 is within 2e-06."""
    power = 10.0 ** math.floor(math.log10(value))
    return f"{math.ceil(round(value / power, 6)) * power:.0e}"
