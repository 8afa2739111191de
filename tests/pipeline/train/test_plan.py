"""Which groups make a step, and how a step is cut into rows and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.plan import (
    SEEN,
    CostModel,
    Packing,
    cut_for,
    deal,
    micro_batches,
    packing,
    rows_of,
    runs,
    spread,
    steps_of_epoch,
)
from pipeline.train.snapshot import TrainingCompletion, TrainingGroup
from pipeline.train.tree import Branch, PackedRow, trees

MakeGroup = Callable[..., TrainingGroup]
sizes = st.lists(st.integers(1, 8), min_size=1, max_size=40)
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=8)


def names(count: int) -> list[str]:
    return [f"group-{number}" for number in range(count)]


def steps_by_name(order: Sequence[str], size_of: dict[str, int], batch: int, seed: int = 0, epoch: int = 0) -> list[set[str]]:
    steps = steps_of_epoch(order, [size_of[name] for name in order], batch, seed, epoch)
    return [{order[group] for group in step} for step in steps]


@settings(deadline=None, max_examples=80)
@given(sizes, st.integers(1, 50))
def test_every_group_is_in_exactly_one_step_of_an_epoch(sizes: list[int], batch: int) -> None:
    steps = steps_of_epoch(names(len(sizes)), sizes, batch, seed=0, epoch=0)
    assert sorted(group for step in steps for group in step) == list(range(len(sizes)))
    assert all(steps)


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 100))
def test_no_step_is_smaller_than_another_by_more_than_a_group(groups: int, size: int, batch: int) -> None:
    steps = steps_of_epoch(names(groups), [size] * groups, batch, seed=0, epoch=0)
    assert max(map(len, steps)) - min(map(len, steps)) <= 1


@settings(deadline=None, max_examples=80)
@given(sizes, st.integers(1, 50))
def test_a_step_is_off_the_even_share_by_less_than_the_largest_group(sizes: list[int], batch: int) -> None:
    steps = steps_of_epoch(names(len(sizes)), sizes, batch, seed=0, epoch=0)
    if len(steps) == max(1, min(len(sizes), round(sum(sizes) / batch))):
        share = sum(sizes) / len(steps)
        assert all(abs(sum(sizes[group] for group in step) - share) < max(sizes) for step in steps)


@settings(deadline=None, max_examples=80)
@given(sizes, st.data())
def test_steps_do_not_depend_on_how_groups_lie_in_files(sizes: list[int], data: st.DataObject) -> None:
    size_of = dict(zip(names(len(sizes)), sizes, strict=True))
    order = data.draw(st.permutations(list(size_of)))
    assert steps_by_name(order, size_of, 10) == steps_by_name(list(size_of), size_of, 10)


def test_the_order_follows_from_seed_and_epoch() -> None:
    def plan(seed: int, epoch: int) -> list[list[int]]:
        return steps_of_epoch(names(30), [4] * 30, 16, seed, epoch)

    assert plan(0, 0) == plan(0, 0)
    assert len({str(plan(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


def test_a_step_holds_about_as_many_completions_as_asked_for() -> None:
    assert [len(step) for step in steps_of_epoch(names(10), [4] * 10, 8, 0, 0)] == [2, 2, 2, 2, 2]
    assert sorted(len(step) for step in steps_of_epoch(names(9), [4] * 9, 16, 0, 0)) == [4, 5]
    assert [len(step) for step in steps_of_epoch(names(3), [4] * 3, 100, 0, 0)] == [3]
    assert [len(step) for step in steps_of_epoch(names(3), [4] * 3, 1, 0, 0)] == [1, 1, 1]


def own(group: TrainingGroup) -> TrainingGroup:
    """The group with a first token of its own in every completion, so that only the prompt is shared."""
    completions = [replace(c, tokens=np.array([100 + n, *c.tokens[1:]])) for n, c in enumerate(group.completions)]
    return TrainingGroup(group.prompt, completions)


@settings(deadline=None, max_examples=60)
@given(prompt=st.integers(1, 200), lengths=lengths, scale=st.floats(1, 1000))
def test_rows_hold_every_completion_once(make_group: MakeGroup, prompt: int, lengths: list[int], scale: float) -> None:
    group = own(make_group(prompt, lengths))
    rows = rows_of(group, CostModel(scale))
    held = [completion for row in rows for completion in row.completions]
    assert sorted(map(id, held)) == sorted(map(id, group.completions))
    assert [row.length for row in rows] == [prompt + sum(len(c.tokens) - 1 for c in row.completions) for row in rows]


@settings(deadline=None, max_examples=60)
@given(prompt=st.integers(1, 200), lengths=lengths, scale=st.floats(1, 1000))
def test_rows_cost_no_more_than_sharing_all_or_nothing(
    make_group: MakeGroup, prompt: int, lengths: list[int], scale: float
) -> None:
    cost = CostModel(scale)
    chosen = sum(cost.row(row.length) for row in rows_of(own(make_group(prompt, lengths)), cost))
    assert chosen <= cost.row(prompt + sum(lengths) - len(lengths)) + 1e-6
    assert chosen <= sum(cost.row(prompt + length - 1) for length in lengths) + 1e-6


def test_cost_of_a_row() -> None:
    assert CostModel(attention_scale=100).row(50) == 50 + 25


def test_a_long_prompt_is_shared(make_group: MakeGroup) -> None:
    assert len(rows_of(own(make_group(200, [3] * 8)), CostModel(1000))) == 1


def test_long_completions_get_rows_of_their_own(make_group: MakeGroup) -> None:
    assert len(rows_of(own(make_group(1, [200] * 8)), CostModel(100))) == 8


def test_in_between_a_prompt_is_shared_by_some(make_group: MakeGroup) -> None:
    # Of 4 completions, a row holds 4: 260 + 676; 2: 2 (160 + 256) = 832; 1: 4 (110 + 121) = 924.
    rows = rows_of(own(make_group(60, [51] * 4)), CostModel(100))
    assert [len(row.completions) for row in rows] == [2, 2]


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.tuples(st.integers(1, 40), lengths), min_size=1, max_size=6),
    budget=st.integers(1, 300),
    ranks=st.integers(1, 4),
    cost=st.sampled_from([CostModel(50.0), SEEN, CostModel(fork=8, free_forks=20), CostModel(50.0, shares=False)]),
)
def test_ranks_hold_every_completion_once_in_as_many_micro_batches_within_the_budget(
    make_group: MakeGroup, groups: list[tuple[int, list[int]]], budget: int, ranks: int, cost: CostModel
) -> None:
    made = [make_group(prompt, sizes, number) for number, (prompt, sizes) in enumerate(groups)]
    shares = deal(made, ranks, budget, cost)
    assert len({len(share) for share in shares}) == 1 and len(shares) == ranks
    batches = [batch for share in shares for batch in share]
    held = [id(completion) for batch in batches for row in batch for completion in row.completions]
    assert sorted(held) == sorted(id(completion) for group in made for completion in group.completions)
    for batch in (batch for batch in batches if batch):
        longest = max(row.length for row in batch)
        alone = len(batch) == 1 and len(batch[0].completions) == 1
        assert alone or len(batch) * longest <= budget
        assert cost.pads or len(batch) == 1


def test_rows_of_like_length_go_together_where_rows_are_padded(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    rows = [row_of(make_group(1, [length], number)) for number, length in enumerate([2, 10, 3, 10, 2])]
    batches = micro_batches(rows, 20, CostModel(100))
    assert [[row.length for row in batch] for batch in batches] == [[10, 10], [3, 2, 2]]


def line(*completions: tuple[list[int], list[int]]) -> PackedRow:
    """A row of completions behind their prompts."""
    made = []
    for number, (prompt, tokens) in enumerate(completions):
        one = TrainingCompletion(f"g{number}", 0, np.array(tokens, np.int32), None, np.ones(len(tokens), np.bool_))
        made.append(Branch(TrainingGroup(np.array(prompt, np.int32), [one]), one))
    return trees(made)


def test_a_line_is_cut_where_least_is_shared() -> None:
    # Two prompts of 4 with 3 completions each, of 3 positions that nobody shares: 4 + 9 and 4 + 9 positions.
    row = line(*(([prompt] * 4, [first, 9, 9, 9]) for prompt in (1, 2) for first in (5, 6, 7)))
    assert row.length == 26
    assert [part.length for part in runs(row, 1, 26)] == [26]
    assert [part.length for part in runs(row, 1, 25)] == [13, 13]
    assert [part.length for part in runs(row, 2, 100)] == [13, 13]
    # Of 12, none holds a prompt with all three: two hold two completions, and one of each.
    assert [part.length for part in runs(row, 1, 12)] == [10, 7, 10, 7]
    # A completion is longer than the budget: each goes alone.
    assert [part.length for part in runs(row, 1, 3)] == [7] * 6


def test_parts_of_a_line_are_as_even_as_can_be() -> None:
    row = line(*(([number], [9] * length) for number, length in enumerate([2, 9, 5, 4, 7, 3])))
    # 30 positions in budgets of 29 need two parts: 2 + 9 + 5 and 4 + 7 + 3.
    assert [part.length for part in runs(row, 1, 29)] == [16, 14]
    assert [part.length for part in runs(row, 3, 30)] == [11, 9, 10]


def test_more_ranks_than_completions_leave_some_idle() -> None:
    group = TrainingGroup(np.array([1]), [TrainingCompletion("g", 0, np.array([2, 3]), None, np.ones(2, np.bool_))])
    shares = deal([group], 3, 100, SEEN)
    assert [[[row.length for row in part] for part in share] for share in shares] == [[[2]], [[]], [[]]]


def test_rows_are_halved_while_that_evens_out_the_hands(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    one = row_of(own(make_group(2, [9, 9, 9, 9])))
    assert [row.length for row in cut_for([one], 2, SEEN)] == [18, 18]
    assert [row.length for row in cut_for([one], 1, SEEN)] == [34]
    three = [row_of(own(make_group(2, [9, 9], number))) for number in range(3)]
    assert [sum(row.length for row in hand) for hand in spread(cut_for(three, 2, SEEN), 2, SEEN)] == [28, 28]
    assert cut_for([], 2, SEEN) == []


@pytest.mark.parametrize(("groups", "size", "hands"), [(1, 64, 8), (4, 64, 8), (8, 32, 16)])
def test_few_large_groups_keep_many_ranks_busy(groups: int, size: int, hands: int, make_group: MakeGroup) -> None:
    made = [own(make_group(200, [500] * size, number)) for number in range(groups)]
    shares = deal(made, hands, 1_000_000, SEEN)
    loads = [row.length for share in shares for part in share for row in part]
    assert len(loads) == hands and max(loads) < 1.1 * sum(loads) / hands
    assert sum(loads) == groups * size * 499 + 200 * max(groups, hands)  # every cut lies between groups where it can


def test_packing_counts_padding_and_what_sharing_spares(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    long, short = row_of(own(make_group(10, [6, 6]))), row_of(make_group(4, [3]))
    found = packing([[long, short]], CostModel(100))
    # Rows of 20 and 6 positions; separate rows would have 15 + 15 + 6.
    assert (found.tokens, found.laid_out, found.unshared, found.passes) == (26, 40, 36, 1)
    assert found.shares() == {"padding": pytest.approx(14 / 40), "reuse": pytest.approx(10 / 36)}
    assert (packing([[long], [short]], SEEN) + Packing()).shares()["padding"] == 0
    assert Packing().shares() == {"padding": 0.0, "reuse": 0.0}


@pytest.mark.parametrize("cost", [SEEN, CostModel(100), CostModel(fork=16, free_forks=128)])
def test_no_groups_make_no_micro_batches(cost: CostModel) -> None:
    assert deal([], 2, 16, cost) == [[], []]
