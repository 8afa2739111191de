"""Dotted names of what lies inside a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def at_path(row: Mapping[str, Any], path: str) -> Any:
    """A column by its name, or what lies below one: `metrics.acc`, `choices.0.text`. JSON in a text is looked into.

    Raises:
        KeyError: it is not there.
    """
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
            value = json.loads(value)
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            raise KeyError(path)
    return value
