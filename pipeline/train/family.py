"""What a model's settings say of its kind: whether packed rows can hold its sequences at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pipeline.sources.layers import kinds_with_state

SEEN = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
"""Kinds of layers that see only so many tokens, and the setting that says how many."""


def why_alone(model: Any, longest: int) -> str | None:
    """Why sequences of such lengths cannot share rows; None if nothing speaks against it.

    Packed rows know who sees whom, and nothing of windows, of states that go from token to token, and of caps on scores. And two
    kinds of rotary positions change all their frequencies once any position of a batch is beyond a length.

    Args:
        longest: tokens of the longest prompt with its completion.
    """
    text = model.config.get_text_config()
    if kinds := kinds_with_state(text):
        return f"its layers of kind {', '.join(kinds)} carry a state along the row"
    if is_capped(model):
        return f"its attention is capped (attn_logit_softcapping={text.attn_logit_softcapping})"
    for what, limit in (*_windows(text), *_positions(text)):
        if longest > limit:
            return f"{what}={limit} tokens, and the longest prompt and completion have {longest}"
    return None


def changes_with_length(model: Any) -> bool:
    """Whether positions of a row depend on how long the longest row of its batch is."""
    return any(True for _ in _positions(model.config.get_text_config()))


def is_capped(model: Any) -> bool:
    """Whether scores of attention are capped. Of transformers' implementations for a CPU, eager alone does that."""
    return bool(getattr(model.config.get_text_config(), "attn_logit_softcapping", None))


def forget_lengths(model: nn.Module) -> None:
    """Let dynamic positions follow from the next batch alone; they would remember the longest one that they have seen."""
    for module in model.modules():
        if "dynamic" in str(getattr(module, "rope_type", "")):
            module.max_seq_len_cached = 0  # type: ignore[assignment]


def _windows(text: Any) -> Iterator[tuple[str, int]]:
    layers = set(getattr(text, "layer_types", None) or SEEN)
    for kind, setting in SEEN.items():
        window = getattr(text, setting, None)
        if kind in layers and window:
            yield f"its layers see {setting}", window
    if chosen := getattr(text, "index_topk", None):
        yield "its attention chooses index_topk", chosen


def _positions(text: Any) -> Iterator[tuple[str, int]]:
    given = getattr(text, "rope_parameters", None) or {}
    for rope in [given, *(one for one in given.values() if isinstance(one, dict))]:
        kind = rope.get("rope_type")
        if kind == "longrope":
            yield "its longrope changes beyond original_max_position_embeddings", rope["original_max_position_embeddings"]
        if kind and "dynamic" in kind:
            yield "its dynamic positions change beyond max_position_embeddings", text.max_position_embeddings
