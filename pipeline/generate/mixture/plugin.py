"""Where vLLM is told of the class: by the engine, and by vLLM itself in every process of its own (`vllm.general_plugins`)."""

from __future__ import annotations

from pipeline.generate.mixture.folder import ARCHITECTURE


def register() -> None:
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "pipeline.generate.mixture.model:MixtureModel")
