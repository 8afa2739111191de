"""Trees of tokens, worked by hand and against the set of all prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.attention import dense_mask
from pipeline.train.batch import collate
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.tree import Branch, PackedRow, trees

CPU = torch.device("cpu")
Pair = tuple[Sequence[int], Sequence[int]]
pairs = st.tuples(st.lists(st.integers(0, 1), min_size=1, max_size=5), st.lists(st.integers(0, 2), min_size=1, max_size=7))
"""Prompts and completions of so few tokens that they share a lot: nested ones and equal ones too."""


def branches(given: Sequence[Pair]) -> list[Branch]:
    """Completions behind their prompts, every one of a group of its own."""
    made = []
    for number, (prompt, tokens) in enumerate(given):
        one = TrainingCompletion(f"g{number}", 0, np.array(tokens, np.int32), None, np.ones(len(tokens), np.bool_))
        made.append(Branch(TrainingGroup(np.array(prompt, np.int32), [one]), one))
    return made


def row_of(*given: Pair, fork: int = 0, free: int = 0) -> PackedRow:
    return trees(branches(given), fork, free)


def paths(row: PackedRow) -> list[list[int]]:
    """The tokens that each position of a row sees, itself included."""
    batch = collate([row], CPU)
    sees = dense_mask(batch.end)[0, 0]
    return [batch.input_ids[0, mask].tolist() for mask in sees]


def prefixes(row: PackedRow) -> set[tuple[int, ...]]:
    """Every distinct prefix from which something follows in some branch."""
    return {tuple(one.tokens[: n + 1].tolist()) for one in row.branches for n in range(one.length)}


def test_branches_part_where_their_tokens_do() -> None:
    row = row_of(([1, 2], [3, 4, 5]), ([1, 2], [3, 6, 7, 8]), ([1, 2], [9, 9]))
    # 1 2 3 4 | 6 7 | 9: the last tokens, 5, 8 and 9, predict nothing.
    assert (row.shared, row.length, row.separate) == ([0, 3, 2], 7, 4 + 5 + 3)
    batch = collate([row], CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 6, 7, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 2]]
    assert batch.end.tolist() == [[7, 7, 6, 4, 6, 6, 7]]
    assert batch.predicted_from.tolist() == [1, 2, 3, 1, 2, 4, 5, 1, 6]


def test_equal_completions_and_one_that_another_goes_on_from_add_nothing() -> None:
    row = row_of(([1], [2, 3]), ([1], [2, 3]), ([1], [2]), ([1], [2, 3, 4]))
    assert [one.completion.tokens.tolist() for one in row.branches] == [[2], [2, 3], [2, 3], [2, 3, 4]]
    assert (row.shared, row.length) == ([0, 1, 2, 2], 3)
    assert paths(row) == [[1], [1, 2], [1, 2, 3]]
    assert collate([row], CPU).predicted_from.tolist() == [0, 0, 1, 0, 1, 0, 1, 2]


def test_a_turn_of_an_episode_goes_on_from_the_one_before() -> None:
    row = row_of(([1, 2], [3, 4]), ([1, 2, 3, 4, 5], [6, 7]))
    assert (row.shared, row.length) == ([0, 3], 6)
    assert collate([row], CPU).predicted_from.tolist() == [1, 2, 4, 5]


@settings(deadline=None, max_examples=200)
@given(st.lists(pairs, min_size=1, max_size=8))
def test_every_prefix_is_computed_once(given: list[Pair]) -> None:
    row = row_of(*given)
    assert row.length == len(prefixes(row))
    assert {tuple(path) for path in paths(row)} == prefixes(row)


@settings(deadline=None, max_examples=200)
@given(st.lists(pairs, min_size=1, max_size=8), st.integers(0, 6), st.integers(0, 12), st.data())
def test_every_token_is_predicted_from_its_own_prefix(given: list[Pair], fork: int, free: int, data: st.DataObject) -> None:
    whole = row_of(*given, fork=fork, free=free)
    start = data.draw(st.integers(0, len(given) - 1))
    row = whole.part(start, data.draw(st.integers(start + 1, len(given))))
    found, batch = paths(row), collate([row], CPU)
    expected = [
        one.tokens[: len(one.group.prompt) + n].tolist() for one in row.branches for n in range(len(one.completion.tokens))
    ]
    assert [found[place] for place in batch.predicted_from.tolist()] == expected
    assert [len(path) - 1 for path in found] == batch.position_ids[0].tolist()
    assert row.length == batch.input_ids.shape[1]


@settings(deadline=None, max_examples=100)
@given(st.lists(pairs, min_size=1, max_size=8), st.integers(1, 6))
def test_forks_that_are_left_spare_what_they_have_to(given: list[Pair], fork: int) -> None:
    row, every = row_of(*given, fork=fork), row_of(*given)
    assert all(kept <= shared for kept, shared in zip(row.shared, every.shared, strict=True))
    for depth in set(row.shared) - {0}:
        for first in [n for n, shared in enumerate(row.shared) if shared == depth]:
            span = [n for n in range(first, 0, -1) if min(row.shared[n : first + 1]) >= depth]
            last = next((n for n in range(first + 1, len(given)) if row.shared[n] < depth), len(given))
            inside = row.shared[span[-1] : last]
            around = [row.shared[n] for n in (span[-1] - 1, last) if 0 < n < len(given)]
            assert inside.count(depth) * (depth - max(around, default=0)) >= fork


def test_a_fork_that_spares_little_is_left_out_but_for_small_subtrees() -> None:
    given = ([7] * 10, [1, 2, 3, 4, 5, 6]), ([7] * 10, [1, 2, 8, 8, 8, 8]), ([7] * 10, [9, 9, 9, 9, 9, 9])
    assert row_of(*given).shared == [0, 12, 10]  # two positions are spared at depth 12, ten by each completion at depth 10
    assert row_of(*given, fork=2).shared == [0, 12, 10]
    assert row_of(*given, fork=3).shared == [0, 10, 10]
    assert row_of(*given, fork=20).shared == [0, 10, 10]
    assert row_of(*given, fork=21).shared == [0, 0, 0]
    # Below depth 10 the first two have 2 + 3 + 3 positions.
    assert row_of(*given, fork=3, free=8).shared == [0, 12, 10]
    assert row_of(*given, fork=3, free=7).shared == [0, 10, 10]


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_a_row_in_parts_starts_each_part_anew(parts: int) -> None:
    row = row_of(*(([1, 1], [n // 2, n, n]) for n in range(7)))
    cut = row.cut(parts)
    assert [one for part in cut for one in part.completions] == row.completions
    assert [part.shared[0] for part in cut] == [0] * parts
    assert all(part.length == len(prefixes(part)) for part in cut)
