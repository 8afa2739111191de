"""A micro-batch as tensors: padded rows of trees for the model, flat completion tokens for the loss, and what links the two."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pipeline.algorithms.tokens import Tokens
from pipeline.train.following import Following
from pipeline.train.snapshot import TrainingCompletion
from pipeline.train.tree import PackedRow

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """Some whole completions of a batch, one after the other."""

    completions: slice
    tokens: slice
    opens: tuple[slice, ...]
    """Prefixes of theirs that no chunk before has, in runs of such as the same chunk is the last to have."""
    closes: tuple[slice, ...]
    """Those of all runs so far that no chunk after this one has."""


@dataclass(frozen=True)
class Cut:
    """A batch's completions in chunks, and the distinct prefixes that predict their tokens, in the order of chunks."""

    chunks: list[Chunk]
    places: Int[Tensor, " prefixes"]
    """Where in the flattened rows the hidden state of each lies."""
    temperature: Float[Tensor, " prefixes"]
    following: Following

    @property
    def longest(self) -> int:
        """Most prefixes that only one chunk has."""
        own = ([run.stop - run.start for run in chunk.opens if run in chunk.closes] for chunk in self.chunks)
        return max((length for lengths in own for length in lengths), default=0)


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
    credit: Float[Tensor, " tokens"] | None
    """Advantage of each token's turn; None where turns have none of their own."""
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
    token_weight: Float[Tensor, " tokens"] | None = None

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
            "credit",
            "token_weight",
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


