"""How many tokens a prompt and its completion may have together."""

from __future__ import annotations

from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.config.engine import EngineConfig


def context_length(model: Path, engine: EngineConfig, *, trust_remote_code: bool) -> int:
    """Longest prompt plus completion, in tokens: the setting, or else what the model allows.

    Raises:
        UserError: transformers cannot read the model's config, or the setting is more than the model has positions.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{model}: transformers cannot read the model's config: {' '.join(str(error).split())[:300]}") from None
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    if engine.max_model_len and engine.max_model_len > limit:
        raise UserError(f"engine.max_model_len: {engine.max_model_len} is more than the {limit} positions this model has")
    return int(engine.max_model_len or limit)
