"""What a correction changes, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher


def changed(own: Sequence[int], revised: Sequence[int]) -> tuple[list[bool], list[bool]]:
    """Which tokens of each text the other has not, by a longest-match alignment.

    >>> changed([5, 6, 7, 8], [5, 9, 7, 8, 3])
    ([False, True, False, False], [False, True, False, False, True])
    """
    sides = [True] * len(own), [True] * len(revised)
    for block in SequenceMatcher(None, own, revised, autojunk=False).get_matching_blocks():
        for side, start in zip(sides, (block.a, block.b), strict=True):
            side[start : start + block.size] = [False] * block.size
    return sides


def change_of(own: Sequence[int], revised: Sequence[int]) -> float:
    """Share of the tokens of both texts that the other has not: 0 of equal texts, 1 of texts that have nothing in common.

    >>> change_of([1, 2, 3, 4], [1, 2, 9, 4])
    0.25
    """
    flags = [flag for side in changed(own, revised) for flag in side]
    return sum(flags) / len(flags) if flags else 0.0


def weights(flags: Sequence[bool], kept: float, other: float) -> list[float]:
    """A weight for each token: `other` where only one text has it."""
    return [other if flag else kept for flag in flags]
