"""Whether two values of one kind are the same."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Sequence as Several
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.rewards.graders.maths.evaluate import DIGITS, exactly, is_computed, numerically
from pipeline.rewards.graders.maths.nodes import (
    Assigned,
    Based,
    Interval,
    Matrix,
    Node,
    Quantity,
    RatioNode,
    Relation,
    Sequence,
    Union,
    Unit,
    Unreadable,
    Value,
    Words,
    number,
)
from pipeline.rewards.graders.maths.units import POUND

POINTS = 6
"""Places at which expressions with variables are compared: two thirds of them positive."""
_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "=": "=", "≠": "≠"}


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """How values are compared."""

    precision: int = 6
    """Decimal places, where a number is written as a decimal."""
    strict: bool = True
    """False: variables are matched by position, and sets may equal tuples."""

    def same(self, wanted: Value, given: Value) -> bool:
        """Whether `given` is the value `wanted`. What cannot be computed within bounds is the same if it is written alike."""
        try:
            return wanted == given or self._same(wanted, given)
        except Unreadable:
            return isinstance(wanted, Quantity) and isinstance(given, Quantity) and _alike(wanted.node, given.node)

    def _same(self, wanted: Value, given: Value) -> bool:
        if isinstance(wanted, Assigned) and isinstance(given, Assigned):
            return (wanted.name == given.name or not self.strict) and self.same(wanted.value, given.value)
        if isinstance(wanted, Relation) != isinstance(given, Relation) and {"="} in (_operators(wanted), _operators(given)):
            wanted, given = _as_equation(wanted), _as_equation(given)
        if isinstance(wanted, Assigned):
            return self.same(wanted.value, given)
        if isinstance(given, Assigned):
            return self.same(wanted, given.value)
        if isinstance(wanted, Relation) != isinstance(given, Relation):
            wanted, given = _simpler(wanted), _simpler(given)
        if isinstance(wanted, Quantity) and isinstance(given, Quantity):
            return self._same_quantity(wanted, given)
        if isinstance(wanted, Relation) and isinstance(given, Relation):
            return self._same_relation(wanted, given)
        if isinstance(wanted, Interval | Sequence) and isinstance(given, Interval | Sequence):
            return self._same_collection(wanted, given)
        if isinstance(wanted, Union) or isinstance(given, Union):
            return self._same_unordered(_joined(wanted), _joined(given))
        if isinstance(wanted, RatioNode) and isinstance(given, RatioNode):
            return self._same_items(wanted.items, given.items)
        if isinstance(wanted, Matrix) and isinstance(given, Matrix):
            pairs = zip(wanted.rows, given.rows, strict=False)
            return len(wanted.rows) == len(given.rows) and all(self._same_items(a, b) for a, b in pairs)
        if isinstance(wanted, Words) and isinstance(given, Words):
            return wanted.text == given.text
        return isinstance(wanted, Based) and wanted == given

    def _same_items(self, wanted: Several[Value], given: Several[Value]) -> bool:
        return len(wanted) == len(given) and all(self.same(a, b) for a, b in zip(wanted, given, strict=True))

    def _same_unordered(self, wanted: Several[Value], given: Several[Value]) -> bool:
        """Each of one has its own in the other."""
        left = list(given)
        if len(wanted) != len(left):
            return False
        for value in wanted:
            match = next((i for i, other in enumerate(left) if self.same(value, other)), None)
            if match is None:
                return False
            del left[match]
        return True

    def _same_collection(self, wanted: Interval | Sequence, given: Interval | Sequence) -> bool:
        if isinstance(wanted, Interval) or isinstance(given, Interval):
            a, b = _interval(wanted), _interval(given)
            if a is None or b is None:
                return False
            return a.closed == b.closed and self.same(a.low, b.low) and self.same(a.high, b.high)
        loose = ("set", "list")
        if wanted.shape in loose and given.shape in loose:
            return self._same_unordered(self._distinct(wanted), self._distinct(given))
        long_enough = len(wanted.items) > 2 and {wanted.shape, given.shape} == {"tuple", "square"}
        if wanted.shape == given.shape or not self.strict or long_enough:
            return self._same_items(wanted.items, given.items)
        return False

    def _distinct(self, values: Sequence) -> list[Value]:
        """The members of a set, each once; of a list all of them."""
        if values.shape == "list":
            return list(values.items)
        found: list[Value] = []
        for value in values.items:
            if not any(self.same(value, other) for other in found):
                found.append(value)
        return found

    def _same_quantity(self, wanted: Quantity, given: Quantity) -> bool:
        a, b = wanted.node, given.node
        if wanted.unit is not None and given.unit is not None and wanted.unit != given.unit:
            if wanted.unit.dimension != given.unit.dimension:
                pounds = {wanted.unit, given.unit} == {POUND, Unit("sterling")}
                return pounds and self.same_number(a, b)
            b = Node("mul", (b, number(given.unit.factor / wanted.unit.factor)))
        return self.same_number(a, b)

    def same_number(self, wanted: Node, given: Node) -> bool:
        """Whether two expressions are equal, for all values of their variables."""
        if wanted == given:
            return True
        if not (is_computed(wanted) and is_computed(given)):
            raise Unreadable("too much to compute")
        if not self.strict:
            given = _renamed(given, wanted.symbols)
        rounded = wanted.is_decimal or given.is_decimal
        if not wanted.symbols and not given.symbols:
            return self._same_constant(wanted, given, rounded)
        if wanted.symbols != given.symbols and not _may_vanish(wanted, given):
            return False
        return _agree(wanted, given, 10.0**-self.precision / 2 if rounded else None)

    def _same_constant(self, wanted: Node, given: Node, rounded: bool) -> bool:
        a, b = exactly(wanted), exactly(given)
        if a is not None and b is not None:
            return a == b or (rounded and abs(a - b) <= self.tolerance(a))
        import mpmath

        with mpmath.workdps(DIGITS):
            x, y = numerically(wanted, {}), numerically(given, {})
            if mpmath.isnan(x) or mpmath.isnan(y):
                return False
            if mpmath.isinf(x) or mpmath.isinf(y):
                return bool(x == y)
            if abs(x - y) <= max(abs(x), abs(y)) * mpmath.mpf(10) ** (10 - DIGITS):
                return True
            if not rounded or abs(x) > 1e300:
                return False
            limit = self.tolerance(Fraction(float(abs(x))) if abs(x) > 1e-300 else Fraction(0))
            return bool(abs(x - y) <= mpmath.mpf(limit.numerator) / limit.denominator)

    def tolerance(self, wanted: Fraction) -> Fraction:
        """How far a decimal may be off: half a unit of the last place, or of the last digit where a number is small.

        A number below 10^-(precision // 2) is compared to `precision` significant digits: all numbers below a millionth
        would be equal otherwise.
        """
        places = Fraction(1, 2) / Fraction(10) ** self.precision
        if self.precision <= 0 or abs(wanted) >= Fraction(1, 10 ** (self.precision // 2)):
            return places
        if wanted == 0:
            return Fraction(0)
        size = math.floor(math.log10(abs(wanted.numerator)) - math.log10(wanted.denominator))
        return Fraction(1, 2) * Fraction(10) ** (size + 1 - self.precision)

    def _same_relation(self, wanted: Relation, given: Relation) -> bool:
        a, b = _interval(wanted), _interval(given)
        if a is not None and b is not None:
            return self.same(a, b)
        turned = Relation(tuple(_FLIPPED[o] for o in given.operators[::-1]), given.sides[::-1])
        for other in (given, turned):
            if wanted.operators == other.operators:
                if all(_alike(x, y) for x, y in zip(wanted.sides, other.sides, strict=True)):
                    return True
                if len(wanted.operators) == 1 and self._proportional(wanted, other):
                    return True
                if len(wanted.operators) > 1 and any(side.symbols for side in wanted.sides):
                    return all(self.same_number(x, y) for x, y in zip(wanted.sides, other.sides, strict=True))
        return False

    def _proportional(self, wanted: Relation, given: Relation) -> bool:
        """2x = 4y + 2 and x - 2y = 1: their differences have one ratio everywhere, above 0 for inequalities."""
        a, b = (Node("add", (r.sides[0], Node("neg", (r.sides[1],)))) for r in (wanted, given))
        if not a.symbols or a.symbols != b.symbols or not (is_computed(a) and is_computed(b)):
            return False
        import mpmath

        with mpmath.workdps(DIGITS):
            ratios = []
            for point in range(POINTS):
                symbols = {name: _place(name, point) for name in a.symbols}
                x, y = numerically(a, symbols), numerically(b, symbols)
                if x == 0 or y == 0:
                    return False
                ratios.append(x / y)
            near = all(abs(ratio - ratios[0]) <= abs(ratios[0]) * mpmath.mpf(10) ** (10 - DIGITS) for ratio in ratios)
            return bool(near and (wanted.operators[0] in "=≠" or mpmath.re(ratios[0]) > 0))


def _simpler(value: Value) -> Value:
    """An inequality of one variable as an interval; an equation between equal numbers as the last of them."""
    if not isinstance(value, Relation):
        return value
    if (interval := _interval(value)) is not None:
        return interval
    values = [exactly(side) if not side.symbols else None for side in value.sides]
    if set(value.operators) == {"="} and values[0] is not None and all(v == values[0] for v in values):
        return Quantity(value.sides[-1])
    return value


def _interval(value: Value) -> Interval | None:
    """The interval that a value may be: (1,2), [1,2], 1 < x < 2, x > 5."""
    if isinstance(value, Interval):
        return value
    infinity = Node("constant", name="infinity")
    if isinstance(value, Sequence) and value.shape in ("tuple", "square") and len(value.items) == 2:
        return Interval(value.items[0], value.items[1], (value.shape == "square", value.shape == "square"))
    if not isinstance(value, Relation):
        return None
    operators, sides = value.operators, value.sides
    if operators[0] in ">≥":
        operators, sides = tuple(_FLIPPED[operator] for operator in operators[::-1]), sides[::-1]
    if any(operator not in "<≤" for operator in operators):
        return None
    named = [side.kind == "symbol" for side in sides]
    if sum(named) != 1 or any(side.symbols for side, name in zip(sides, named, strict=True) if not name):
        return None
    closed = [operator == "≤" for operator in operators]
    if len(sides) == 3 and named[1]:
        return Interval(Quantity(sides[0]), Quantity(sides[2]), (closed[0], closed[1]))
    if len(sides) == 2 and named[0]:
        return Interval(Quantity(Node("neg", (infinity,))), Quantity(sides[1]), (False, closed[0]))
    if len(sides) == 2:
        return Interval(Quantity(sides[0]), Quantity(infinity), (closed[0], False))
    return None


def _operators(value: Value) -> set[str]:
    return set(value.operators) if isinstance(value, Relation) else set()


def _as_equation(value: Value) -> Value:
    """y = x + 1 as an equation between expressions, of which a multiple is the same."""
    if isinstance(value, Assigned) and isinstance(value.value, Quantity) and value.value.node.symbols:
        return Relation(("=",), (Node("symbol", name=value.name), value.value.node))
    return value


def _joined(value: Value) -> tuple[Value, ...]:
    """The parts of a union, also where they are written as inequalities: x < 1 or x > 3."""
    if isinstance(value, Union):
        return value.items
    if isinstance(value, Sequence) and value.shape == "list" and all(isinstance(item, Relation) for item in value.items):
        return tuple(_interval(item) or item for item in value.items)
    return ()


def _alike(one: Node, other: Node) -> bool:
    """Whether two expressions are the same but for the order of terms and factors."""
    return bool(_arranged(one) == _arranged(other))


def _arranged(node: Node) -> Any:
    parts = [_arranged(part) for part in node.parts]
    if node.kind in ("add", "mul"):
        flat: list[Any] = []
        for part in parts:
            flat.extend(part[1] if part[0] == node.kind else [part])
        return (node.kind, sorted(flat, key=repr))
    return (node.kind, parts, str(node.value), node.name)


def _renamed(node: Node, names: tuple[str, ...]) -> Node:
    """The expression with its variables named after those of another, one by one in the order of the alphabet."""
    mine = node.symbols
    if len(mine) != len(names) or mine == names:
        return node
    known = dict(zip(mine, names, strict=True))

    def renamed(part: Node) -> Node:
        if part.kind == "symbol":
            return Node("symbol", name=known[part.name])
        return Node(part.kind, tuple(renamed(p) for p in part.parts), part.value, part.name, part.decimal)

    return renamed(node)


def _may_vanish(wanted: Node, given: Node) -> bool:
    """Whether a variable of one alone may cancel: x - x + 5 is 5."""
    return set(wanted.symbols) <= set(given.symbols) or set(given.symbols) <= set(wanted.symbols)


def _place(name: str, point: int) -> Any:
    """A number for a variable: the same for every expression, and of no pattern."""
    import mpmath

    drawn = random.Random(zlib.crc32(f"{name}/{point}".encode()))
    value = mpmath.mpf(drawn.randrange(3 * 10**8, 27 * 10**8)) / 10**9
    return -value if point % 3 == 2 else value


def _agree(wanted: Node, given: Node, tolerance: float | None) -> bool:
    """Whether two expressions have the same value at every point where both are real; if there is none, at every point."""
    import mpmath

    names = sorted({*wanted.symbols, *given.symbols})
    found, other = False, []
    memories: tuple[dict[int, Any], dict[int, Any]] = ({}, {})
    with mpmath.workdps(DIGITS):
        for point in range(POINTS):
            symbols = {name: _place(name, point) for name in names}
            try:
                x, y = numerically(wanted, symbols, memories[0]), numerically(given, symbols, memories[1])
            except Unreadable:
                continue
            limit = mpmath.mpf(10) ** (10 - DIGITS) if tolerance is None else mpmath.mpf(tolerance)
            near = mpmath.isfinite(x) and mpmath.isfinite(y) and abs(x - y) <= max(abs(x), abs(y)) * limit
            if mpmath.im(x) != 0 or mpmath.im(y) != 0:
                other.append(bool(near))
            elif not near:
                return False
            else:
                found = True
    return found or (bool(other) and all(other))
