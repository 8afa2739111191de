"""LoRA: what is trained, what is saved, and that the model without adapters is the parent."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.common.errors import UserError
from pipeline.config.train import LoraConfig
from pipeline.run.process import Reporter
from pipeline.store import Artifact, read_table
from pipeline.train.batch import collate
from pipeline.train.model import Policy
from pipeline.train.snapshot import TrainingGroup
from pipeline.train.tree import PackedRow
from schemas import Metrics

Train = Callable[..., Artifact]
LORA = {"rank": 4, "alpha": 8}
IDS = torch.tensor([[3, 7, 39, 12, 5]])


class Killed(BaseException):
    """Stands for the end of the process."""


class KilledAt(Reporter):
    """Ends the training when it reports a step."""

    def __init__(self, step: int) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.step = step

    def progress(self, done: float, total: float, unit: str, **fields: Any) -> None:
        if done == self.step:
            raise Killed


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
    model_path: Callable[..., Path], make_group: Callable[..., TrainingGroup]
) -> None:
    group = make_group(5, [3, 6, 2])
    found = []
    for lora in (None, LoraConfig(**LORA)):
        policy = Policy(model_path(), "float32", trust_remote_code=False, lora=lora)
        found.append(policy.logprobs(collate([PackedRow.of(group, group.completions)], policy.device)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_with_adapters_the_kl_to_the_model_without_them_starts_at_zero(bench: Any) -> None:
    rollouts = bench.rollouts()
    flat = bench.shaped(rollouts, advantage=pl.lit(0.0))
    scores = {"reference": bench.scores(rollouts)}
    kl = {"algorithm": "grpo", "algorithm_args": {"regularizers.coefficient": 1.0}}
    metrics = read_table(bench.train(rollouts=rollouts, shaped=flat, scores=scores, lora=LORA, **kl), Metrics)
    assert metrics["loss"][0] == pytest.approx(0, abs=1e-10)
    assert metrics["kl_behavior"][0] == pytest.approx(0, abs=1e-10)


def test_adapters_are_resumed_to_the_byte_and_the_next_training_starts_from_the_merged_model(
    bench: Any, train_spec: Train, tmp_path: Path
) -> None:
    spec = bench.spec(lora=LORA)
    whole, broken = ({**spec, "store": str(tmp_path / name)} for name in ("whole", "broken"))
    expected = train_spec(whole)
    with pytest.raises(Killed):
        train_spec(broken, KilledAt(5))
    (point,) = (tmp_path / "broken").glob("checkpoint/*/.resume/step-*")
    assert all("lora_" in key for key in load_file(point / "rank-0-of-1.safetensors"))
    found = train_spec(broken)
    assert found.id == expected.id
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} < {
        file.path for file in found.manifest.content.files
    }
    following = bench.train(policy=expected, lora=LORA, check_logprobs=False)
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(expected.path), following.path / "adapter")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(following.path)), logits(adapted), rtol=0, atol=1e-5)


def test_targets_that_are_not_there_or_cannot_be_are_refused(bench: Any) -> None:
    refused = {
        "no_such_layer": "no_such_layer",
        "lm_head": "the output projection cannot have an adapter",
        "embed_tokens": "the embedding cannot have an adapter",
    }
    for target, problem in refused.items():
        with pytest.raises(UserError, match=f"train.lora.targets: .*{problem}"):
            bench.train(lora={**LORA, "targets": [target]})


def test_bf16_adapters_have_fp32_masters_and_the_frozen_weights_have_none(model_path: Callable[..., Path]) -> None:
    policy = Policy(model_path(), "bfloat16", trust_remote_code=False, lora=LoraConfig(**LORA))
    assert {parameter.dtype for parameter in policy.parameters.values()} == {torch.float32}
    assert all("lora_" in name for name in policy.parameters)
    assert {parameter.dtype for parameter in policy.model.parameters()} == {torch.bfloat16}
