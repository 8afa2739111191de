"""Algorithms: one small file per family, each a declaration of cells with its paper. Importing this imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, cast, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.algorithms import grpo, imitation, mirror_descent, off_policy, preference, rec, reinforce
from pipeline.algorithms.algorithm import Algorithm, cells_of
from pipeline.errors import UserError

__all__ = ["ALGORITHMS", "Algorithm", "resolve", "settings_of"]

MODULES = (reinforce, grpo, rec, off_policy, imitation, mirror_descent, preference)
ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for module in MODULES for algorithm in cast("tuple[Algorithm, ...]", module.ALGORITHMS)
}


def resolve(name: str, settings: Mapping[str, Any] | None = None) -> Algorithm:
    """An algorithm by name, with some of its cells' settings changed.

    Args:
        settings: by the field's name, such as {"low": 0.6}; or with its cell's, such as {"trust_region.low": 0.6}.

    Raises:
        UserError: no such algorithm or setting (with the nearest name), or a value that the setting does not take.
    """
    if name not in ALGORITHMS:
        raise UserError(f"train.algorithm: no algorithm {name!r}; {_nearest(name, list(ALGORITHMS))}")
    algorithm = ALGORITHMS[name]
    for key, value in (settings or {}).items():
        algorithm = _with_setting(algorithm, key, value)
    return algorithm


def settings_of(algorithm: Algorithm) -> Iterator[tuple[str, str, Any]]:
    """Every setting: the cell it belongs to, its name, its value."""
    for slot, place, cell in cells_of(algorithm):
        owner = slot if place is None else f"{slot}.{place}"
        for field in dataclasses.fields(cell):
            yield owner, field.name, getattr(cell, field.name)


def _with_setting(algorithm: Algorithm, key: str, value: Any) -> Algorithm:
    owner, _, name = key.rpartition(".")
    found = [(slot, place, cell) for slot, place, cell in cells_of(algorithm) if _matches(owner, name, slot, place, cell)]
    if not found:
        names = [f"{cell}.{field}" if owner else field for cell, field, _ in settings_of(algorithm)]
        raise UserError(f"train.algorithm_args: {algorithm.name} has no setting {key!r}; {_nearest(key, names)}")
    if len(found) > 1:
        names = [f"{slot if place is None else f'{slot}.{place}'}.{name}" for slot, place, _ in found]
        raise UserError(f"train.algorithm_args: {key!r} is a setting of several cells; write {' or '.join(names)}")
    slot, place, cell = found[0]
    changed = dataclasses.replace(cell, **{name: _checked(key, get_type_hints(type(cell), include_extras=True)[name], value)})
    if place is None:
        return algorithm.replace(**{slot: changed})
    cells = list(getattr(algorithm, slot))
    cells[place] = changed
    return algorithm.replace(**{slot: tuple(cells)})


def _matches(owner: str, name: str, slot: str, place: int | None, cell: Any) -> bool:
    owners = ("", slot) if place is None else ("", slot, f"{slot}.{place}")
    return owner in owners and name in {field.name for field in dataclasses.fields(cell)}


def _checked(key: str, kind: Any, value: Any) -> Any:
    try:
        return TypeAdapter(Annotated[kind, Field(allow_inf_nan=False)] if kind is float else kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"train.algorithm_args: {key}: {error.errors()[0]['msg']} (found {value!r})") from None


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    known = f"known: {', '.join(names)}" if names else "it has none"
    return f"did you mean {near[0]!r}?" if near else known
