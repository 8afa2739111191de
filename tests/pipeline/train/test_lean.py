"""Lean forms of norms and MLPs against the modules they stand for: values, gradients, and modules that are left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, Qwen2Config, Qwen3Config

from pipeline.train import lean

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


def made(config: Any) -> Any:
    """A model whose norms do not all start at one."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    return model


def loss_and_gradients(model: Any) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.arange(60).reshape(3, 20) % 32
    logprobs = model(input_ids=ids, use_cache=False).logits.log_softmax(-1)
    loss = logprobs[:, :-1].gather(-1, ids[:, 1:, None]).square().mean()
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("cached", [64, 1 << 17], ids=["few rows", "all rows"])
def test_a_slim_model_has_the_loss_and_gradient_of_the_model(name: str, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CACHED", cached)
    model = made(CONFIGS[name](**SIZES))
    slim = copy.deepcopy(model)
    norms = 5 + 4 * (name == "qwen3")
    assert lean.slim(slim) == norms + 2
    assert list(slim.state_dict()) == list(model.state_dict())
    expected, gradients = loss_and_gradients(model)
    found, slim_gradients = loss_and_gradients(slim)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(slim_gradients[parameter], gradient, rtol=1e-4, atol=1e-7, msg=parameter)


@pytest.mark.parametrize("function", ["norm", "gate"])
def test_gradients_are_those_of_differences(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "CACHED", 12)
    torch.manual_seed(1)
    first, second = (torch.randn(5, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    if function == "gate":
        assert torch.autograd.gradcheck(lean._Gate.apply, (first, second))
    else:
        weight = torch.rand(4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x, w: lean._Norm.apply(x, w, 1e-6), (first, weight))


def test_other_formulas_are_left_alone() -> None:
    gemma = made(GemmaConfig(**SIZES))
    assert lean.slim(gemma) == 0
    gelu = made(LlamaConfig(**SIZES, hidden_act="gelu"))
    assert lean.slim(gelu) == 5


def test_a_module_that_only_has_the_name_is_left_alone() -> None:
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(4)), 1e-6

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.weight * x

    assert lean.slim(nn.Sequential(LlamaRMSNorm())) == 0
