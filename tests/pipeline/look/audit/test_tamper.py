"""The tamper matrix: every seeded single change of a store is found, and nothing is reported on the untouched one.

`python benchmarks/tamper.py` does the same, 1,200 times, on a run that vLLM made.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[4] / "benchmarks" / "tamper.py"


@pytest.fixture(scope="module")
def tamper() -> Any:
    spec = importlib.util.spec_from_file_location("tamper", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("changes", "seed"), [(75, 1), pytest.param(1000, 2, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_every_change_is_found_and_nothing_else(made: Path, tmp_path: Path, tamper: Any, changes: int, seed: int) -> None:
    result = tamper.matrix(made, tmp_path / "working", changes, seed)
    print(f"{result['found']} of {result['changes']} changes found: {result['by_kind']}")
    assert result["untouched"] == [[], []]
    assert result["missed"] == []
    assert len(result["by_kind"]) == len(tamper.CHANGES)
