"""The benchmark of the recipes: it has them all, on as many rollouts, and its table is worked out by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.prepare.recipes import recipe_names

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recipes

    yield recipes
    sys.modules.pop("recipes", None)


def test_every_recipe_is_run_for_as_long_as_the_baselines_at_most(recipes: Any, tmp_path: Path) -> None:
    assert sorted(recipes.ORDER) == recipe_names()
    configs = {name: recipes.settings_of(name, 1, tmp_path) for name in recipes.ALL}
    assert {config.generate.prompts * config.generate.samples for config in configs.values()} == {512}
    assert configs["sft"].iterations == configs["grpo"].iterations == max(config.iterations for config in configs.values())


def test_a_recipe_is_compared_with_the_baselines_checkpoints_on_as_many_rollouts(recipes: Any) -> None:
    def run(recipe: str, seed: int, *pass_at_1: float) -> dict[str, Any]:
        curve = [{"pass_at_1": value, "greedy_accuracy": value / 2} for value in pass_at_1]
        return {"recipe": recipe, "seed": seed, "curve": curve}

    runs = [run("sft", 0, 0.2, 0.3, 0.6), run("grpo", 0, 0.2, 0.5, 0.9), run("grpo", 1, 0.4, 0.7, 0.8)]
    runs += [run("ipo", 0, 0.2, 0.4), run("ipo", 1, 0.4, 0.6)]
    lines = recipes.table(runs).splitlines()[2:]
    assert [line.split(" | ")[0] for line in lines] == ["| `sft`", "| `grpo`", "| `ipo`"]
    assert lines[2] == "| `ipo` | 2 | 1 | 0.150 | 0.250 | 0.300 | 0.500 | +0.100 (+0.100) | -0.100 (-0.100, -0.100) |"
