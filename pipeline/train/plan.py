"""Planning: which groups make an optimizer step, and how a step is cut into rows and micro-batches.

A row is [prompt, completion, completion, ...]: the prompt is computed once, and every completion sees the prompt and
itself. Everything here follows from lengths and the seed, so it is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.train.snapshot import Completion, Group


@dataclass(frozen=True)
class Row:
    """A prompt with some completions of its group."""

    group: Group
    completions: list[Completion]

    @property
    def length(self) -> int:
        return len(self.group.prompt) + sum(len(completion.tokens) for completion in self.completions)


@dataclass(frozen=True)
class CostModel:
    """Cost of a row of n tokens, in units of one token's matrix products: n + n^2 / attention_scale."""

    attention_scale: float
    """Row length at which attention costs as much as everything else."""

    def row(self, length: int) -> float:
        return length + length * length / self.attention_scale


def steps_of_epoch(groups: Sequence[str], sizes: Sequence[int], batch_completions: int, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle the groups and cut them into optimizer steps of about `batch_completions` completions, none much smaller.

    The order follows from the groups' ids, so it does not depend on how they lie in files.

    Args:
        groups: id of each group.
        sizes: completions of each group.
    """
    order = sorted(range(len(groups)), key=lambda group: _rank(seed, epoch, groups[group]))
    total = sum(sizes)
    count = max(1, min(len(order), round(total / batch_completions)))
    steps: list[list[int]] = [[] for _ in range(count)]
    seen = 0
    for group in order:
        steps[min(count - 1, seen * count // total)].append(group)
        seen += sizes[group]
    return [step for step in steps if step]


def _rank(seed: int, epoch: int, group: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{epoch}\0{group}".encode(), digest_size=16).digest()


def rows_of(group: Group, cost: CostModel) -> list[Row]:
    """Cut a group into rows at the least cost: sharing the prompt saves its tokens, long rows pay for masked attention."""
    completions = group.completions
    best: tuple[float, list[Row]] | None = None
    for parts in range(1, len(completions) + 1):
        per_row = -(-len(completions) // parts)
        rows = [Row(group, completions[i : i + per_row]) for i in range(0, len(completions), per_row)]
        total = sum(cost.row(row.length) for row in rows)
        if best is None or total < best[0]:
            best = total, rows
    assert best is not None
    return best[1]


def micro_batches(rows: list[Row], token_budget: int) -> list[list[Row]]:
    """Put rows of like length together, so that rows x longest stays within the budget (a longer row goes alone)."""
    batches: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        if batches and batches[-1][0].length * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
