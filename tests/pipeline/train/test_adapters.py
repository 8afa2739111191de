"""LoRA: what is trained, what is saved, and that the model without adapters is the parent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.artifacts import Artifact
from pipeline.config_train import LoraConfig
from pipeline.errors import UserError
from pipeline.train.batch import collate
from pipeline.train.model import Policy
from pipeline.train.plan import Row
from pipeline.train.snapshot import Group

LORA = {"rank": 4, "alpha": 8}
IDS = torch.tensor([[3, 7, 39, 12, 5]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.parametrize("name", ["qwen2", "tied", "gpt2"])
def test_the_merged_model_is_the_parent_with_its_adapter(name: str, bench: Any) -> None:
    policy = bench.policy(bench.model_path(name))
    checkpoint = bench.train(policy=policy, algorithm="reinforce", check_logprobs=False, lora=LORA)
    parent, merged = (AutoModelForCausalLM.from_pretrained(path) for path in (policy.path, checkpoint.path))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(policy.path), checkpoint.path / "adapter")
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=0, atol=1e-5)
    assert (logits(merged) - logits(parent)).abs().max() > 0.1
    frozen = [key for key in dict(parent.named_parameters()) if "embed" in key or "norm" in key or "ln_" in key]
    assert frozen
    for key in frozen:
        assert torch.equal(merged.get_parameter(key), parent.get_parameter(key))
    notes = checkpoint.manifest.provenance.notes
    assert 0 < notes["trained_parameters"] < notes["parameters"] / 2
    config = json.loads((checkpoint.path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (4, 8, None)


def test_before_the_first_step_the_policy_is_the_parent_to_the_bit(
    model_path: Callable[..., Path], make_group: Callable[..., Group]
) -> None:
    group = make_group(5, [3, 6, 2])
    found = []
    for lora in (None, LoraConfig(**LORA)):
        policy = Policy(model_path(), "float32", trust_remote_code=False, lora=lora)
        with torch.no_grad():
            found.append(policy.logprobs(collate([Row(group, group.completions)], policy.device)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