_BY_TOKEN = ("targets", "temperature", "mask", "behavior", "reference", "proximal", "credit", "token_weight")
_BY_COMPLETION = ("advantage", "weight", "lengths", "policy_version", "group", "number")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows for the model, and the completion tokens in them."""

    input_ids: Int[Tensor, "rows length"]
    position_ids: Int[Tensor, "rows length"]
    end: Int[Tensor, "rows length"]
    """Where in its row the positions end that see a position: it and those after it up to there. Padding sees itself only."""
    filled: Int[Tensor, " rows"]
    """Positions of each row that are not padding."""
    predicted_from: Int[Tensor, " tokens"]
    """Where in the flattened rows the hidden state that predicts each completion token lies."""
    flat: Flat

    def in_line(self, block: int = 1) -> Batch:
        """The same rows one after the other in a single one, without their padding, filled up to whole blocks at its end."""
        rows, length = self.end.shape
        if rows == 1 and int(self.filled) == length and length % block == 0:
            return self
        there = (torch.arange(length, device=self.end.device) < self.filled[:, None]).flatten()
        start = self.filled.cumsum(0) - self.filled
        count = int(self.filled.sum())
        fill = -count % block

        def line(values: Tensor) -> Tensor:
            return torch.nn.functional.pad(values.flatten()[there], (0, fill))[None]

        end = line(self.end + start[:, None])
        end[0, count:] = torch.arange(count, count + fill, device=end.device) + 1
        return replace(
            self,
            input_ids=line(self.input_ids),
            position_ids=line(self.position_ids),
            end=end,
            filled=self.filled.new_tensor([count]),
            predicted_from=(there.cumsum(0) - 1)[self.predicted_from],
        )

    def cut(self, most: int) -> Cut:
        """Cut between completions, so that no chunk has more prefixes that none before it has, but for chunks of one completion.

        A prefix is projected once for each temperature at which something follows it, whatever follows.
        """
        flat, device = self.flat, self.predicted_from.device
        targets, heat, sequence = (values.numpy(force=True) for values in (flat.targets, flat.temperature, flat.sequence))
        kinds, kind = np.unique(heat, return_inverse=True)
        distinct, prefix = np.unique(self.predicted_from.numpy(force=True) * len(kinds) + kind, return_inverse=True)
        first, last = np.zeros((2, len(distinct)), np.int64)
        first[prefix[::-1]], last[prefix] = sequence[::-1], sequence
        chunk_of = _chunks(np.bincount(first, minlength=len(flat.completions)), most)
        first, last = chunk_of[first], chunk_of[last]
        order = np.lexsort((last, first))
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        prefix, first, last = place[prefix], first[order], last[order]
        entries = int(targets.max(initial=0)) + 1
        edges, edge = np.unique(prefix * entries + targets, return_inverse=True)
        row, target = np.divmod(edges, entries)
        following = Following(
            targets=torch.from_numpy(target).to(device),
            row=torch.from_numpy(row).to(device),
            starts=np.searchsorted(row, np.arange(len(distinct) + 1)),
            edge=torch.from_numpy(edge).to(device),
        )
        places, kind = np.divmod(distinct[order], len(kinds)) if len(kinds) else (distinct, distinct)
        return Cut(
            list(_with_runs(chunk_of, [len(one.tokens) for one in flat.completions], first, last)),
            torch.from_numpy(places).to(device),
            torch.from_numpy(kinds[kind]).to(device),
            following,
        )


def _chunks(fresh: Places, most: int) -> Places:
    """The chunk of each completion, from how many prefixes of it none before it has."""
    found = np.zeros(len(fresh), np.int64)
    chunk, held = 0, 0
    for number, count in enumerate(fresh.tolist()):
        if count and held and held + count > most:
            chunk, held = chunk + 1, 0
        found[number], held = chunk, held + count
    return found


def _with_runs(chunk_of: Places, lengths: list[int], first: Places, last: Places) -> Iterator[Chunk]:
    """The chunks.

    Args:
        first: the first chunk that has each prefix; they are sorted by it and then by `last`.
    """
    bounds = [0, *(np.flatnonzero(np.diff(first) | np.diff(last)) + 1).tolist(), len(first)]
    runs = [slice(start, stop) for start, stop in itertools.pairwise(bounds) if start < stop]
    tokens = [0, *np.cumsum(lengths).tolist()]
    for number in range(int(chunk_of.max(initial=-1)) + 1):
        start, stop = np.searchsorted(chunk_of, (number, number + 1)).tolist()
        opens, closes = (tuple(run for run in runs if of[run.start] == number) for of in (first, last))
        yield Chunk(slice(start, stop), slice(tokens[start], tokens[stop]), opens, closes)


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
    for name in ("behavior", "reference", "proximal", "credit", "token_weight"):
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
    groups = {group.completions[0].group_id: group for row in rows for group in row.groups}
    named = [((name, chosen), (name, rejected), p) for name, group in groups.items() for chosen, rejected, p in group.pairs]
    return [(number[a], number[b], p) for a, b, p in named if a in number and b in number]


def collate(rows: list[PackedRow], device: torch.device) -> Batch:
    """Lay rows out side by side, padded on the right.

    A position's number is its depth. A padding position sees itself only, so that no attention row is empty; nothing reads it.
    """
    length = max(row.length for row in rows)
    ids, positions = np.zeros((2, len(rows), length), np.int64)
    end = np.tile(np.arange(1, length + 1), (len(rows), 1))
    predicted_from = [
        number * length + places
        for number, row in enumerate(rows)
        for places in _lay_out(row, ids[number], positions[number], end[number])
    ]
    arrays = {
        "input_ids": ids,
        "position_ids": positions,
        "end": end,
        "filled": np.array([row.length for row in rows]),
        "predicted_from": np.concatenate(predicted_from),
    }
    tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return Batch(flat=flatten(rows, device), **tensors)


def _lay_out(row: PackedRow, ids: Places, positions: Places, end: Places) -> Iterator[Places]:
    """Write a row's positions. Yields from where each token of each completion is predicted."""
    path = np.zeros(0, np.int64)
    start = 0
    for branch, shared in zip(row.branches, row.shared, strict=True):
        here = slice(start, start + branch.length - shared)
        end[path[shared:]] = start
        ids[here] = branch.tokens[shared : branch.length]
        positions[here] = np.arange(shared, branch.length)
        path = np.concatenate([path[:shared], np.arange(here.start, here.stop)])
        first = len(branch.group.prompt) - 1
        yield path[first : first + len(branch.completion.tokens)]
        start = here.stop
    end[path] = start
