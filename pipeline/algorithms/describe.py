"""Algorithms as text, from their declarations alone."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from pipeline.algorithms import ALGORITHMS, resolve, settings_of
from pipeline.algorithms.algorithm import Algorithm, cells_of


def describe_all() -> list[dict[str, Any]]:
    return [_describe(algorithm) for algorithm in ALGORITHMS.values()]


def describe_one(name: str) -> dict[str, Any]:
    """Everything about one algorithm.

    Raises:
        UserError: no such algorithm.
    """
    return _describe(resolve(name))


def table() -> Table:
    """One row per algorithm."""
    view = Table(box=None, header_style="bold")
    for column in ("name", "loss per token", "paper", "needs"):
        view.add_column(column, no_wrap=column == "name")
    for algorithm in ALGORITHMS.values():
        needs = ", ".join(algorithm.needs) or "rewards only"
        view.add_row(*(Text(text) for text in (algorithm.name, algorithm.formula, algorithm.paper, needs)))
    return view


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
        "settings": {f"{cell}.{name}": value for cell, name, value in settings_of(algorithm)},
    }
