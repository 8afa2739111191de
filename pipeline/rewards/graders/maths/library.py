"""The library's own behavior: math-verify chooses the answers of a completion, and compares each with the reference."""

from __future__ import annotations

import logging
import re

from pipeline.rewards.graders.text import last_captured

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")


def verified(completion: str, wanted: str, *, extract: str | None, precision: int, strict: bool) -> float:
    """1 if math-verify finds an expression in the completion that equals the answer, else 0.

    Boxed and announced answers come first, then the last expression. An answer that is bare LaTeX, such as \\frac12, is read as
    if it stood between dollar signs. The library's own time limits are off, since they turn a slow comparison into a silent 0;
    the worker's limit makes it an error.

    Raises:
        ValueError: math-verify reads no expression in the answer.
    """
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    gold = parse(wanted if _DELIMITED.search(wanted) else f"${wanted}$", parsing_timeout=None)
    if not gold:
        raise ValueError(f"math-verify reads no expression in the answer {wanted[:80]!r}")
    given = completion if extract is None else last_captured(extract, completion)
    if given is None:
        return 0.0
    found = parse(given, parsing_timeout=None)
    return float(verify(gold, found, float_rounding=precision, strict=strict, timeout_seconds=None))
