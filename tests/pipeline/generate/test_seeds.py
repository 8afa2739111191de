"""Seeds of completions, and which prompts an iteration answers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.generate.seeds import completion_seed, select_prompts


def test_seeds_never_change_between_versions() -> None:
    assert completion_seed(0, "train", 0, "p", 0) == 7244011374174415873
    assert completion_seed(7, "sampled", None, "arithmetic-0001", 3) == 3083024221488890098


def test_seeds_are_distinct_and_fit_in_63_bits() -> None:
    seeds = {
        completion_seed(run, purpose, iteration, prompt, sample)
        for run in (0, 1)
        for purpose in ("train", "sampled")
        for iteration in (None, 0, 1)
        for prompt in ("a", "b", "1", "10")
        for sample in range(16)
    }
    assert len(seeds) == 2 * 2 * 3 * 4 * 16
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_does_not_depend_on_how_its_parts_run_together() -> None:
    assert completion_seed(0, "train", 1, "p1", 1) != completion_seed(0, "train", 1, "p", 11)
    assert completion_seed(0, "train", 11, "p", 1) != completion_seed(0, "train", 1, "1p", 1)


def test_all_prompts_are_taken_in_order_if_no_number_is_given() -> None:
    assert select_prompts(5, None, iteration=3, seed=0) == [0, 1, 2, 3, 4]


@settings(deadline=None, max_examples=80)
@given(prompts=st.integers(1, 30), count=st.integers(1, 70), seed=st.integers(0, 3), iterations=st.integers(1, 6))
def test_every_prompt_is_used_once_before_any_is_used_again(prompts: int, count: int, seed: int, iterations: int) -> None:
    drawn = [row for iteration in range(iterations) for row in select_prompts(prompts, count, iteration, seed)]
    assert len(drawn) == count * iterations
    for start in range(0, len(drawn), prompts):
        part = drawn[start : start + prompts]
        assert len(set(part)) == len(part)
        assert set(part) <= set(range(prompts))


def test_more_prompts_than_there_are_take_each_as_often_as_it_comes() -> None:
    drawn = select_prompts(3, 8, iteration=0, seed=0)
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [0, 1, 2]
    assert len(set(drawn[6:])) == 2


def test_a_selection_follows_from_iteration_and_seed_alone() -> None:
    assert select_prompts(100, 10, 2, seed=1) == select_prompts(100, 10, 2, seed=1)
    assert select_prompts(100, 10, 2, seed=1) != select_prompts(100, 10, 2, seed=2)
    assert select_prompts(100, 10, 2, seed=1) != select_prompts(100, 10, 3, seed=1)


def test_every_pass_has_an_order_of_its_own() -> None:
    passes = [tuple(select_prompts(20, 20, iteration, seed=0)) for iteration in range(4)]
    assert len(set(passes)) == 4
    assert tuple(range(20)) not in passes


@pytest.mark.parametrize("seed", range(20))
def test_each_prompt_comes_first_about_as_often(seed: int) -> None:
    firsts = [select_prompts(4, 1, 4 * iteration, seed)[0] for iteration in range(100)]
    assert min(firsts.count(prompt) for prompt in range(4)) > 8
