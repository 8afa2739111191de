"""Which groups make a step, and how a step is cut into rows and micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.plan import (
    SEEN,
    CostModel,
    PackedRow,
    Packing,
    cut_for,
    micro_batches,
    packing,
    rows_of,
    spread,
    steps_of_epoch,
)
from pipeline.train.snapshot import TrainingGroup

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


@settings(deadline=None, max_examples=60)
@given(prompt=st.integers(1, 200), lengths=lengths, scale=st.floats(1, 1000))
def test_rows_hold_every_completion_once_in_order(make_group: MakeGroup, prompt: int, lengths: list[int], scale: float) -> None:
    group = make_group(prompt, lengths)
    rows = rows_of(group, CostModel(scale))
    assert [completion for row in rows for completion in row.completions] == group.completions
    assert [row.length for row in rows] == [prompt + sum(len(c.tokens) for c in row.completions) for row in rows]


@settings(deadline=None, max_examples=60)
@given(prompt=st.integers(1, 200), lengths=lengths, scale=st.floats(1, 1000))
def test_rows_cost_no_more_than_sharing_all_or_nothing(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow], prompt: int, lengths: list[int], scale: float
) -> None:
    cost = CostModel(scale)
    chosen = sum(cost.row(row.length) for row in rows_of(make_group(prompt, lengths), cost))
    assert chosen <= cost.row(prompt + sum(lengths)) + 1e-6
    assert chosen <= sum(cost.row(prompt + length) for length in lengths) + 1e-6


def test_cost_of_a_row() -> None:
    assert CostModel(attention_scale=100).row(50) == 50 + 25


def test_a_long_prompt_is_shared(make_group: MakeGroup) -> None:
    assert len(rows_of(make_group(200, [2] * 8), CostModel(1000))) == 1


def test_long_completions_get_rows_of_their_own(make_group: MakeGroup) -> None:
    assert len(rows_of(make_group(1, [200] * 8), CostModel(100))) == 8


def test_in_between_a_prompt_is_shared_by_some(make_group: MakeGroup) -> None:
    # Of 4 completions, a row holds 4: 260 + 676; 2: 2 (160 + 256) = 832; 1: 4 (110 + 121) = 924.
    rows = rows_of(make_group(60, [50] * 4), CostModel(100))
    assert [len(row.completions) for row in rows] == [2, 2]


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.tuples(st.integers(1, 40), lengths), min_size=1, max_size=6),
    budget=st.integers(1, 300),
    scale=st.sampled_from([50.0, math.inf]),
)
def test_micro_batches_hold_every_completion_once_within_the_budget(
    make_group: MakeGroup,
    row_of: Callable[[TrainingGroup], PackedRow],
    groups: list[tuple[int, list[int]]],
    budget: int,
    scale: float,
) -> None:
    rows = [row_of(make_group(prompt, sizes, number)) for number, (prompt, sizes) in enumerate(groups)]
    cost = CostModel(scale)
    batches = micro_batches(rows, budget, cost)
    held = [id(completion) for batch in batches for row in batch for completion in row.completions]
    assert sorted(held) == sorted(id(completion) for row in rows for completion in row.completions)
    for batch in batches:
        longest = max(row.length for row in batch)
        alone = len(batch) == 1 and len(batch[0].completions) == 1
        assert alone or (len(batch) * longest if cost.pads else sum(row.length for row in batch)) <= budget


def test_rows_of_like_length_go_together_where_rows_are_padded(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    rows = [row_of(make_group(1, [length], number)) for number, length in enumerate([1, 9, 2, 9, 1])]
    batches = micro_batches(rows, 20, CostModel(100))
    assert [[row.length for row in batch] for batch in batches] == [[10, 10], [3, 2, 2]]


def test_rows_in_a_line_fill_as_few_batches_as_can_be_and_evenly(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    rows = [row_of(make_group(1, [length - 1], number)) for number, length in enumerate([2, 9, 5, 4, 7, 3])]
    # 30 tokens in budgets of 16 need two batches; first-fit would fill them with 9 + 7 and 5 + 4 + 3 + 2.
    assert [[row.length for row in batch] for batch in micro_batches(rows, 16)] == [[9, 4, 2], [7, 5, 3]]
    assert [[row.length for row in batch] for batch in micro_batches(rows, 30)] == [[9, 7, 5, 4, 3, 2]]


def test_a_row_longer_than_the_budget_is_cut(make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]) -> None:
    row = row_of(make_group(10, [5, 5, 5, 5, 5]))
    assert [[part.length for part in batch] for batch in micro_batches([row], 25)] == [[25], [20]]
    assert [[part.length for part in batch] for batch in micro_batches([row], 12)] == [[15]] * 5


def test_rows_are_halved_while_that_evens_out_the_hands(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    one = row_of(make_group(2, [8, 8, 8, 8]))
    assert [row.length for row in cut_for([one], 2, SEEN)] == [18, 18]
    assert [row.length for row in cut_for([one], 1, SEEN)] == [34]
    three = [row_of(make_group(2, [8, 8], number)) for number in range(3)]
    assert [sum(row.length for row in hand) for hand in spread(cut_for(three, 2, SEEN), 2, SEEN)] == [28, 28]
    assert cut_for([], 2, SEEN) == []


@pytest.mark.parametrize(("groups", "size", "hands"), [(1, 64, 8), (4, 64, 8), (8, 32, 16)])
def test_few_large_groups_keep_many_hands_busy(
    groups: int, size: int, hands: int, make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    """Halving one of several equally long rows does not help at once; halving all of them does."""
    rows = [row_of(make_group(200, [500] * size, number)) for number in range(groups)]
    cut = cut_for(rows, hands, SEEN)
    loads = [sum(row.length for row in hand) for hand in spread(cut, hands, SEEN)]
    assert max(loads) < 1.1 * sum(loads) / hands
    assert sum(len(row.completions) for row in cut) == groups * size


def test_packing_counts_padding_and_what_sharing_prompts_spares(
    make_group: MakeGroup, row_of: Callable[[TrainingGroup], PackedRow]
) -> None:
    long, short = row_of(make_group(10, [5, 5])), row_of(make_group(4, [2]))
    found = packing([[long, short]], CostModel(100))
    # Rows of 20 and 6 positions; separate rows would have 15 + 15 + 6.
    assert (found.tokens, found.laid_out, found.unshared, found.passes) == (26, 40, 36, 1)
    assert found.shares() == {"padding": pytest.approx(14 / 40), "prompt_reuse": pytest.approx(10 / 36)}
    assert (packing([[long], [short]], SEEN) + Packing()).shares()["padding"] == 0
    assert Packing().shares() == {"padding": 0.0, "prompt_reuse": 0.0}


@pytest.mark.parametrize("budget", [16, 10_000])
def test_no_rows_make_no_micro_batches(budget: int) -> None:
    assert micro_batches([], budget) == []
