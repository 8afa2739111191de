"""Which columns are rewards, where a source does not say so but has the advantage that it made of them.

A group's advantages are its rewards, each with its weight, less their mean, and perhaps divided by their deviation and a little
beside it. So columns are rewards if such weights exist; and that little says how large the deviation was.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
CLOSE = 2e-3
"""What may be left over of an advantage of length 1: sources round, and add a little to deviations before they divide."""
ROUNDED = 1e-5
"""The same where nothing was divided: single precision."""
EPSILON = 1e-4
"""What TRL adds to a group's deviation before it divides by it."""


@dataclass(frozen=True)
class Rewards:
    """Columns that are rewards, with their weights in the total."""

    weights: dict[str, float]
    certain: bool
    """The advantages say so. Otherwise they are all the same, or no sum of columns gives them, and every column is taken."""


def find_rewards(
    groups: Sequence[Hashable], columns: Mapping[str, Sequence[float | None]], advantage: Sequence[float]
) -> Rewards:
    """The fewest of some columns, in their order, that give the advantages.

    Args:
        groups: of the rows; all that were compared with one another are alike.
        columns: numbers by name, in the order of the file: rewards stand before what users log. None and NaN count as 0.
    """
    places = _places(groups)
    target = np.asarray(advantage, float)
    values = {
        name: _centered(np.nan_to_num(np.array([item or 0.0 for item in column])), places) for name, column in columns.items()
    }
    everything = Rewards(dict.fromkeys(columns, 1.0), certain=False)
    if not np.any(target):
        return everything
    for count in range(1, len(values) + 1):
        names = list(values)[:count]
        weights = _weights(np.stack([values[name] for name in names], axis=1), target, places)
        if weights is not None:
            return Rewards(dict(zip(names, weights, strict=True)), certain=True)
    return everything


def _weights(values: Array, target: Array, places: list[Array]) -> list[float] | None:
    """Weights whose sum gives the target, or None. Those of columns that never differ are 1."""
    moving = np.abs(values).max(axis=0) > 1e-9
    if not moving.any():
        return None
    some = values[:, moving]
    sought = [(totals, np.linalg.lstsq(some, totals, rcond=1e-6)[0]) for totals in (target, _undivided(target, places))]
    for spelled in (_plain, np.asarray):
        for place, (totals, found) in enumerate(sought):
            weights = spelled(found)
            if np.any(weights) and _agrees(some @ weights, totals, places, exact=place == 0):
                whole = np.ones(values.shape[1])
                whole[moving] = weights
                return [float(weight) for weight in whole]
    return None


def _undivided(target: Array, places: list[Array]) -> Array:
    """What was there before each group was divided by its deviation s and a little: their deviation a is s / (s + little)."""
    found = np.zeros(len(target))
    for place in places:
        deviation = min(float(np.std(target[place], ddof=1)), 1 - 1e-7)
        found[place] = target[place] * EPSILON / (1 - deviation)
    return found


def _agrees(total: Array, wanted: Array, places: list[Array], *, exact: bool) -> bool:
    """Whether sums are what is wanted: to the value, or in every group in their proportions."""
    if exact:
        return bool(np.abs(total - wanted).max() < ROUNDED * np.abs(wanted).max())
    for place in places:
        mine, theirs = total[place], wanted[place]
        size, length = np.linalg.norm(mine), np.linalg.norm(theirs)
        if length < 1e-9 or size < 1e-9:
            if max(size, length) > CLOSE:
                return False
        elif np.abs(mine / size - theirs / length).max() > CLOSE:
            return False
    return True


def _plain(weights: Array) -> Array:
    """Weights as people write them: two digits."""
    return np.array([float(f"{weight:.2g}") for weight in weights])


def _centered(values: Array, places: list[Array]) -> Array:
    found = np.zeros(len(values))
    for place in places:
        found[place] = values[place] - values[place].mean()
    return found


def _places(groups: Sequence[Hashable]) -> list[Array]:
    """Rows of each group with more than one."""
    numbers: dict[Hashable, list[int]] = {}
    for number, group in enumerate(groups):
        numbers.setdefault(group, []).append(number)
    return [np.array(rows) for rows in numbers.values() if len(rows) > 1]
