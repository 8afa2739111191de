"""Algorithms as text, from their declarations alone."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from pipeline.algorithms import ALGORITHMS, Algorithm, resolve, settings_of


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
        view.add_row(algorithm.name, algorithm.formula, algorithm.paper, ", ".join(algorithm.needs) or "rewards only")
    return view


def _describe(algorithm: Algorithm) -> dict[str, Any]:
    cells = ("advantage", "importance", "trust_region", "aggregation")
    return {
        "name": algorithm.name,
        "summary": algorithm.summary,
        "formula": algorithm.formula,
        "paper": algorithm.paper,
        "cells": {cell: type(getattr(algorithm, cell)).__name__ for cell in cells},
        "needs": list(algorithm.needs),
        "settings": {name: value for _, name, value in settings_of(algorithm)},
    }
