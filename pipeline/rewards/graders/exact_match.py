"""exact_match: 1 if the completion is the answer, 0 otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.rewards.graders.text import chosen, compile_pattern, remarked, required
from pipeline.rewards.items import Score


def exact_match(
    completion: str,
    answer: str | None,
    prompt: Mapping[str, Any],
    *,
    extract: str | None = None,
    ignore_case: bool = False,
    normalize_whitespace: bool = False,
) -> float | Score:
    """1 if completion and answer are equal after space around them is stripped, else 0.

    Args:
        extract: regular expression; what its last match captures stands for the completion. No match scores 0. Where there are
            several, a remark says so.
        ignore_case: compare case-folded texts.
        normalize_whitespace: count any run of white space as one space.

    Raises:
        ValueError: the prompt has no answer.

    >>> exact_match(" 41\\n", "41", {}), exact_match("<b>Oslo</b>", "oslo", {}, extract="<b>(.*?)</b>")
    (1.0, 0.0)
    """
    wanted = required(answer)
    given, remark = (completion, None) if extract is None else chosen(extract, completion, "last")
    if given is None:
        return 0.0
    given, wanted = given.strip(), wanted.strip()
    if normalize_whitespace:
        given, wanted = " ".join(given.split()), " ".join(wanted.split())
    if ignore_case:
        given, wanted = given.casefold(), wanted.casefold()
    return remarked(float(given == wanted), remark)


def check(*, extract: str | None = None, **_: object) -> None:
    if extract is not None:
        compile_pattern("extract", extract)
