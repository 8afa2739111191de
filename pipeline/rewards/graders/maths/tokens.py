"""Tokens of one answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from pipeline.rewards.graders.maths.nodes import Unreadable
from pipeline.rewards.graders.maths.tidy import TEXT_CLOSE, TEXT_OPEN

MOST_TOKENS = 300
MOST_DIGITS = 400
"""Digits of a number that is read; a longer one is compared as a text."""
LARGEST_POWER_OF_TEN = 400

_TOKEN = re.compile(
    rf"""(?P<space>\s+)
    |(?P<number>(?:\d+(?:\.(?:\d+|(?!\.)))?|\.\d+)(?:[eE][+-]?\d+(?![a-zA-Z\d]))?)
    |(?P<text>{TEXT_OPEN}[^{TEXT_CLOSE}]*{TEXT_CLOSE})
    |(?P<command>\\[a-zA-Z]+|\\.)
    |(?P<word>[^\W\d_]+(?:'[a-z]+)?)
    |(?P<sign>\*\*|<=|>=|!=|==|\.\.\.|.)""",
    re.VERBOSE | re.DOTALL,
)
_SIGNS = {"**": "^", "<=": r"\le", ">=": r"\ge", "!=": r"\ne", "==": "="}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    """number, text, command, word or sign."""
    text: str
    spaced: bool = False
    """Whether a space stands before it."""

    @property
    def value(self) -> Fraction:
        """Of a number.

        Raises:
            Unreadable: more digits than are read.
        """
        digits, _, exponent = self.text.lower().partition("e")
        if len(digits) > MOST_DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > LARGEST_POWER_OF_TEN:
            raise Unreadable(f"a number of {len(self.text)} characters")
        return Fraction(digits.rstrip(".")) * Fraction(10) ** int(exponent or 0)

    @property
    def is_decimal(self) -> bool:
        return "." in self.text or "e" in self.text.lower()


def tokens_of(text: str) -> list[Token]:
    """The tokens of a tidied text.

    Raises:
        Unreadable: too many of them.
    """
    found: list[Token] = []
    spaced = False
    for match in _TOKEN.finditer(text):
        kind, word = str(match.lastgroup), match[0]
        if kind == "space":
            spaced = True
            continue
        if kind == "text":
            word = word[1:-1].strip()
        elif word in _SIGNS:
            word = _SIGNS[word]
            kind = "command" if word[0] == "\\" else kind
        found.append(Token(kind, word, spaced))
        spaced = False
        if len(found) > MOST_TOKENS:
            raise Unreadable("too many signs")
    return found
