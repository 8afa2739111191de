"""Layers that carry a state along the text: a recurrence or a convolution instead of attention."""

from __future__ import annotations

from typing import Any

STATELESS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention", "mlp", "moe", "dense", "sparse"},
)
"""Kinds of layers, as transformers names them, that read what attention shows them and nothing else."""


def kinds_with_state(config: Any) -> list[str]:
    """Kinds of a model's layers that carry a state along the text.

    Args:
        config: of transformers.
    """
    text = config.get_text_config()
    kinds = {str(kind) for name in ("layer_types", "layers_block_type") for kind in getattr(text, name, None) or ()}
    return sorted(kinds - STATELESS)
