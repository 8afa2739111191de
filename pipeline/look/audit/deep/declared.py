"""Which algorithm a recipe describes: recipes hold cells with every setting, and no name.

Only built-in algorithms are looked at. One of the user's own is code, which an audit does not run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.algorithms import ALGORITHMS, Algorithm
from pipeline.algorithms.algorithm import cells_of
from pipeline.algorithms.settings import with_settings
from pipeline.common.errors import UserError

Named = tuple[str, dict[str, Any]]
"""An algorithm's name and its settings, as `pipeline.algorithms.resolve` takes them."""


def shaped_by(recipe: Mapping[str, Any]) -> Iterator[Named]:
    """Algorithms that shape as the recipe of a shaped artifact says."""
    for algorithm in ALGORITHMS.values():
        settings = _settings(algorithm, algorithm.shaping_cells, recipe)
        if settings is not None and _part(with_settings(algorithm, settings).shaping_recipe(), recipe):
            yield algorithm.name, settings


def trained_by(recipe: Mapping[str, Any]) -> Iterator[Named]:
    """Algorithms whose loss is the one that the recipe of a checkpoint has under `algorithm`."""
    for algorithm in ALGORITHMS.values():
        if algorithm.kernel != recipe.get("kernel"):
            continue
        settings = _settings(algorithm, algorithm.loss_cells, recipe)
        if settings is not None and with_settings(algorithm, settings).recipe() == recipe:
            yield algorithm.name, settings


def _part(made: Mapping[str, Any], recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe says what was made, and names no cell beside it."""
    slots = {name for name, value in recipe.items() if isinstance(value, dict) and "cell" in value}
    return all(recipe.get(name) == _plain(value) for name, value in made.items()) and slots <= made.keys()


def _settings(algorithm: Algorithm, slots: tuple[str, ...], recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Settings that give the algorithm's cells the recipe's values; None if the cells are not of the recipe's kinds."""
    settings: dict[str, Any] = {}
    for slot in slots:
        value, stated = getattr(algorithm, slot), recipe.get(slot)
        several = isinstance(value, tuple)
        entries: list[Any] = list(stated or ()) if several else [stated]
        for _, place, cell in cells_of(algorithm, (slot,)):
            owner = slot if place is None else f"{slot}.{place}"
            if entries and isinstance(entries[0], dict) and entries[0].get("cell") == type(cell).__name__:
                entry = entries.pop(0)
                changed = {f.name: entry[f.name] for f in dataclasses.fields(cell) if f.name in entry}
                settings |= {f"{owner}.{name}": new for name, new in changed.items() if new != _plain(getattr(cell, name))}
            elif several and hasattr(cell, "coefficient"):
                settings[f"{owner}.coefficient"] = 0.0
            else:
                return None
        if entries:
            return None
    try:
        with_settings(algorithm, settings)
    except (UserError, ValueError):
        return None
    return settings


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value
