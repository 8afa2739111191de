"""`calculator`: works out what stands between brackets at the end of a turn.

    Q:37*48-26=[37*48-26]<eos>1750 A:1750<eos>

A turn that ends without brackets ends the episode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.environments.arithmetic import NotArithmetic, value_of

WRONG = "?"
"""What is said to a call that is no arithmetic."""
_CALL = re.compile(r"\[([^\[\]]*)\]\s*\Z")


def calculator(expression: str) -> str:
    """Work out an arithmetic expression.

    Args:
        expression: Such as 37*48-26, with + - * / // % ** and parentheses.
    """
    return value_of(expression)


class Calculator:
    """Environment of one episode.

    >>> episode = Calculator()
    >>> episode.start({}, 0), episode.step("[37*48-26]")[0]["content"], episode.step(" A:1750")[2]
    (None, '1750', True)
    """

    deterministic = True

    def start(self, prompt: Mapping[str, Any], seed: int) -> None:
        return None

    def step(self, action: str) -> tuple[Any, None, bool, dict[str, Any]]:
        found = _CALL.search(action)
        if found is None:
            return None, None, True, {}
        try:
            value, wrong = value_of(found[1]), False
        except NotArithmetic:
            value, wrong = WRONG, True
        return {"role": "tool", "name": "calculator", "content": value, "error": wrong}, None, False, {}
