"""Rooms know each other one way. `lint-imports` checks the order of pyproject.toml; here is what it does not look at."""

from __future__ import annotations

import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]


def test_no_modules_import_each_other_in_a_circle() -> None:
    """A package's own file counts as a module too: the linter compares only what lies beside each other."""
    graph = grimp.build_graph("flows", "pipeline", "schemas", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in sorted(graph.modules)}
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_the_order_of_the_rooms_has_no_exceptions() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    for contract in settings["contracts"]:
        assert not any(name.startswith(("ignore", "exhaustive_ignores", "skip")) for name in contract)
