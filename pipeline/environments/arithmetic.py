"""The value of an arithmetic expression, by a parser: nothing that a model wrote is evaluated as code.

    sum     = product {("+" | "-") product}
    product = power {("*" | "/" | "//" | "%") power}
    power   = ("+" | "-") power | atom ["**" power]
    atom    = number | "(" sum ")"

Numbers are whole, or decimals that are read exactly. Sizes are bounded before anything is computed, so that every answer comes
within milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

MOST_CHARACTERS = 200
"""Of an expression."""
MOST_DEPTH = 32
"""Of parentheses, signs and powers."""
MOST_BITS = 4096
"""Of a numerator or a denominator."""
MOST_DIGITS = 12
"""Behind the point of what is no whole number."""

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?|\.\d+)|(\*\*|//|[-+*/%()]))")


class NotArithmetic(ValueError):
    """Why an expression has no value."""


def value_of(expression: str) -> str:
    """The value, written as a whole number, or as a decimal of at most `MOST_DIGITS` places.

    >>> value_of("37*48-26"), value_of("2 ** -1"), value_of("-7 // 2"), value_of("(1/3)*3"), value_of("2/3")
    ('1750', '0.5', '-4', '1', '0.666666666667')

    Raises:
        NotArithmetic: it is no arithmetic, divides by zero, or is too large.
    """
    if len(expression) > MOST_CHARACTERS:
        raise NotArithmetic(f"longer than {MOST_CHARACTERS} characters")
    return spelled(_Calculation(expression).value())


def spelled(value: Fraction) -> str:
    """A number as the calculator writes it."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = round(abs(value) * 10**MOST_DIGITS)
    whole, rest = divmod(scaled, 10**MOST_DIGITS)
    text = f"{whole}.{rest:0{MOST_DIGITS}d}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 and scaled else text


class _Calculation:
    def __init__(self, expression: str) -> None:
        self._tokens = list(_tokens(expression))
        self._place = self._depth = 0

    def value(self) -> Fraction:
        found = self._sum()
        if self._place < len(self._tokens):
            raise NotArithmetic(f"unexpected {self._tokens[self._place]!r}")
        return found

    def _next(self, *wanted: str) -> str | None:
        """The next token, if it is one of those."""
        if self._place < len(self._tokens) and self._tokens[self._place] in wanted:
            self._place += 1
            return self._tokens[self._place - 1]
        return None

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._next("+", "-"):
            right = self._product()
            value = _bounded(value + right if operator == "+" else value - right)
        return value

    def _product(self) -> Fraction:
        value = self._power()
        while operator := self._next("*", "//", "/", "%"):
            right = self._power()
            if operator != "*" and right == 0:
                raise NotArithmetic("division by zero")
            value = _bounded(_multiplied(operator, value, right))
        return value

    def _power(self) -> Fraction:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise NotArithmetic(f"nested deeper than {MOST_DEPTH}")
        if sign := self._next("+", "-"):
            value = self._power()
            value = -value if sign == "-" else value
        else:
            value = self._atom()
            if self._next("**"):
                value = _raised(value, self._power())
        self._depth -= 1
        return value

    def _atom(self) -> Fraction:
        if self._next("("):
            value = self._sum()
            if not self._next(")"):
                raise NotArithmetic("a parenthesis is not closed")
            return value
        if self._place == len(self._tokens):
            raise NotArithmetic("ends where a number is expected")
        token = self._tokens[self._place]
        if not (token[0].isdigit() or token[0] == "."):
            raise NotArithmetic(f"unexpected {token!r}")
        self._place += 1
        return _bounded(Fraction(token))


def _tokens(expression: str) -> Iterator[str]:
    place, text = 0, expression.strip()
    if not text.isascii():
        raise NotArithmetic("characters that are no arithmetic")
    while place < len(text):
        found = _TOKEN.match(text, place)
        if found is None:
            raise NotArithmetic(f"unexpected {text[place:].strip()[:1]!r}")
        yield found[1] or found[2]
        place = found.end()


def _multiplied(operator: str, left: Fraction, right: Fraction) -> Fraction:
    match operator:
        case "*":
            return left * right
        case "/":
            return left / right
        case "//":
            return Fraction(left // right)
        case _:
            return left % right


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise NotArithmetic("a power with an exponent that is not whole")
    if base == 0 and exponent < 0:
        raise NotArithmetic("division by zero")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if bits * abs(exponent.numerator) > MOST_BITS:
        raise NotArithmetic("too large")
    return Fraction(base**exponent.numerator)


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MOST_BITS:
        raise NotArithmetic("too large")
    return value
