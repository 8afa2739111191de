"""Planning: which groups make an optimizer step, and how a step is cut into rows and micro-batches.

A row is some trees of tokens (`tree.py`): a prompt, and whatever else completions start with alike, is computed once.
Everything here follows from tokens, lengths and the seed, so it is the same on every machine.

Which groups make a step is drawn by lot; how their completions are packed within the step changes the result by rounding only.
So packing is free to look for the best fit, and never touches the shuffling.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.train.snapshot import TrainingGroup
from pipeline.train.tree import Branch, PackedRow, trees


@dataclass(frozen=True)
class CostModel:
    """Cost of a row of n tokens, in units of one token's matrix products: n + n^2 / attention_scale."""

    attention_scale: float = math.inf
    """Length at which attention costs as much as everything else, where every pair of positions of a row costs something.
    Infinite where only those that see each other do; a micro-batch is then one row, without padding."""
    shares: bool = True
    """Whether completions may share what they start alike with; else each is a row of its own."""
    mixes_lengths: bool = True
    """Whether rows of different lengths may lie in one batch; else each row is a batch."""
    fork: int = 0
    """Positions that a fork has to spare to pay for itself, but for forks in subtrees of `free_forks` positions."""
    free_forks: int = 0

    @property
    def pads(self) -> bool:
        """Whether rows lie side by side, filled up to the longest."""
        return math.isfinite(self.attention_scale)

    def row(self, length: int) -> float:
        return length + length * length / self.attention_scale


