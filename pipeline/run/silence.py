"""Whether a round's rewards teach nothing, by the summaries of its shaped rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def silence(parts: Sequence[Mapping[str, Any]]) -> str | None:
    """Why a round's rewards teach nothing. None if they do, and where nothing is kept, so that nothing is trained.

    Args:
        parts: summaries of the shaped artifacts that the round trains on, replayed ones too.
    """
    if not sum(part.get("kept", 0) for part in parts):
        return None
    values = {part.get("only_reward") for part in parts}
    if len(values) == 1 and None not in values:
        return f"all rewards are {values.pop():g}"
    if any(part.get("positives", 1) or part.get("negatives", 1) for part in parts):
        return None
    groups = sum(part.get("groups", 0) for part in parts)
    return f"no reward differs within any of {groups:,} groups" if all(map(is_flat, parts)) else "every advantage is 0"


def is_flat(shaped: Mapping[str, Any]) -> bool:
    """Whether no reward differs within any group, by the summary of a shaped artifact."""
    return bool(0 < shaped.get("groups", 0) <= shaped.get("zero_variance_groups", 0))
