"""The trained policy as a Hugging Face directory: one whole model in fp32, whatever it was trained in and spread over."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.config.train import LoraConfig
from pipeline.sources.models import model_files
from pipeline.sources.weights import keep_apart
from pipeline.train.adapters import DIRECTORY, add_adapters, merge, save_adapters
from pipeline.train.model import Policy, load_model
from pipeline.train.team import Team
from pipeline.train.weights import whole

GENERATION = "generation_config.json"


def export(
    policy: Policy, parent: Path, directory: Path, scratch: Path, lora: LoraConfig | None, team: Team, *, trust_remote_code: bool
) -> None:
    """Write weights, adapters if there are any, and what the parent has beside its weights. All ranks must come here.

    The parent's weights are loaded once more, in fp32, and the trained ones put in their places, so what was frozen is
    what it was before, to the bit.

    Args:
        parent: the checkpoint that training started from.
        directory: where the files go, each whole or not at all.
        scratch: room beside it.
    """
    from transformers import GenerationConfig

    target: Any = None
    settings: Any = GenerationConfig
    if team.leads:
        target = load_model(parent, trust_remote_code=trust_remote_code)
        if lora:
            add_adapters(target, lora, seed=0)
    trained: dict[str, Tensor] = {}
    places = dict(target.named_parameters()) if team.leads else {}
    for name, master in policy.parameters.items():
        value = whole(master)
        if team.leads:
            with torch.no_grad():
                places[name].copy_(value)
            if lora:
                trained[name] = value
    if team.leads:
        with tempfile.TemporaryDirectory(dir=scratch) as building:
            if lora:
                save_adapters(Path(building) / DIRECTORY, policy.adapters, trained)
                merge(target)
            if (parent / GENERATION).exists():
                target.generation_config = settings()  # the parent's is copied as it is, also if it would be refused
            keep_apart(target)
            target.save_pretrained(building, safe_serialization=True)
            _copy_the_rest(parent, Path(building), trust_remote_code=trust_remote_code)
            _move(Path(building), directory)
    team.wait_for_all()


def _copy_the_rest(parent: Path, building: Path, *, trust_remote_code: bool) -> None:
    """What the parent has beside its weights: tokenizer, chat template, generation settings, code."""
    for name, path in model_files(parent, trust_remote_code=trust_remote_code).items():
        weights = name.endswith((".safetensors", ".safetensors.index.json"))
        if not weights and name != "config.json":
            shutil.copyfile(path, building / name)


def _move(building: Path, directory: Path) -> None:
    for path in sorted(building.rglob("*")):
        if path.is_file():
            place = directory / path.relative_to(building)
            place.parent.mkdir(exist_ok=True)
            path.replace(place)
