"""How far apart the weights of two checkpoints are, tensor by tensor, so that neither is held whole."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.models import check_weights_file
from pipeline.store import Artifact

BLOCK = 4 << 20
TYPES: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


@dataclass(frozen=True)
class WeightDifference:
    """What differs between two sets of weights."""

    tensors: int
    """That both have, with one shape and a type of number that is read here."""
    changed: int
    others: tuple[str, ...]
    """Tensors that only one has, or that have another shape or type."""
    largest: float
    relative: float
    """||b - a|| / ||a|| over all tensors."""


def weight_difference(a: Artifact, b: Artifact) -> WeightDifference | None:
    """None if one of them has no weights."""
    one, other = (dict(_tensors(artifact)) for artifact in (a, b))
    if not one or not other:
        return None
    shared = [name for name in one if name in other and one[name].comparable(other[name])]
    changed, largest, moved, length = 0, 0.0, 0.0, 0.0
    for name in shared:
        far = 0.0
        for before, after in zip(one[name].blocks(), other[name].blocks(), strict=True):
            gap = after - before
            far = max(far, float(np.abs(gap).max()))
            moved += float((gap * gap).sum())
            length += float((before * before).sum())
        changed += far != 0.0
        largest = max(largest, far)
    others = sorted((set(one) | set(other)) - set(shared))
    return WeightDifference(len(shared), changed, tuple(others), largest, math.sqrt(moved / length) if length else 0.0)


@dataclass(frozen=True)
class _Tensor:
    path: Path
    kind: str
    shape: tuple[int, ...]
    start: int
    """Byte of the file."""

    def comparable(self, other: _Tensor) -> bool:
        return (self.kind, self.shape) == (other.kind, other.shape) and (self.kind in TYPES or self.kind == "BF16")

    def blocks(self) -> Iterator[NDArray[np.float64]]:
        """Its values, some millions at a time."""
        count = math.prod(self.shape)
        if not count:
            return
        stored = np.memmap(self.path, TYPES.get(self.kind, np.uint16), "r", self.start, (count,))
        for start in range(0, count, BLOCK):
            part = stored[start : start + BLOCK]
            if self.kind == "BF16":  # the upper half of a float32
                part = (part.astype(np.uint32) << 16).view(np.float32)
            yield part.astype(np.float64)


def _tensors(artifact: Artifact) -> Iterator[tuple[str, _Tensor]]:
    for file in artifact.files:
        if not file.path.endswith(".safetensors"):
            continue
        path = artifact.place.have(file)
        check_weights_file(path)
        with path.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
        for name, entry in header.items():
            if name != "__metadata__":
                yield name, _Tensor(path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0])
