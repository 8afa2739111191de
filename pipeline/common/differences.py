"""What differs between two trees of settings or figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


class Absent:
    """Stands for what is not there."""

    def __repr__(self) -> str:
        return "not there"


ABSENT = Absent()


@dataclass(frozen=True)
class Difference:
    """One setting or figure."""

    key: str
    """Where it stands: sampling.temperature."""
    a: Any
    b: Any

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key} | {side: value for side, value in (("a", self.a), ("b", self.b)) if value is not ABSENT}


def differences(a: Any, b: Any) -> list[Difference]:
    """Leaves of two trees that differ, by their place.

    >>> differences({"x": {"y": 1, "z": 2}, "k": [1, 8]}, {"x": {"y": 1.5}, "k": [1, 8]})
    [Difference(key='x.y', a=1, b=1.5), Difference(key='x.z', a=2, b=not there)]
    """
    one, other = dict(_leaves(a)), dict(_leaves(b))
    pairs = ((key, one.get(key, ABSENT), other.get(key, ABSENT)) for key in one | other)
    return [Difference(key, left, right) for key, left, right in pairs if not _same(left, right)]


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Mappings are opened, and lists of mappings; any other list is a value."""
    if isinstance(tree, Mapping) and (tree or not place):
        for name, value in tree.items():
            yield from _leaves(value, f"{place}.{name}" if place else str(name))
    elif isinstance(tree, list | tuple) and any(isinstance(item, Mapping) for item in tree):
        for number, value in enumerate(tree):
            yield from _leaves(value, f"{place}.{number}" if place else str(number))
    else:
        yield place, tree


def _same(a: Any, b: Any) -> bool:
    """Equal, and not only as True equals 1. NaN is the same as NaN."""
    if isinstance(a, float) and isinstance(b, float) and a != a and b != b:
        return True
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
