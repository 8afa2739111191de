"""What an expression is worth: exactly where it is a fraction of bounded size, otherwise to 40 digits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

from pipeline.rewards.graders.maths.nodes import Node, Unreadable

DIGITS = 50
"""Decimal digits that are computed; 40 of them are compared."""
MOST_BITS = 20_000
"""Bits of a number that is computed exactly."""
MOST_FUNCTIONS = 40
"""Roots, powers and functions of an expression that are computed."""
LARGEST_FACTORIAL = 1_000
_LARGEST_EXPONENT_BITS = 64
_LARGEST_ANGLE = 10**12


@lru_cache(maxsize=512)
def exactly(node: Node) -> Fraction | None:
    """The fraction that an expression is; None if it is none.

    Raises:
        Unreadable: it divides by zero, or is too large to be computed exactly.
    """
    if node.kind == "number":
        return node.value
    if not node.parts:
        return None
    parts = [exactly(part) for part in node.parts]
    values = [part for part in parts if part is not None]
    if len(values) < len(parts):
        return None
    if sum(value.numerator.bit_length() + value.denominator.bit_length() for value in values) > MOST_BITS:
        raise Unreadable("too large")
    return _exact_operation(node.kind, values)


def _exact_operation(kind: str, values: list[Fraction]) -> Fraction | None:
    first = values[0]
    if kind == "add":
        return sum(values, Fraction(0))
    if kind == "mul":
        return math.prod(values, start=Fraction(1))
    if kind == "neg":
        return -first
    if kind == "div":
        if values[1] == 0:
            raise Unreadable("a division by zero")
        return first / values[1]
    if kind == "pow":
        return _exact_power(first, values[1])
    if kind in ("sqrt", "root"):
        return _exact_root(first, int(values[1]) if kind == "root" and values[1].denominator == 1 else 2 if kind == "sqrt" else 0)
    if kind == "abs":
        return abs(first)
    if kind in ("floor", "ceil"):
        return Fraction(math.floor(first) if kind == "floor" else math.ceil(first))
    if kind in ("max", "min"):
        return max(values) if kind == "max" else min(values)
    whole = [int(value) for value in values if value.denominator == 1 and value >= 0]
    if len(whole) < len(values):
        return None
    if kind == "factorial":
        return Fraction(math.factorial(_small(whole[0])))
    if kind == "binom":
        return Fraction(math.comb(_small(whole[0]), whole[1]))
    if kind in ("gcd", "lcm"):
        return Fraction(math.gcd(*whole) if kind == "gcd" else math.lcm(*whole))
    return None


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if base == 0 and exponent < 0:
        raise Unreadable("a division by zero")
    if base in (0, 1) and exponent > 0:
        return base
    if exponent.denominator != 1:
        root = _exact_root(base, exponent.denominator) if exponent.denominator < 100 else None
        return None if root is None else _exact_power(root, Fraction(exponent.numerator))
    bits = base.numerator.bit_length() + base.denominator.bit_length()
    if abs(exponent) * bits > MOST_BITS:
        raise Unreadable("too large")
    return Fraction(base ** int(exponent))


def _small(value: int) -> int:
    if value > LARGEST_FACTORIAL:
        raise Unreadable("too large")
    return value


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    if degree < 1 or (base < 0 and degree % 2 == 0) or degree > 100:
        return None
    top, bottom = _whole_root(abs(base.numerator), degree), _whole_root(base.denominator, degree)
    if top is None or bottom is None:
        return None
    return Fraction(-top if base < 0 else top, bottom)


def _whole_root(value: int, degree: int) -> int | None:
    """The whole number whose power is `value`, None if there is none."""
    if degree == 2:
        root = math.isqrt(value)
    else:
        low, high = 0, 1 << (value.bit_length() // degree + 1)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if middle**degree <= value else (low, middle - 1)
        root = low
    return root if root**degree == value else None


def is_computed(node: Node) -> bool:
    """Whether an expression is of a size that is computed."""
    simple = ("number", "symbol", "constant", "add", "mul", "neg", "div")
    return sum(part.kind not in simple for part in node.walk()) <= MOST_FUNCTIONS


def numerically(node: Node, symbols: Mapping[str, Any], known: dict[int, Any] | None = None) -> Any:
    """An mpmath number of `DIGITS` digits, under `mpmath.workdps(DIGITS)`.

    Args:
        symbols: values of the variables.
        known: values of parts without variables, by the part's id, for an expression that is computed at several points.

    Raises:
        Unreadable: there is no such number, or it is out of bounds.
    """
    known = {} if known is None else known
    if id(node) in known:
        return known[id(node)]
    value = _value(node, symbols, known)
    if not node.symbols:
        known[id(node)] = value
    return value


def _value(node: Node, symbols: Mapping[str, Any], known: dict[int, Any]) -> Any:
    import mpmath

    if node.kind == "symbol":
        return symbols[node.name]
    if node.kind == "constant":
        return {"pi": +mpmath.pi, "e": +mpmath.e, "i": mpmath.mpc(0, 1), "infinity": mpmath.inf}[node.name]
    if node.kind == "number":
        return mpmath.mpf(node.value.numerator) / node.value.denominator
    parts = [numerically(part, symbols, known) for part in node.parts]
    try:
        return _operation(node.kind, parts)
    except (ValueError, ZeroDivisionError, OverflowError, ArithmeticError, TypeError, NotImplementedError) as error:
        raise Unreadable(f"{node.kind}: {error}") from None


def _operation(kind: str, parts: list[Any]) -> Any:
    import mpmath

    first = parts[0]
    if kind == "add":
        return mpmath.fsum(parts)
    if kind == "mul":
        return mpmath.fprod(parts)
    if kind == "neg":
        return -first
    if kind == "div":
        return first / parts[1]
    if kind == "pow":
        _bounded(parts[1], 1 << _LARGEST_EXPONENT_BITS)
        if first != 0 and mpmath.isfinite(first):
            _bounded(parts[1] * mpmath.log(abs(first)), 1 << _LARGEST_EXPONENT_BITS)
        return mpmath.power(first, parts[1])
    if kind == "root":
        return mpmath.power(first, 1 / parts[1]) if first >= 0 or parts[1] % 2 == 0 else -mpmath.power(-first, 1 / parts[1])
    if kind in ("exp", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc"):
        _bounded(first, _LARGEST_ANGLE)
    if kind == "log" and len(parts) == 2:
        return mpmath.log(first) / mpmath.log(parts[1])
    if kind == "factorial":
        _bounded(first, LARGEST_FACTORIAL * 1000)
        return mpmath.gamma(first + 1)
    if kind == "abs":
        return mpmath.fabs(first)
    if kind in ("max", "min"):
        return max(parts) if kind == "max" else min(parts)
    names = {"ln": "log", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "binom": "binomial"}
    if kind == "log":
        return mpmath.log10(first)
    if kind == "binom":
        _bounded(max(map(abs, parts)), LARGEST_FACTORIAL * 1000)
    if kind in ("gcd", "lcm"):
        raise Unreadable(f"{kind} of what is no whole number")
    return getattr(mpmath, names.get(kind, kind))(*parts)


def _bounded(value: Any, limit: int) -> None:
    import mpmath

    if mpmath.isfinite(value) and abs(value) > limit:
        raise Unreadable("out of bounds")
