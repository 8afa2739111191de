"""regex: 1 if what a pattern finds in the completion is the answer, or if it finds anything at all."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.rewards.graders.text import chosen, compile_pattern, number, remarked, required
from pipeline.rewards.items import Score


def regex(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    pattern: str,
    compare: bool = True,
    which: Literal["first", "last"] = "last",
    numeric: bool = False,
) -> float | Score:
    """1 if the match's first group, stripped, equals the answer, else 0. Without a match, 0.

    Args:
        pattern: searched anywhere in the completion. Of several groups the first that took part counts; without a
            group, the whole match. Flags are written inline, such as (?i) or (?m).
        compare: false: a match alone scores 1, and the prompt needs no answer. For rewards of format.
        which: the match that counts, if there are several; a remark says of how many.
        numeric: texts that spell the same number are equal: 1,234 and $1234.00.

    Raises:
        ValueError: the prompt has no answer, and compare is true.

    >>> regex("so\\n#### 1,234", "1234", {}, pattern="#### (.+)", numeric=True)
    1.0
    """
    if not compare:
        return float(re.search(pattern, completion) is not None)
    wanted = required(answer).strip()
    given, remark = chosen(pattern, completion, which)
    if given is None:
        return 0.0
    given = given.strip()
    value = number(given) if numeric else None
    return remarked(float(given == wanted or (value is not None and value == number(wanted))), remark)


def check(*, pattern: str, **_: object) -> None:
    compile_pattern("pattern", pattern)
