"""A completion as pieces of text that its tokens spell, and how likely each was: for a page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHADES = (0.9, 0.5, 0.1, 0.01)
"""Least probability of each shade, from none to the deepest but one."""


def load_tokenizer(path: Path) -> tuple[Tokenizer | None, str | None]:
    if not path.is_file():
        return None, "The policy has no tokenizer.json, so completions are shown without their tokens."
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path)), None
    except Exception as error:  # the library raises nothing narrower
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return None, f"{path.name} cannot be read ({reason}), so completions are shown without their tokens."


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, int, int]]:
    """Texts that add up to the completion, special tokens included, each with the range of tokens that spell it.

    Tokens that only together spell a character (bytes of one code point) share a piece.
    """
    found = []
    before = start = 0
    for end in range(1, len(ids) + 1):
        known = tokenizer.decode(ids[before:start], skip_special_tokens=False)
        text = tokenizer.decode(ids[before:end], skip_special_tokens=False)
        if (len(text) > len(known) and not text.endswith("\ufffd")) or end == len(ids):
            found.append((text[len(known) :], start, end))
            before, start = start, end
    return found


def shade_of(logprob: float) -> int:
    """
    >>> [shade_of(math.log(p)) for p in (1.0, 0.6, 0.3, 0.05, 0.001)]
    [0, 1, 2, 3, 4]
    """
    probability = math.exp(logprob)
    return sum(probability < least for least in SHADES)
