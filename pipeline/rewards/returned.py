"""What a grader returned, as a score: a number of any kind that Python has, or one line that says why it is none."""

from __future__ import annotations

import inspect
import json
import math
import numbers
import reprlib
import sys
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from pipeline.rewards.items import Score

SCORE = "score"
"""Entry of a mapping that is the score, as verl has it; the others become the remark."""


def as_score(returned: Any) -> Score:
    """The score. None of both score and error: the grader does not apply to this completion.

    Taken are numbers of Python, NumPy and PyTorch, truth values, arrays and tensors without dimensions, a mapping with a
    `score`, and a `Score`.

    >>> as_score(True), as_score({"score": 0.5, "format": "ok"})
    (Score(score=1.0, error=None, remark=None), Score(score=0.5, error=None, remark='{"format": "ok"}'))
    """
    if isinstance(returned, Score):
        found = Score(None) if returned.score is None and returned.error else as_score(returned.score)
        return Score(found.score, returned.error or found.error, returned.remark or found.remark)
    if isinstance(returned, Mapping) and SCORE in returned:
        found = as_score(returned[SCORE])
        return Score(found.score, found.error, found.remark or _rest(returned))
    if returned is None:
        return Score(None)
    value = _number(returned)
    if value is None or not math.isfinite(value):
        return Score(None, f"returned {shown(returned)}, expected a finite number{_hint(returned)}")
    return Score(value)


def _number(value: Any) -> float | None:
    if isinstance(value, (numbers.Real, Decimal)) or _is_numpy_truth(value):
        return float(value)
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):  # an array or a tensor of no dimension
        return _number(value.item())
    return None


def _is_numpy_truth(value: Any) -> bool:
    """Whether it is what NumPy's comparisons return: a truth value that Python counts among no numbers."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.bool_)


def _hint(returned: Any) -> str:
    """What to do about what came instead."""
    if inspect.isawaitable(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # or Python complains, wherever it is collected, that nobody awaited it
        return "; nobody awaits it: write a plain function"
    if isinstance(returned, (list, tuple)) or getattr(returned, "shape", None):
        return ", one for the one completion that was given"
    if isinstance(returned, Mapping):
        return f"; of a mapping, the entry {SCORE!r} is taken"
    return ""


def _rest(returned: Mapping[Any, Any]) -> str | None:
    rest = {str(name): value for name, value in returned.items() if name != SCORE}
    return json.dumps(rest, ensure_ascii=False, default=shown) if rest else None


def shown(value: Any) -> str:
    """Its repr, cut, whatever its class does."""
    try:
        return reprlib.repr(value)
    except BaseException as error:
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
