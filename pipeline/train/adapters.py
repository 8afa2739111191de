"""LoRA: small trained matrices beside frozen weights, W + alpha/rank B A, by peft.

B starts at zero, so the model starts as the one without adapters, to the bit. A is drawn from the seed. There is no dropout:
logprobs must be those of the distribution that generates.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.common.errors import UserError
from pipeline.config.train import LoraConfig

NAME = "default"
DIRECTORY = "adapter"
"""Where a checkpoint holds its adapter, in peft's format, beside the merged model."""


def add_adapters(model: Any, settings: LoraConfig, seed: int) -> Any:
    """Put adapters into a model in place and freeze all else.

    Returns:
        peft's settings, with the names of the modules that were found.

    Raises:
        UserError: peft is not installed; no module, or one that cannot have an adapter, has such a name.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import TaskType, inject_adapter_in_model
    except ImportError:
        raise UserError("train.lora needs the package peft: pip install 'rollbook[lora]'") from None
    targets = settings.targets[0] if settings.targets == ("all-linear",) else list(settings.targets)
    found = PeftConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(found, model, NAME)
        except ValueError as error:
            raise UserError(f"train.lora.targets: {' '.join(str(error).split())[:300]}") from None
    for what, module in (("embedding", model.get_input_embeddings()), ("output projection", model.get_output_embeddings())):
        if any("lora_" in name for name, _ in module.named_parameters()):
            raise UserError(f"train.lora.targets: the {what} cannot have an adapter; name other modules")
    return found


def save_adapters(directory: Path, settings: Any, weights: dict[str, Tensor]) -> None:
    """Write adapters as peft and vLLM read them. The bytes depend on the weights and settings alone."""
    directory.mkdir()
    config = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.to_dict().items()}
    config |= {"inference_mode": True, "base_model_name_or_path": None}
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {f"base_model.model.{name.replace(f'.{NAME}.', '.')}": value.contiguous() for name, value in weights.items()}
    save_file(tensors, directory / "adapter_model.safetensors", {"format": "pt"})


def merge(model: Any) -> None:
    """Add every adapter to the weights beside it, in place, and take it out of the model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            merged: Any = module
            merged.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, merged.get_base_layer())
