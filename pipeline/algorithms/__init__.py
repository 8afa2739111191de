"""Algorithms: one small file per family, each a declaration of cells with its paper. Importing this imports no torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.algorithms import grpo, rec, reinforce
from pipeline.algorithms.policy_gradient import PolicyGradient
from pipeline.errors import UserError

Algorithm = PolicyGradient

ALGORITHMS: dict[str, Algorithm] = {
    algorithm.name: algorithm for module in (reinforce, grpo, rec) for algorithm in module.ALGORITHMS
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
    for cell_name in ("advantage", "importance", "trust_region", "aggregation"):
        cell = getattr(algorithm, cell_name)
        for field in dataclasses.fields(cell):
            yield cell_name, field.name, getattr(cell, field.name)


def _with_setting(algorithm: Algorithm, key: str, value: Any) -> Algorithm:
    cell_name, _, field_name = key.rpartition(".")
    found = [(cell, name) for cell, name, _ in settings_of(algorithm) if name == field_name and cell_name in ("", cell)]
    if len(found) != 1:
        names = [name if not cell_name else f"{cell}.{name}" for cell, name, _ in settings_of(algorithm)]
        raise UserError(f"train.algorithm_args: {algorithm.name} has no setting {key!r}; {_nearest(key, names)}")
    cell_name, field_name = found[0]
    cell = getattr(algorithm, cell_name)
    kind = get_type_hints(type(cell))[field_name]
    try:
        checked = TypeAdapter(Annotated[kind, Field(allow_inf_nan=False)] if kind is float else kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"train.algorithm_args: {key}: {error.errors()[0]['msg']} (found {value!r})") from None
    return dataclasses.replace(algorithm, **{cell_name: dataclasses.replace(cell, **{field_name: checked})})


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    known = f"known: {', '.join(names)}" if names else "it has none"
    return f"did you mean {near[0]!r}?" if near else known
