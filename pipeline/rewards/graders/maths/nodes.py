"""What a notation is read as: expressions as trees, and the values of one kind that answers are compared as."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


class Unreadable(Exception):
    """A text is no value that can be read here. It is then compared as words."""


@dataclass(frozen=True, slots=True)
class Node:
    """An expression: a number, a symbol, a constant, or an operation on others.

    Operations are add, mul, div, pow, neg, factorial, and names of functions such as sqrt, root, sin, log.
    """

    kind: str
    parts: tuple[Node, ...] = ()
    value: Fraction = Fraction(0)
    """Of a number: exactly what is written."""
    name: str = ""
    """Of a symbol or a constant."""
    decimal: bool = False
    """Of a number: it is written with a decimal point or a power of ten, so it may be rounded."""

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(node.parts)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the variables, in the order of the alphabet."""
        return tuple(sorted({node.name for node in self.walk() if node.kind == "symbol"}))

    @property
    def is_decimal(self) -> bool:
        return any(node.decimal for node in self.walk())


def number(value: Fraction | int, decimal: bool = False) -> Node:
    return Node("number", value=Fraction(value), decimal=decimal)


@dataclass(frozen=True, slots=True)
class Unit:
    """What a number counts, as far as it is known: equal dimensions convert by their factors."""

    dimension: str
    factor: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or an expression, with its unit if it has one that is known."""

    node: Node
    unit: Unit | None = None


@dataclass(frozen=True, slots=True)
class Sequence:
    """Several values: a tuple (1,2), a square [1,2], a set {1,2}, or a list 1,2 whose order does not count."""

    shape: str
    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Interval:
    low: Value
    high: Value
    closed: tuple[bool, bool]
    """Whether the lower and the upper end belong to it."""


@dataclass(frozen=True, slots=True)
class Union:
    """Sets joined by ∪."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Assigned:
    """x = 5: a value and its name."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Relation:
    """An equation or an inequality between expressions: a < b ≤ c has two operators and three sides."""

    operators: tuple[str, ...]
    sides: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Value, ...], ...]


@dataclass(frozen=True, slots=True)
class RatioNode:
    """2:3, or a time of day."""

    items: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Based:
    """1011_2: digits in another base."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Words:
    """A text that is no mathematics: compared without case and spaces."""

    text: str


Value = Quantity | Sequence | Interval | Union | Assigned | Relation | Matrix | RatioNode | Based | Words
