"""Settings of an algorithm by name, as `train.algorithm_args` gives them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.algorithms.algorithm import Algorithm, cells_of
from pipeline.algorithms.cells.mismatch import MaskedImportance, NoMismatch, ProximalRatio, TruncatedImportance
from pipeline.algorithms.cells.regularizers import (
    EntropyBonus,
    ForwardKL,
    ReferenceKL,
    SquaredLogRatio,
    WeightedReferenceKL,
)
from pipeline.common.errors import UserError
from pipeline.config.base import allows_truth

MODIFIERS: Mapping[str, tuple[type[Any], ...]] = {
    "mismatch": (TruncatedImportance, MaskedImportance, ProximalRatio, NoMismatch),
    "regularizers": (EntropyBonus, ReferenceKL, WeightedReferenceKL, ForwardKL, SquaredLogRatio),
}
"""Cells that go with any policy gradient, by the field they are set in. Another cell elsewhere makes another algorithm."""

SHARED = ("solved_at",)
"""Settings that say the same of an algorithm in every cell that has them: given without a cell's name, they are set in all."""


def settings_of(algorithm: Algorithm) -> Iterator[tuple[str, str, Any]]:
    """Every setting: the cell it belongs to, its name, its value."""
    for slot, place, cell in cells_of(algorithm):
        if slot in algorithm.settled:
            continue
        owner = slot if place is None else f"{slot}.{place}"
        for field in dataclasses.fields(cell):
            yield owner, field.name, getattr(cell, field.name)


def with_settings(algorithm: Algorithm, settings: Mapping[str, Any]) -> Algorithm:
    """The algorithm with some of its cells' settings changed.

    Args:
        settings: by the field's name, such as {"low": 0.6}; or with its cell's, such as {"trust_region.low": 0.6}. A modifier
            is named before its settings are: {"mismatch": "TruncatedImportance", "mismatch.high": 3.0}.

    Raises:
        UserError: no such setting (with the nearest name), or a value that it does not take.
    """
    for key in settings:
        if key in MODIFIERS and key in algorithm.loss_cells:
            algorithm = _with_modifier(algorithm, key, settings[key])
    for key, value in settings.items():
        if not (key in MODIFIERS and key in algorithm.loss_cells):
            algorithm = _with_setting(algorithm, key, value)
    if "regularizers" in settings:
        for place, cell in enumerate(getattr(algorithm, "regularizers", ())):
            if cell.coefficient == 0:
                raise UserError(
                    f"train.algorithm_args: regularizers: {type(cell).__name__} has coefficient 0 and does nothing; set "
                    f"regularizers.{place}.coefficient"
                )
    return algorithm


def _with_modifier(algorithm: Algorithm, slot: str, value: Any) -> Algorithm:
    names = value if isinstance(value, list) else [value]
    cells = {cell.__name__: cell for cell in MODIFIERS[slot]}
    if unknown := [name for name in names if not isinstance(name, str) or name not in cells]:
        raise UserError(f"train.algorithm_args: {slot}: no cell {unknown[0]!r}; {nearest(str(unknown[0]), list(cells))}")
    several = isinstance(getattr(algorithm, slot), tuple)
    if not several and len(names) != 1:
        raise UserError(f"train.algorithm_args: {slot}: expected the name of one cell (found {value!r})")
    chosen = tuple(cells[name]() for name in names)
    return _replaced(algorithm, slot, slot, None, chosen if several else chosen[0])


def _with_setting(algorithm: Algorithm, key: str, value: Any) -> Algorithm:
    owner, _, name = key.rpartition(".")
    fitting = [(slot, place, cell) for slot, place, cell in cells_of(algorithm) if _matches(owner, name, slot, place, cell)]
    found = [one for one in fitting if one[0] not in algorithm.settled] or fitting
    if not found:
        names = [f"{cell}.{field}" if owner else field for cell, field, _ in settings_of(algorithm)]
        raise UserError(f"train.algorithm_args: {algorithm.name} has no setting {key!r}; {nearest(key, names)}")
    if len(found) > 1 and key not in SHARED:
        names = [f"{slot if place is None else f'{slot}.{place}'}.{name}" for slot, place, _ in found]
        raise UserError(f"train.algorithm_args: {key!r} is a setting of several cells; write {' or '.join(names)}")
    for slot, place, cell in found:
        changed = dataclasses.replace(cell, **{name: _checked(key, get_type_hints(type(cell), include_extras=True)[name], value)})
        algorithm = _replaced(algorithm, key, slot, place, changed)
    return algorithm


def _replaced(algorithm: Algorithm, key: str, slot: str, place: int | None, cell: Any) -> Algorithm:
    """The algorithm with one cell in place of another, for a setting."""
    cells = cell if place is None else (*getattr(algorithm, slot)[:place], cell, *getattr(algorithm, slot)[place + 1 :])
    try:
        return algorithm.replace(**{slot: cells})
    except ValueError as error:
        raise UserError(f"train.algorithm_args: {key}: {error}") from None


def _matches(owner: str, name: str, slot: str, place: int | None, cell: Any) -> bool:
    owners = ("", slot) if place is None else ("", slot, f"{slot}.{place}")
    return owner in owners and name in {field.name for field in dataclasses.fields(cell)}


def _checked(key: str, kind: Any, value: Any) -> Any:
    if isinstance(value, bool) and not allows_truth(kind):
        raise UserError(f"train.algorithm_args: {key}: expected another value than true or false (found {value!r})")
    try:
        return TypeAdapter(Annotated[kind, Field(allow_inf_nan=False)] if kind is float else kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"train.algorithm_args: {key}: {error.errors()[0]['msg']} (found {value!r})") from None


def nearest(name: str, names: list[str]) -> str:
    """What may have been meant, for an error."""
    near = difflib.get_close_matches(name, names, n=1)
    known = f"known: {', '.join(names)}" if names else "it has none"
    return f"did you mean {near[0]!r}?" if near else known
