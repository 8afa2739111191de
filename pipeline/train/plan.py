"""Planning: which groups make an optimizer step, and how a step is cut into rows and micro-batches.

A row is [prompt, completion, completion, ...]: the prompt is computed once, and every completion sees the prompt and
itself. Everything here follows from lengths and the seed, so it is the same on every machine.

Which groups make a step is drawn by lot; how their rows are packed within the step changes the result by rounding only. So
packing is free to look for the best fit, and never touches the shuffling.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.train.snapshot import TrainingCompletion, TrainingGroup


@dataclass(frozen=True)
class PackedRow:
    """A prompt with some completions of its group."""

    group: TrainingGroup
    completions: list[TrainingCompletion]

    @property
    def length(self) -> int:
        return len(self.group.prompt) + sum(len(completion.tokens) for completion in self.completions)


@dataclass(frozen=True)
class CostModel:
    """Cost of a row of n tokens, in units of one token's matrix products: n + n^2 / attention_scale."""

    attention_scale: float = math.inf
    """Length at which attention costs as much as everything else, where every pair of positions of a row costs something.
    Infinite where only those that see each other do; rows are then laid out in a line, without padding."""
    shares: bool = True
    """Whether completions may share their prompt; else each is a row of its own."""
    mixes_lengths: bool = True
    """Whether rows of different lengths may lie in one batch; else each row is a batch."""

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
    """Of prompts and completions, as often as they are computed."""
    laid_out: int = 0
    """Positions, padding included."""
    unshared: int = 0
    """Tokens there would be if every completion had its prompt to itself."""

    def __add__(self, other: Packing) -> Packing:
        return Packing(**{name: getattr(self, name) + getattr(other, name) for name in vars(self)})

    def shares(self) -> dict[str, float]:
        """Share of positions that are padding, and of tokens that sharing prompts spares."""
        both = {"padding": self.laid_out, "prompt_reuse": self.unshared}
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
    """Cut a group's live completions into rows at the least cost: sharing the prompt saves its tokens, long rows may pay for
    masked attention. None if all are dead."""
    whole = PackedRow(group, group.live)
    if not whole.completions:
        return []
    if not cost.shares:
        return _cut(whole, len(whole.completions))
    if not cost.pads:
        return [whole]
    cuts = [_cut(whole, parts) for parts in range(1, len(whole.completions) + 1)]
    return min(cuts, key=lambda rows: sum(cost.row(row.length) for row in rows))


def _cut(row: PackedRow, parts: int) -> list[PackedRow]:
    """A row in parts of as many completions each, or one less."""
    per_row = -(-len(row.completions) // parts)
    return [PackedRow(row.group, row.completions[i : i + per_row]) for i in range(0, len(row.completions), per_row)]


def micro_batches(rows: Sequence[PackedRow], token_budget: int, cost: CostModel = SEEN) -> list[list[PackedRow]]:
    """Cut rows that are longer than the budget, and put them together within it. A completion that is longer goes alone."""
    rows = sorted((part for row in rows for part in _within(row, token_budget, cost)), key=lambda row: row.length, reverse=True)
    if not cost.mixes_lengths:
        return [[row] for row in rows]
    return _side_by_side(rows, token_budget) if cost.pads else _in_line(rows, token_budget)


def _within(row: PackedRow, token_budget: int, cost: CostModel) -> list[PackedRow]:
    """A row in as few parts as fit the budget."""
    fewest = 1 if cost.shares else len(row.completions)
    cuts = (_cut(row, parts) for parts in range(fewest, len(row.completions) + 1))
    fits = (rows for rows in cuts if max(part.length for part in rows) <= token_budget)
    return next(fits, [PackedRow(row.group, [completion]) for completion in row.completions])


def _side_by_side(rows: list[PackedRow], token_budget: int) -> list[list[PackedRow]]:
    """Rows of like length together, so that rows x longest stays within the budget."""
    batches: list[list[PackedRow]] = []
    for row in rows:
        if batches and batches[-1][0].length * (len(batches[-1]) + 1) <= token_budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _in_line(rows: list[PackedRow], token_budget: int) -> list[list[PackedRow]]:
    """As few batches as first-fit needs for rows in falling order, as evenly filled as they can be."""
    batches: list[list[PackedRow]] = []
    room: list[int] = []
    for row in rows:
        place = next((index for index, free in enumerate(room) if row.length <= free), len(room))
        if place == len(room):
            batches.append([])
            room.append(token_budget)
        batches[place].append(row)
        room[place] -= row.length
    even = spread(rows, len(batches), SEEN)
    fits = all(len(batch) == 1 or sum(row.length for row in batch) <= token_budget for batch in even)
    return even if fits else batches


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
    computes a prompt once more.
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
        longest = max(dealt[loads.index(max(loads))], key=lambda row: row.length * (len(row.completions) > 1))
        if max(loads) <= 1.05 * sum(loads) / hands or len(longest.completions) < 2:
            break
        rows = [part for row in rows for part in (_cut(row, 2) if row is longest else [row])]
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
        unshared=sum(len(row.group.prompt) * (len(row.completions) - 1) + row.length for row in rows),
    )
