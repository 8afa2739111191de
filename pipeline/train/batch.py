"""A micro-batch as tensors: padded rows with a block mask for the model, flat completion tokens for the loss."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.algorithms.tokens import Tokens
from pipeline.train.plan import PackedRow
from pipeline.train.snapshot import TrainingCompletion


@dataclass(frozen=True)
class Chunk:
    """Some whole completions of a batch, one after the other."""

    completions: slice
    tokens: slice


@dataclass(frozen=True, kw_only=True)
class Flat:
    """Completion tokens of some rows, one after the other, with what is known of each completion."""

    targets: Int[Tensor, " tokens"]
    temperature: Float[Tensor, " tokens"]
    sequence: Int[Tensor, " tokens"]
    mask: Bool[Tensor, " tokens"]
    behavior: Float[Tensor, " tokens"] | None
    reference: Float[Tensor, " tokens"] | None
    proximal: Float[Tensor, " tokens"] | None
    advantage: Float[Tensor, " sequences"]
    weight: Float[Tensor, " sequences"]
    lengths: Float[Tensor, " sequences"]
    policy_version: Float[Tensor, " sequences"]
    group: Int[Tensor, " sequences"]
    """Number of each completion's group, by first appearance."""
    number: Int[Tensor, " sequences"]
    """A number below 2^32 of each completion, from its group and sample."""
    pairs: Int[Tensor, "pairs 2"] | None
    """Pairs of completions that are both here."""
    preference: Float[Tensor, " pairs"] | None
    completions: list[TrainingCompletion]

    def tokens(self, logprobs: Float[Tensor, " tokens"], entropy: Float[Tensor, " tokens"], version: int) -> Tokens:
        """What a loss sees.

        Args:
            version: the policy version that is being made.
        """
        names = (
            "sequence",
            "mask",
            "behavior",
            "reference",
            "proximal",
            "advantage",
            "weight",
            "lengths",
            "group",
            "number",
            "pairs",
            "preference",
        )
        known: dict[str, Any] = {name: getattr(self, name) for name in names}
        return Tokens(logprobs=logprobs, entropy=entropy, age=version - self.policy_version, **known)

    def chunks(self, most: int) -> list[Chunk]:
        """Cuts between completions, so that no chunk has more tokens, but for chunks of one completion."""
        return list(_chunks([len(completion.tokens) for completion in self.completions], most))

    def of(self, chunk: Chunk) -> Flat:
        """What is known of a chunk; of the pairs, those whose two ends are there."""
        if chunk.completions == slice(0, len(self.completions)):
            return self
        first, last = chunk.completions.start, chunk.completions.stop
        pairs, preference = self.pairs, self.preference
        if pairs is not None and preference is not None:
            inside = ((pairs >= first) & (pairs < last)).all(1)
            pairs, preference = pairs[inside] - first, preference[inside]
        by_token = {name: values[chunk.tokens] for name in _BY_TOKEN if (values := getattr(self, name)) is not None}
        return replace(
            self,
            **by_token | {"sequence": self.sequence[chunk.tokens] - first},
            **{name: getattr(self, name)[chunk.completions] for name in _BY_COMPLETION},
            pairs=pairs,
            preference=preference,
            completions=self.completions[chunk.completions],
        )


_BY_TOKEN = ("targets", "temperature", "mask", "behavior", "reference", "proximal")
_BY_COMPLETION = ("advantage", "weight", "lengths", "policy_version", "group", "number")


