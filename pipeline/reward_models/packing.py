"""Texts of pairs in rows of trees, as policies are trained: what texts start with alike is computed once, without padding.

A text is a branch: a prompt behind which one token comes that is never computed, and which the text's last position predicts.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.tree import Branch, PackedRow, trees

Tokens = tuple[int, ...]
"""Of a whole text."""
TokenPair = tuple[Tokens, Tokens]
"""The chosen text, and the rejected one."""


@dataclass(frozen=True)
class Texts:
    """Distinct texts of some pairs, in one row."""

    row: PackedRow
    numbers: dict[Tokens, int]
    """Place of each text among the row's branches."""

    @classmethod
    def of(cls, texts: Sequence[Tokens], fork: int = 0, free: int = 0) -> Texts:
        """
        Args:
            texts: none of them empty; any may be there twice.
            fork: positions that a fork has to spare to pay for itself.
            free: positions of a subtree in which forks cost nothing.
        """
        distinct = list(dict.fromkeys(texts))
        row = trees((_branch(text, number) for number, text in enumerate(distinct)), fork, free)
        return cls(row, {distinct[branch.completion.sample_index]: place for place, branch in enumerate(row.branches)})


def _branch(text: Tokens, number: int) -> Branch:
    behind = TrainingCompletion(str(number), number, np.zeros(1, np.int32), None, np.ones(1, np.bool_))
    return Branch(TrainingGroup(np.array(text, np.int32), [behind]), behind)


def in_passes(pairs: Sequence[TokenPair], most: int) -> Iterator[list[int]]:
    """Numbers of pairs in passes of at most so many positions, what is alike counted once; a pair that has more goes alone.

    Pairs whose texts start alike lie next to each other.

    >>> list(in_passes([((1, 2, 3), (1, 2, 4)), ((7, 7), (7, 8)), ((1, 2, 3), (1, 5))], most=5))
    [[0, 2], [1]]
    """
    part: list[int] = []
    held: list[Tokens] = []
    size = 0
    for number in sorted(range(len(pairs)), key=lambda number: pairs[number]):
        grown = _hold(held, pairs[number])
        if part and size + grown > most:
            yield part
            part, held, size = [], [], 0
            grown = _hold(held, pairs[number])
        part.append(number)
        size += grown
    if part:
        yield part


def _hold(held: list[Tokens], pair: TokenPair) -> int:
    """Add a pair's texts to sorted ones. Returns how many positions they have that none before them has."""
    grown = 0
    for text in pair:
        place = bisect_left(held, text)
        if held[place : place + 1] == [text]:
            continue
        grown += len(text) - max((_alike(text, other) for other in held[max(place - 1, 0) : place + 1]), default=0)
        insort(held, text)
    return grown


def _alike(one: Tokens, other: Tokens) -> int:
    """First tokens that two texts have in common."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def filled_up(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of items in passes of at most so many tokens, each filled up to the longest; one that is longer goes alone.

    >>> list(filled_up([3, 2, 4, 9], most=8))
    [[1, 0], [2], [3]]
    """
    part: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if part and lengths[number] * (len(part) + 1) > most:
            yield part
            part = []
        part.append(number)
    if part:
        yield part
