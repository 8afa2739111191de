"""The matrix of kills: its stages and its moments."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import kill_matrix

    yield kill_matrix
    sys.modules.pop("kill_matrix", None)


def test_a_recipe_is_made_small_and_keeps_its_method(matrix: Any) -> None:
    found = matrix.settings_of("remix")
    assert found["generate"] == {"prompts": 8, "samples": 4, "max_tokens": 24, "shard_groups": 1, "temperature": 1.0}
    assert found["phases"][0]["replay"] == {"iterations": 2, "share": 0.4} and found["train"]["algorithm"] == "remix"
    stages = matrix.stages_of(found)
    assert stages[:5] == ["import", "prompts", "generate-0", "evaluate-0", "shape-0"] and len(stages) == 2 + 4 * 6 + 2
    assert stages[-2:] == ["generate-4", "evaluate-4"]


def test_moments_of_a_recipe_lie_anywhere_and_follow_from_the_seed(matrix: Any) -> None:
    stages = [f"s{number}" for number in range(30)]
    moments = matrix.moments_of(4, stages, 20, anywhere=True)
    places = [stages.index(stage) for stage, _, _ in moments]
    assert len(moments) == 20 and places == sorted(places) and places[-1] > 20 > 10 > places[0]
    assert moments == matrix.moments_of(4, stages, 20, anywhere=True) != matrix.moments_of(5, stages, 20, anywhere=True)
    assert [stage for stage, _, _ in matrix.moments_of(4, stages, 5, anywhere=False)] == ["s0", "s0", "s1", "s1", "s2"]
