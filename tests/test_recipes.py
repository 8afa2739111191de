"""The recipes of docs/other-data.md run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import answer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "other-data.md").read_text(encoding="utf-8").partition("## Recipes")[2]
BLOCKS = {match.group(1): match.group(2) for match in re.finditer(r"\n([A-Z`\w][^\n]*):\n\n```python\n(.*?)```", PAGE, re.DOTALL)}
RECIPES = [pytest.param(name, marks=pytest.mark.needs("duckdb")) if name.startswith("DuckDB") else name for name in BLOCKS]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store and an export, as the page says."""
    place = tmp_path_factory.mktemp("recipes")
    source, store = ROOT / "tests" / "pipeline" / "exchange" / "imports" / "fixtures" / "nemo_rl", place / "store"
    assert answer(["import", str(source), "--store", str(store)]) == 0
    artifact = next((store / "rollouts").iterdir())
    assert answer(["export", str(artifact), "--to", "dataset", "--out", str(place / "my-rollouts")]) == 0
    return place


def test_every_reader_has_its_recipe() -> None:
    assert [name.split()[0].strip(":") for name in BLOCKS] == ["polars", "DuckDB", "pandas", "Hugging", "The"]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_run(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if "datasets" in name:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    exec(compile(BLOCKS[name], name, "exec"), {"__name__": name})
    assert _looks_right(name)(capsys.readouterr().out)


def _looks_right(name: str) -> Callable[[str], bool]:
    if "datasets" in name:
        return lambda out: out.startswith("8 8 ['group_id'")
    return lambda out: ("train_data_step1.jsonl" if name.startswith("The") else "4") in out
