"""math_verify: 1 if the completion's mathematical answer equals the reference (Hugging Face's math-verify)."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

from pipeline.rewards.graders.text import compile_pattern, last_captured, required

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")


def math_verify(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    extract: str | None = None,
    precision: int = 6,
    strict: bool = True,
) -> float:
    """1 if math-verify finds an expression in the completion that equals the answer, else 0.

    The library chooses the expression: boxed and announced answers first, then the last one. An answer that is bare
    LaTeX, such as \\frac12, is read as if it stood between dollar signs. The library's own time limits are off, since
    they turn a slow comparison into a silent 0; the worker's limit makes it an error.

    Args:
        extract: regular expression; what its last match captures stands for the completion. No match scores 0.
        precision: decimal places to which numbers are compared.
        strict: false: variables are matched by position, and sets may equal tuples.

    Raises:
        ValueError: the prompt has no answer, or math-verify reads no expression in it.
    """
    from math_verify import parse, verify

    wanted = required(answer).strip()
    gold = parse(wanted if _DELIMITED.search(wanted) else f"${wanted}$", parsing_timeout=None)
    if not gold:
        raise ValueError(f"math-verify reads no expression in the answer {wanted[:80]!r}")
    given = completion if extract is None else last_captured(extract, completion)
    if given is None:
        return 0.0
    found = parse(given, parsing_timeout=None)
    return float(verify(gold, found, float_rounding=precision, strict=strict, timeout_seconds=None))


def check(*, extract: str | None = None, **_: object) -> None:
    if extract is not None:
        compile_pattern("extract", extract)


def prepare(**args: Any) -> None:
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its own time limits are off
    math_verify("$1$", "1", {}, **args)