def _chunks(lengths: list[int], most: int) -> Iterator[Chunk]:
    first = start = stop = 0
    for number, length in enumerate(lengths):
        if number > first and stop + length - start > most:
            yield Chunk(slice(first, number), slice(start, stop))
            first, start = number, stop
        stop += length
    if lengths:
        yield Chunk(slice(first, len(lengths)), slice(start, stop))


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows for the model, and the completion tokens in them."""

    input_ids: Int[Tensor, "rows length"]
    position_ids: Int[Tensor, "rows length"]
    part: Int[Tensor, "rows length"]
    """Which part of its row a position is in: every prompt and every completion has a number of its own, padding has -1."""
    prompt: Int[Tensor, "rows length"]
    """Number of the prompt that a position may see beside its own part."""
    predicted_from: Int[Tensor, " tokens"]
    """Where in the flattened rows the hidden state that predicts each completion token lies."""
    flat: Flat

    def in_line(self, block: int = 1) -> Batch:
        """The same rows one after the other in a single one, without their padding, filled up to whole blocks at its end."""
        there = self.part.flatten() >= 0
        number = torch.arange(len(self.part), device=self.part.device)[:, None]
        parts_per_row = int(self.part.max()) + 1
        fill = -int(there.sum()) % block

        def line(values: Tensor, empty: int) -> Tensor:
            return torch.nn.functional.pad(values.flatten()[there], (0, fill), value=empty)[None]

        return replace(
            self,
            input_ids=line(self.input_ids, 0),
            position_ids=line(self.position_ids, 0),
            part=line(self.part + number * parts_per_row, -1),
            prompt=line(self.prompt + number * parts_per_row, -1),
            predicted_from=(there.cumsum(0) - 1)[self.predicted_from],
        )


def flatten(rows: list[PackedRow], device: torch.device) -> Flat:
    """The completion tokens of rows, in the order of the rows."""
    completions = [completion for row in rows for completion in row.completions]
    groups = {name: number for number, name in enumerate(dict.fromkeys(c.group_id for c in completions))}
    lengths = [len(c.tokens) for c in completions]
    arrays: dict[str, Any] = {
        "targets": np.concatenate([c.tokens for c in completions]).astype(np.int64),
        "temperature": np.repeat(np.array([c.temperature for c in completions], np.float32), lengths),
        "sequence": np.repeat(np.arange(len(completions)), lengths),
        "mask": np.concatenate([c.mask for c in completions]),
        "advantage": np.array([c.advantage for c in completions], np.float32),
        "weight": np.array([c.weight for c in completions], np.float32),
        "lengths": np.array([c.mask.sum() for c in completions], np.float32),
        "policy_version": np.array([c.policy_version for c in completions], np.float32),
        "group": np.array([groups[c.group_id] for c in completions], np.int64),
        "number": np.array([zlib.crc32(f"{c.group_id} {c.sample_index}".encode()) for c in completions], np.int64),
    }
    for name in ("behavior", "reference", "proximal"):
        present = [values for c in completions if (values := getattr(c, name)) is not None]
        arrays[name] = np.concatenate(present) if present else None
    pairs = _pairs(rows, completions)
    arrays["pairs"] = np.array([pair[:2] for pair in pairs], np.int64) if pairs else None
    arrays["preference"] = np.array([pair[2] for pair in pairs], np.float32) if pairs else None
    tensors = {name: None if array is None else torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return Flat(completions=completions, **tensors)  # type: ignore[arg-type]


def _pairs(rows: list[PackedRow], completions: list[TrainingCompletion]) -> list[tuple[int, int, float]]:
    """Pairs of the rows' groups, by the completions' numbers; those whose two ends are not both here are left out."""
    number = {(c.group_id, c.sample_index): place for place, c in enumerate(completions)}
    groups = {row.completions[0].group_id: row.group for row in rows}
    named = [((name, chosen), (name, rejected), p) for name, group in groups.items() for chosen, rejected, p in group.pairs]
    return [(number[a], number[b], p) for a, b, p in named if a in number and b in number]


def collate(rows: list[PackedRow], device: torch.device) -> Batch:
    """Lay rows out side by side, padded on the right.

    A completion's positions go on from the end of its prompt. A padding position sees itself only, so that no attention
    row is empty; nothing reads it.
    """
    length = max(row.length for row in rows)
    ids = np.zeros((len(rows), length), np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    part = np.full((len(rows), length), -1, np.int64)
    predicted_from = []
    for number, row in enumerate(rows):
        start = prompt = len(row.group.prompt)
        ids[number, :prompt] = row.group.prompt
        positions[number, :prompt] = np.arange(prompt)
        part[number, :prompt] = 0
        for index, completion in enumerate(row.completions, start=1):
            size = len(completion.tokens)
            here = slice(start, start + size)
            ids[number, here] = completion.tokens
            positions[number, here] = prompt + np.arange(size)
            part[number, here] = index
            source = np.arange(start - 1, start + size - 1)
            source[:1] = prompt - 1
            predicted_from.append(number * length + source)
            start += size
    arrays = {"input_ids": ids, "position_ids": positions, "part": part, "predicted_from": np.concatenate(predicted_from)}
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return Batch(prompt=torch.zeros_like(tensors["part"]), flat=flatten(rows, device), **tensors)
