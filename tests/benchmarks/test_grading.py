"""The pairs of the grading benchmark: of every kind the right ones earn 1 and the wrong ones 0."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield
    for name in ("grading", "grading_pairs"):
        sys.modules.pop(name, None)


def test_no_pair_of_any_kind_is_misjudged(benchmark: None) -> None:
    import grading

    counts = {name: grading.counted(cases, grading.ours, show=3) for name, cases in grading.generated_sets(40, seed=7)}
    assert len(counts) >= 25
    assert {name: (c.right, c.wrong) for name, c in counts.items()} == dict.fromkeys(counts, (40, 40))
    assert {name: c.worst for name, c in counts.items() if c.worst} == {}


def test_pairs_are_the_same_for_a_seed_and_others_for_another(benchmark: None) -> None:
    import grading_pairs

    first, again, other = (list(grading_pairs.pairs("mixed_numbers", 5, seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_an_error_is_a_miss_of_a_right_answer_and_no_false_positive(benchmark: None) -> None:
    import grading

    count = grading.Count()
    for right, score in ((True, None), (True, 1.0), (False, None), (False, 1.0), (False, 0.0)):
        count.add(grading.Case("", "", right), score)
    assert (count.right, count.false_negatives, count.wrong, count.false_positives, count.errors) == (2, 1, 3, 1, 2)
    assert count.worst == 50.0
