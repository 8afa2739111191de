"""What a figure can carry: when few questions or seeds stand behind it, that is said beside it."""

from __future__ import annotations

import math

WIDE = 0.10
"""Half a 95 % interval of an accuracy beyond which it is said how wide that is: the size of gains that runs are begun for."""


def half_width(questions: int) -> float:
    """Half of the 95 % interval of an accuracy near one half, from that many questions.

    >>> round(half_width(100), 3), round(half_width(6), 3), half_width(1)
    (0.098, 0.4, 0.5)
    """
    return min(1.96 * math.sqrt(0.25 / questions), 0.5) if questions else 0.5


def few_questions(questions: int) -> str | None:
    """What to say of an accuracy over so few questions; None where there are enough.

    >>> few_questions(6)
    '6 held-out questions: an accuracy of them is known to ±40 points; ±10 takes 97'
    >>> few_questions(97) is None
    True
    """
    if half_width(questions) < WIDE:
        return None
    enough = math.ceil(0.25 * (1.96 / WIDE) ** 2)
    what = "1 held-out question" if questions == 1 else f"{questions:,} held-out questions"
    return f"{what}: an accuracy of them is known to ±{100 * half_width(questions):.0f} points; ±10 takes {enough}"


def few_seeds(seeds: int, algorithms: int) -> str | None:
    """What to say of a ranking of algorithms by so few trainings each; None where there are several, or nothing is ranked.

    >>> few_seeds(1, 4)
    '1 seed: another may rank these 4 otherwise; --seeds 3 shows how far they lie apart by chance'
    >>> few_seeds(3, 4), few_seeds(1, 1)
    (None, None)
    """
    if seeds > 1 or algorithms < 2:
        return None
    return f"1 seed: another may rank these {algorithms} otherwise; --seeds 3 shows how far they lie apart by chance"
