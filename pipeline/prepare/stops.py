"""Stop texts that a grader waits for: a completion ends before them, so it never sees one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pipeline.config.reward import RewardComponent

PATTERNS = ("pattern", "extract")
"""Args that hold regular expressions over completions."""


def hidden_by_stops(components: Sequence[RewardComponent], stops: Sequence[str]) -> Iterator[str]:
    """A line for each pattern of a grader that needs a stop text to match.

    Where the pattern goes on with an alternative or makes the text optional, it is taken at its word.
    """
    for number, component in enumerate(components):
        for name in PATTERNS:
            pattern = component.args.get(name)
            for stop in stops if isinstance(pattern, str) else ():
                assert isinstance(pattern, str)
                if any(_needs(pattern, spelled) for spelled in (re.escape(stop), re.escape(stop).replace("\\\n", "\\n"))):
                    yield (
                        f"reward.components.{number} ({component.grader}): args.{name} waits for {stop!r}, which ends a "
                        f"completion (generate.stop) and is not part of its text. Write it as "
                        f"(?:{re.escape(stop)}|$), or set generate.keep_stop_text"
                    )


def _needs(pattern: str, text: str) -> bool:
    """Whether a text is in a pattern, with nothing behind it that lets it be absent."""
    rest = pattern.partition(text)[2]
    return text in pattern and not rest.startswith(("|", "?", ")?", "*", ")*"))
