"""Which well-known data set some rows are of."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from pipeline.common.paths import at_path
from pipeline.prepare import known_sets as one_a_file
from pipeline.prepare.known_set import KnownSet

LOOKED_AT = 50
"""First rows."""


@cache
def known_sets() -> dict[str, KnownSet]:
    """Every set by name: one in each module of `known_sets`."""
    modules = [
        importlib.import_module(f"{one_a_file.__name__}.{found.name}") for found in pkgutil.iter_modules(one_a_file.__path__)
    ]
    return {module.SET.name: module.SET for module in modules}


def recognized(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> KnownSet | None:
    """The set that has these columns, and most of its answers where it says; of several the one that names most columns."""
    fitting = [one for one in known_sets().values() if set(columns) >= set(one.columns) and _is_of(one, rows[:LOOKED_AT])]
    return max(fitting, key=lambda one: len(one.columns), default=None)


def _is_of(one: KnownSet, rows: Sequence[dict[str, Any]]) -> bool:
    return sum(_fits(one, row) for row in rows) > len(rows) / 2


def _fits(one: KnownSet, row: dict[str, Any]) -> bool:
    try:
        question, answer = at_path(row, one.question), at_path(row, one.answer)
    except (KeyError, ValueError):
        return False
    if one.begins and not str(question).startswith(one.begins):
        return False
    return answer is not None and (one.answer_pattern is None or re.search(one.answer_pattern, str(answer)) is not None)
