"""regex: 1 if what a pattern finds in the completion is the answer, or if it finds anything at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.rewards.graders.text import captured, compile_pattern, last_captured, number, required


def regex(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    pattern: str,
    compare: bool = True,
    which: Literal["first", "last"] = "last",
    numeric: bool = False,
) -> float:
    """1 if the match's first group, stripped, equals the answer, else 0. Without a match, 0.

    Args:
        pattern: searched anywhere in the completion. Of several groups the first that took part counts; without a
            group, the whole match. Flags are written inline, such as (?i) or (?m).
        compare: false: a match alone scores 1, and the prompt needs no answer. For rewards of format.
        which: the match that counts, if there are several.
        numeric: texts that spell the same number are equal: 1,234 and $1234.00.

    Raises:
        ValueError: the prompt has no answer, and compare is true.

    >>> regex("so\\n#### 1,234", "1234", {}, pattern="#### (.+)", numeric=True)
    1.0
    """
    if not compare:
        return float(re.search(pattern, completion) is not None)
    wanted = required(answer).strip()
    if which == "last":
        given = last_captured(pattern, completion)
    else:
        found = re.search(pattern, completion)
        given = None if found is None else captured(found)
    if given is None:
        return 0.0
    given = given.strip()
    if given == wanted:
        return 1.0
    value = number(given) if numeric else None
    return float(value is not None and value == number(wanted))


def check(*, pattern: str, **_: object) -> None:
    compile_pattern("pattern", pattern)