SEEN = CostModel()
"""Only what is seen costs."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How well some rows were packed."""

    passes: int = 0
    tokens: int = 0
    """Positions that are computed."""
    laid_out: int = 0
    """The same with padding."""
    unshared: int = 0
    """Positions there would be if every completion were computed alone."""

    def __add__(self, other: Packing) -> Packing:
        return Packing(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    def shares(self) -> dict[str, float]:
        """Share of positions that are padding, and of those that sharing spares."""
        both = {"padding": self.laid_out, "reuse": self.unshared}
        return {name: 1 - self.tokens / of if of else 0.0 for name, of in both.items()}


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


def rows_of(group: TrainingGroup, cost: CostModel) -> list[PackedRow]:
    """Cut a group's live completions into rows at the least cost, where rows are padded: sharing spares positions, long rows may
    pay for masked attention. None if all are dead."""
    whole = PackedRow.of(group, group.live)
    if not cost.shares:
        return whole.cut(len(whole.branches))
    cuts = [whole.cut(parts) for parts in range(1, len(whole.branches) + 1)]
    return min(cuts, key=lambda rows: sum(cost.row(row.length) for row in rows), default=[])


def deal(groups: Sequence[TrainingGroup], ranks: int, token_budget: int, cost: CostModel) -> list[list[list[PackedRow]]]:
    """Micro-batches of each rank for the live completions of groups: as many for every rank, and about as much work.

    Where there is not enough to do, some are empty.
    """
    if not cost.pads:
        branches = [Branch(group, completion) for group in groups for completion in group.live]
        parts = runs(trees(branches, cost.fork, cost.free_forks), ranks, token_budget)
        passes = -(-len(parts) // ranks)
        return [[[parts[i]] if i < len(parts) else [] for i in range(rank, passes * ranks, ranks)] for rank in range(ranks)]
    rows = [row for group in groups for row in rows_of(group, cost)]
    shares = [micro_batches(own, token_budget, cost) for own in spread(cut_for(rows, ranks, cost), ranks, cost)]
    count = max(len(share) for share in shares)
    return [_in_parts(share, count) for share in shares]


def runs(row: PackedRow, ranks: int, token_budget: int) -> list[PackedRow]:
    """Cut a row into parts within the budget, as few for each rank as can be, and then as even as can be.

    Branches that lie next to each other share most, so parts are runs of them; a run that starts at a branch computes again
    what that one shares with those before. Up to 5 % above the even share, cuts are made where least is shared. A branch that
    is longer than the budget goes alone.
    """
    if not row.branches:
        return []
    measure = _RunLengths(row)
    count = -(-measure.count(token_budget) // ranks) * ranks
    if count == 1:
        return [row]
    low, high = 1, token_budget
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if measure.count(middle) <= count else (middle + 1, high)
    cuts = measure.cuts(min(token_budget, low + low // 20), count)
    return [row.part(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(row.branches)], strict=True)]


class _RunLengths:
    """How long runs of a row's branches are."""

    def __init__(self, row: PackedRow) -> None:
        self._lengths: NDArray[np.int64] = np.array([branch.length for branch in row.branches])
        self._shared: NDArray[np.int64] = np.array([*row.shared, 0])
        self._until: NDArray[np.int64] = np.concatenate([[0], np.cumsum(self._lengths - self._shared[:-1])])

    def reach(self, starts: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
        """Where the longest run within a limit ends that starts at each of some branches."""
        found = np.searchsorted(self._until, limit - self._lengths[starts] + self._until[starts + 1], side="right") - 1
        return np.maximum(found, starts + 1)

    def count(self, limit: int) -> int:
        """Fewest runs within a limit."""
        place, count = 0, 0
        while place < len(self._lengths):
            place, count = int(self.reach(np.array(place), limit)), count + 1
        return count

    def cuts(self, limit: int, count: int) -> list[int]:
        """Where to cut for at most so many runs within a limit, such that cuts share little: of what each run can reach, the
        place that shares least (of several the last), if what is left can still be covered."""
        size = len(self._lengths)
        reach = self.reach(np.arange(size), limit)
        needed: NDArray[np.int64] = np.zeros(size + 1, np.int64)
        for place in range(size - 1, -1, -1):
            needed[place] = 1 + needed[reach[place]]
        cuts: list[int] = []
        place = 0
        while True:
            last = int(reach[place])
            places = np.arange(place + 1, last + 1)
            places = places[needed[places] < count - len(cuts)][::-1]
            place = int(places[self._shared[places].argmin()])
            if place == size:
                return cuts
            cuts.append(place)


def micro_batches(rows: Sequence[PackedRow], token_budget: int, cost: CostModel) -> list[list[PackedRow]]:
    """Cut rows that are longer than the budget, and put those of like length side by side, so that rows x longest stays within.

    A completion that is longer goes alone.
    """
    most = token_budget if cost.mixes_lengths else 0
    batches: list[list[PackedRow]] = []
    for row in sorted(
        (part for row in rows for part in _within(row, token_budget, cost)), key=lambda row: row.length, reverse=True
    ):
        if batches and batches[-1][0].length * (len(batches[-1]) + 1) <= most:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _within(row: PackedRow, token_budget: int, cost: CostModel) -> list[PackedRow]:
    """A row in as few parts as fit the budget."""
    fewest = 1 if cost.shares else len(row.branches)
    cuts = (row.cut(parts) for parts in range(fewest, len(row.branches) + 1))
    fits = (rows for rows in cuts if max(part.length for part in rows) <= token_budget)
    return next(fits, row.cut(len(row.branches)))


def spread(rows: Sequence[PackedRow], hands: int, cost: CostModel) -> list[list[PackedRow]]:
    """Give rows to so many hands: the costliest first, always to the one that has least."""
    dealt: list[list[PackedRow]] = [[] for _ in range(hands)]
    loads = [(0.0, hand) for hand in range(hands)]
    for row in sorted(rows, key=lambda row: row.length, reverse=True):
        load, hand = heapq.heappop(loads)
        dealt[hand].append(row)
        heapq.heappush(loads, (load + cost.row(row.length), hand))
    return dealt


def cut_for(rows: Sequence[PackedRow], hands: int, cost: CostModel) -> list[PackedRow]:
    """Rows of which each hand can be given about as much: the longest of the fullest hand is halved while that evens them out.

    Halving one row need not help at once, since another hand may be as full. So it goes on as long as some hand has more
    than 5 % above its share, and of all cuts the one that loses least is taken: the fullest hand decides, and every cut
    computes something once more.
    """

    def load(hand: Sequence[PackedRow]) -> float:
        return sum(cost.row(row.length) for row in hand)

    rows = best = list(rows)
    least = math.inf
    while hands > 1 and rows:
        dealt = spread(rows, hands, cost)
        loads = [load(hand) for hand in dealt]
        if max(loads) < 0.95 * least:
            best, least = rows, max(loads)
        longest = max(dealt[loads.index(max(loads))], key=lambda row: row.length * (len(row.branches) > 1))
        if max(loads) <= 1.05 * sum(loads) / hands or len(longest.branches) < 2:
            break
        rows = [part for row in rows for part in (row.cut(2) if row is longest else [row])]
    return best


def packing(batches: Sequence[Sequence[PackedRow]], cost: CostModel) -> Packing:
    """How well rows are packed into micro-batches."""
    rows = [row for batch in batches for row in batch]
    widths = (len(batch) * max(row.length for row in batch) for batch in batches if batch)
    tokens = sum(row.length for row in rows)
    return Packing(
        passes=len(batches),
        tokens=tokens,
        laid_out=sum(widths) if cost.pads else tokens,
        unshared=sum(row.separate for row in rows),
    )


def _in_parts(share: list[list[PackedRow]], count: int) -> list[list[PackedRow]]:
    """A share in exactly `count` micro-batches, of which it has no more yet: largest ones are cut in two, or some are empty."""
    share = list(share)
    while len(share) < count:
        most = max(range(len(share)), key=lambda part: len(share[part]), default=None)
        if most is None or len(share[most]) < 2:
            share += [[] for _ in range(count - len(share))]
            break
        part = share[most]
        share[most : most + 1] = [part[: len(part) // 2], part[len(part) // 2 :]]
    return share
