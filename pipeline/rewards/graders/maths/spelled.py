"""Numbers in words."""

from __future__ import annotations

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen"""
_ROUND = "twenty thirty forty fifty sixty seventy eighty ninety"
_WORDS = {word: value for value, word in enumerate(_ONES.split())}
_TENS = {word: 10 * value for value, word in enumerate(_ROUND.split(), 2)}
_SCALES = {"thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
_MOST_WORDS = 20


def spelled_number(text: str) -> int | None:
    """The whole number that words spell, None if they spell none.

    >>> spelled_number("twenty-one"), spelled_number("Three hundred and five"), spelled_number("one apple")
    (21, 305, None)
    """
    words = text.lower().replace("-", " ").split()
    if not 0 < len(words) <= _MOST_WORDS or words[0] in ("and", *_SCALES, "hundred"):
        return None
    total, part, last = 0, 0, 1 << 60
    for word in words:
        if word in _WORDS or word in _TENS:
            value = _WORDS.get(word, 0) + _TENS.get(word, 0)
            if value >= last or (last < 20) or (last >= 20 and last < 100 and value >= 10):
                return None
            part, last = part + value, value if value else 1
        elif word == "hundred" and 0 < part < 10:
            part, last = part * 100, 100
        elif word in _SCALES and part and (total == 0 or total % (_SCALES[word] * 1000) == 0):
            total, part, last = total + part * _SCALES[word], 0, 1000
        elif word != "and" or last < 100:
            return None
    return total + part
