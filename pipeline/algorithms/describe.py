"""Algorithms as text, from their declarations alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.algorithms import known, resolve, settings_of
from pipeline.algorithms.algorithm import Algorithm, cells_of
from pipeline.algorithms.plugins import installed


def describe_all(files: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every algorithm. Of those that installed packages bring, which are not imported for it, the name and the package."""
    algorithms = known(files)
    others = [{"name": name, "package": package} for name, package in _others(algorithms)]
    return [*(_describe(algorithm) for algorithm in algorithms.values()), *others]


def describe_one(name: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """Everything about one algorithm.

    Raises:
        UserError: no such algorithm, or a plugin that cannot be used.
    """
    return _describe(resolve(name, files=files))


def table(files: Sequence[str] = ()) -> Table:
    """One row per algorithm."""
    view = Table(box=None, header_style="bold")
    for column in ("name", "loss per token", "paper", "needs"):
        view.add_column(column, no_wrap=column == "name")
    algorithms = known(files)
    for algorithm in algorithms.values():
        needs = ", ".join(algorithm.needs) or "rewards only"
        view.add_row(*(Text(text) for text in (algorithm.name, algorithm.formula, algorithm.paper, needs)))
    for name, package in _others(algorithms):
        view.add_row(*(Text(text) for text in (name, f"of {package}; `rollbook algorithms {name}` imports and shows it", "", "")))
    return view


def _others(algorithms: dict[str, Algorithm]) -> list[tuple[str, str]]:
    """Algorithms of installed packages, and the package. A name that is taken is that of the one here."""
    return [(name, package) for name, package in sorted(installed().items()) if name not in algorithms]


def _describe(algorithm: Algorithm) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for slot, place, cell in cells_of(algorithm):
        name = type(cell).__name__
        cells[slot] = name if place is None else [*cells.get(slot, []), name]
    return {
        "name": algorithm.name,
        "summary": algorithm.summary,
        "formula": algorithm.formula,
        "paper": algorithm.paper,
        "kernel": algorithm.kernel,
        "cells": cells,
        "needs": list(algorithm.needs),
        "dead_at": list(algorithm.dead_at),
        "settings": {f"{cell}.{name}": value for cell, name, value in settings_of(algorithm)},
        **({"source": algorithm.source} if algorithm.source else {}),
    }
