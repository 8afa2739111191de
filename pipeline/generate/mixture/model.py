"""A model of vLLM's that holds two of its models, and whose next token is drawn from the normalized product of theirs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model, maybe_prefix

from pipeline.generate.mixture.folder import PARTS
from pipeline.generate.mixture.logits import mixed_logits


class MixtureModel(nn.Module):
    """Gives vLLM the logits of π'(v | prefix) ∝ π(v | prefix)^(1 - share) · other(v | prefix)^share, see `mixed_logits`.

    So what follows, temperature and cuts and the recorded logprobs, is of π' without further ado. Hidden states are those of both
    side by side, [tokens, hidden of π + hidden of the other]: vLLM picks rows of them before it asks for logits.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        parts: dict[str, Any] = getattr(vllm_config.model_config.hf_config, PARTS)
        self.policy: Any
        self.other: Any
        # vLLM wants one number in a layer's name, that of the layer: the parts are told apart by words.
        self.policy = init_vllm_registered_model(
            vllm_config, prefix=maybe_prefix(prefix, "policy"), architectures=parts["architectures"]
        )
        config = AutoConfig.from_pretrained(parts["other"])
        self.other = init_vllm_registered_model(
            vllm_config, prefix=maybe_prefix(prefix, "other"), hf_config=config, architectures=config.architectures
        )
        self.share = float(parts["share"])
        self.secondary_weights = [DefaultModelLoader.Source(parts["other"], revision=None, prefix="other.")]
        self._width = vllm_config.model_config.hf_config.get_text_config().hidden_size

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        embedded: Tensor = self.policy.embed_input_ids(input_ids)
        return embedded

    def forward(self, input_ids: Tensor | None, positions: Tensor, **given: Any) -> Tensor:
        return torch.cat([part(input_ids, positions) for part in (self.policy, self.other)], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        ours = self.policy.compute_logits(hidden_states[..., : self._width])
        theirs = self.other.compute_logits(hidden_states[..., self._width :])
        if ours is None or theirs is None:  # another process of a model that is split over several has them
            return None
        return mixed_logits(ours, theirs, self.share)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        named = ((name if name.startswith("other.") else f"policy.{name}", tensor) for name, tensor in weights)
        loaded: set[str] = AutoWeightsLoader(self).load_weights(named)
        return loaded
