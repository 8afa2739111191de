"""A prompt and a completion out of one sequence of tokens, as trainers keep them, with a mask of what the model drew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def split(
    ids: Sequence[int], drawn: Sequence[bool], logprobs: Sequence[float | None] | None, *, column: str = "mask"
) -> dict[str, Any]:
    """The prompt is what precedes the first token that the model drew; later ones that it did not are an environment's.

    Args:
        logprobs: nats, of every token of the sequence, of those after the prompt, or of those that the model drew; None
            where there are none. What stands at tokens that the model did not draw is no logprob and becomes 0.
        column: of the mask, for refusals.

    Returns:
        What `Known` calls prompt_tokens, completion_tokens, action_mask (None: all were drawn) and logprobs.

    Raises:
        ValueError: the lengths do not fit, or the model drew nothing.
    """
    if len(drawn) != len(ids):
        raise ValueError(f"column {column}: has {len(drawn)} values for {len(ids)} tokens")
    if True not in drawn:
        raise ValueError(f"column {column}: no token is the model's, so it is not said where the completion starts")
    start = list(drawn).index(True)
    mask = [bool(item) for item in drawn[start:]]
    return {
        "prompt_tokens": list(ids[:start]),
        "completion_tokens": list(ids[start:]),
        "action_mask": None if all(mask) else mask,
        "logprobs": None if not logprobs else _spread(logprobs, mask, len(ids)),
    }


def _spread(logprobs: Sequence[float | None], mask: list[bool], length: int) -> list[float]:
    """One value a completion token."""
    count = sum(mask)
    if len(logprobs) == length:
        found = list(logprobs[length - len(mask) :])
    elif len(logprobs) == len(mask):
        found = list(logprobs)
    elif len(logprobs) == count:
        values = iter(logprobs)
        found = [next(values) if own else 0.0 for own in mask]
    else:
        raise ValueError(f"has {len(logprobs)} logprobs for {count} tokens that the model drew, in {length}")
    return [_nats(value) if own else 0.0 for value, own in zip(found, mask, strict=True)]


def _nats(value: float | None) -> float:
    if value is None:
        raise ValueError("has no logprob for a token that the model drew")
    return float(value)
