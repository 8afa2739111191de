"""Trees of tokens: what completions start with alike is computed once.

A row holds some completions as branches of trees, depth first. A branch is a prompt with its completion, less the last token,
from which nothing is predicted. It begins where it parts from the one before it, and goes on from there:

    a b c d | c e f        (a b c d x), (a b c e f y): 7 positions instead of 4 + 5
              parts at depth 3

Sorted by their tokens, branches that start alike lie next to each other, so how much each shares with the one before says
everything. A prompt with nothing but completions that start differently is a tree whose only fork is at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.train.snapshot import TrainingCompletion, TrainingGroup


@dataclass(frozen=True, eq=False)
class Branch:
    """A completion behind its prompt."""

    group: TrainingGroup
    completion: TrainingCompletion

    @cached_property
    def tokens(self) -> NDArray[np.int32]:
        """Of the prompt and the completion."""
        return np.concatenate([self.group.prompt, self.completion.tokens])

    @property
    def length(self) -> int:
        """Positions that are computed for it alone: the last token predicts nothing."""
        return len(self.group.prompt) + max(len(self.completion.tokens) - 1, 0)


@dataclass(frozen=True)
class PackedRow:
    """Branches of one or more trees, depth first."""

    branches: Sequence[Branch]
    shared: Sequence[int]
    """First positions that each branch has from the one before it. Fewer than they have in common, where a fork costs more than
    it spares. 0 for the first one."""

    @classmethod
    def of(cls, group: TrainingGroup, completions: Iterable[TrainingCompletion]) -> PackedRow:
        """Some completions of a group, with all that they share."""
        return trees(Branch(group, completion) for completion in completions)

    @property
    def completions(self) -> list[TrainingCompletion]:
        return [branch.completion for branch in self.branches]

    @property
    def groups(self) -> list[TrainingGroup]:
        """Those that completions are of, once each, by first appearance."""
        return list({id(branch.group): branch.group for branch in self.branches}.values())

    @cached_property
    def length(self) -> int:
        """Positions that are computed."""
        return self.separate - sum(self.shared)

    @property
    def separate(self) -> int:
        """Positions there would be if nothing were shared."""
        return sum(branch.length for branch in self.branches)

    def part(self, start: int, stop: int) -> PackedRow:
        """The branches from one to before another."""
        return PackedRow(self.branches[start:stop], [0, *self.shared[start + 1 : stop]][: stop - start])

    def cut(self, parts: int) -> list[PackedRow]:
        """In parts of as many branches each, or fewer in the last one. None if there are no branches."""
        size = -(-len(self.branches) // max(parts, 1)) or 1
        return [self.part(start, min(start + size, len(self.branches))) for start in range(0, len(self.branches), size)]


def trees(branches: Iterable[Branch], fork: int = 0, free: int = 0) -> PackedRow:
    """Put branches in order, and find what they share.

    Args:
        fork: positions that a fork has to spare to pay for itself.
        free: positions of a subtree in which forks cost nothing.
    """
    order = sorted(branches, key=lambda branch: branch.tokens.astype(">i4").tobytes())
    shared = [0] * len(order)
    for number in range(1, len(order)):
        before, here = order[number - 1], order[number]
        shared[number] = min(_alike(before.tokens, here.tokens), before.length, here.length)
    return PackedRow(order, _worthwhile(order, shared, fork, free) if fork and order else shared)


def _alike(one: NDArray[np.int32], other: NDArray[np.int32]) -> int:
    """First tokens that two sequences have in common."""
    both = min(len(one), len(other))
    differ = one[:both] != other[:both]
    first = int(differ.argmax()) if both else 0
    return first if both and differ[first] else both


@dataclass
class _Fork:
    """Branches that part at one depth."""

    depth: int
    below: int = 0
    """Positions below it, as far as they are known."""
    partings: list[int] = field(default_factory=list)
    """Those branches that part here from the one before them."""


def _worthwhile(branches: Sequence[Branch], shared: Sequence[int], fork: int, free: int) -> list[int]:
    """`shared` without the forks that spare too little: their branches part where those of the fork above do.

    A fork of n branches spares n - 1 times the positions since the fork above. Forks are closed from below, so what is left of
    one that does not pay counts for the one above.
    """
    kept = list(shared)
    path = [_Fork(0)]
    for number, parts in enumerate([*shared[1:], 0], start=1):
        depth, below = branches[number - 1].length, 0  # of what hangs on the lowest fork that is still open
        while path[-1].depth > parts:
            last = path.pop()
            last.below += below + depth - last.depth
            up = max(path[-1].depth, parts)
            length = last.depth - up
            if len(last.partings) * length >= fork or last.below + length <= free:
                depth, below = last.depth, last.below
                continue
            if path[-1].depth < up:
                path.append(_Fork(up))
            for one in last.partings:
                kept[one] = up
            path[-1].partings += last.partings
            path[-1].below += last.below + (len(last.partings) + 1) * length
            depth, below = up, 0
        if path[-1].depth < parts:
            path.append(_Fork(parts))
        path[-1].below += below + depth - parts
        path[-1].partings.append(number)
    return kept
