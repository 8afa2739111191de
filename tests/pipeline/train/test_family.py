"""Models that packed rows cannot serve: each completion in a row of its own gives what the model alone gives, gradients too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen3NextConfig,
)

from pipeline.train.attention import Kind, Own
from pipeline.train.batch import Chunk, collate
from pipeline.train.check import make_ready
from pipeline.train.following import Following
from pipeline.train.logits import CappedProjection, LogitMap, capped_logprobs
from pipeline.train.logprobs import linear_logprobs
from pipeline.train.model import Policy
from pipeline.train.plan import CostModel, micro_batches, rows_of
from pipeline.train.snapshot import TrainingGroup

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24,
    "vocab_size": 40, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 1,
    "pad_token_id": 0, "head_dim": 8,
}  # fmt: skip
WINDOWED: dict[str, Any] = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
GATED: dict[str, Any] = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "shared_expert_intermediate_size": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
LONG: dict[str, Any] = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4,
    "original_max_position_embeddings": 9,
}  # fmt: skip
MODELS: dict[str, tuple[PreTrainedConfig, Kind, Own]] = {
    "a window": (MistralConfig(**SIZES, sliding_window=6), "alone", "sdpa"),
    "convolutions": (Lfm2Config(**SIZES, layer_types=["conv", "full_attention"]), "alone", "sdpa"),
    "a gated state": (Qwen3NextConfig(**SIZES, **EXPERTS, **GATED), "alone", "sdpa"),
    "caps": (Gemma2Config(**SIZES, **WINDOWED, attn_logit_softcapping=0.5, final_logit_softcapping=2.0), "alone", "eager"),
    "sinks": (GptOssConfig(**SIZES, **WINDOWED, **EXPERTS, rope_parameters=PLAIN), "alone", "eager"),
    "dynamic positions": (
        LlamaConfig(**{**SIZES, "max_position_embeddings": 9}, rope_parameters=DYNAMIC), "alone", "sdpa",
    ),
    "longrope": (Phi3Config(**SIZES, original_max_position_embeddings=9, rope_parameters=LONG), "alone", "sdpa"),
    "logits that are multiplied": (CohereConfig(**SIZES, logit_scale=0.25), "segments", "eager"),
    "logits that are divided": (GraniteConfig(**SIZES, logits_scaling=4.0), "segments", "eager"),
}  # fmt: skip
MakeGroup = Callable[..., TrainingGroup]


def saved(config: PreTrainedConfig, path: Path) -> Path:
    torch.manual_seed(0)
    make: Any = AutoModelForCausalLM.from_config
    make(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_and_gradients_are_those_of_the_model_alone(name: str, tmp_path: Path, make_group: MakeGroup) -> None:
    config, kind, own = MODELS[name]
    policy = Policy(saved(config, tmp_path), "float32", trust_remote_code=False)
    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(tmp_path, attn_implementation="eager").eval()
    groups = [make_group(5, [3, 9, 1]), make_group(3, [12, 4])]
    notes: list[str] = []
    make_ready(policy, groups[0], 15, "auto", notes.append)
    assert (policy.attention, policy.own) == (kind, own)
    assert bool(notes) == (kind == "alone")

    cost = policy.cost_model()
    batches = [collate(part, policy.device) for part in micro_batches([r for g in groups for r in rows_of(g, cost)], 30, cost)]
    total = torch.zeros(())
    for batch in batches:
        found, entropy = policy.logprobs(batch)
        flat = batch.flat
        for number, completion in enumerate(flat.completions):
            group = next(group for group in groups if any(one is completion for one in group.completions))
            ids = torch.tensor([*group.prompt.tolist(), *completion.tokens.tolist()])
            if name == "dynamic positions":  # transformers' model remembers the longest sequence that it has seen
                model.model.rotary_emb.max_seq_len_cached = 0
            logits = model(ids[None, :-1], use_cache=False).logits[0, len(group.prompt) - 1 :] / completion.temperature
            every = logits.log_softmax(-1)
            own_logprobs = every.gather(-1, ids[len(group.prompt) :, None])[:, 0]
            here = flat.sequence == number
            torch.testing.assert_close(found[here], own_logprobs, rtol=0, atol=2e-5)
            torch.testing.assert_close(entropy[here], -(every.exp() * every).sum(-1), rtol=0, atol=2e-5)
            total = total + _loss(own_logprobs, -(every.exp() * every).sum(-1))
        cut = policy.cut(batch)
        hidden = policy.hidden(batch, cut)
        projection = policy.projection(hidden, cut)
        for chunk in cut.chunks:
            torch.autograd.backward(_loss(*projection(chunk)))
        projection.backward(hidden)
    torch.autograd.backward(total)
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    gradients = {n: p.grad for n, p in policy.parameters.items() if (p.grad is not None and (p.grad != 0).any()) or n in expected}
    assert gradients.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for n, gradient in expected.items():
        torch.testing.assert_close(gradients[n], gradient, rtol=1e-3, atol=1e-5 * largest)


def _loss(logprobs: Tensor, entropy: Tensor) -> Tensor:
    return (logprobs * 0.7 + entropy * 0.1).sum()


def test_positions_that_change_with_length_are_computed_one_by_one(tmp_path: Path, make_group: MakeGroup) -> None:
    policy = Policy(saved(MODELS["longrope"][0], tmp_path), "float32", trust_remote_code=False)
    notes: list[str] = []
    make_ready(policy, make_group(5, [3]), 15, "auto", notes.append)
    assert "each in a pass of its own" in notes[0]
    cost = policy.cost_model()
    batches = micro_batches(rows_of(make_group(5, [3, 9, 3]), cost), 1000, cost)
    assert [len(batch) for batch in batches] == [1, 1, 1]


@pytest.mark.parametrize("cost", [CostModel(100, shares=False), CostModel(100), CostModel()])
def test_a_group_of_dead_completions_has_no_rows(cost: CostModel, make_group: MakeGroup) -> None:
    group = make_group(3, [2, 5])
    dead = replace(group, completions=[replace(one, live=False) for one in group.completions])
    assert rows_of(dead, cost) == []


@given(prompt=st.integers(1, 20), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=9), budget=st.integers(16, 200))
def test_rows_that_share_nothing_hold_every_completion_once(
    prompt: int, lengths: list[int], budget: int, make_group: MakeGroup
) -> None:
    group, cost = make_group(prompt, lengths), CostModel(100, shares=False)
    batches = micro_batches(rows_of(group, cost), budget, cost)
    assert all(len(row.completions) == 1 for batch in batches for row in batch)
    found = sorted(row.completions[0].sample_index for batch in batches for row in batch)
    assert found == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(row.length for row in batch) <= budget


@settings(max_examples=30, deadline=None)
@given(
    scale=st.sampled_from([0.25, 1.0, 3.0]), cap=st.sampled_from([1.0, 5.0, 30.0]), bias=st.booleans(), seed=st.integers(0, 99)
)
def test_capped_logits_give_the_gradients_of_autograd(scale: float, cap: float, bias: bool, seed: int) -> None:
    """Against the formula itself, in fp64: log softmax(cap tanh(scale l / cap) / T)."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, weight = random(7, 5).requires_grad_(), nn.Parameter(random(11, 5))
    offset = nn.Parameter(random(11)) if bias else None
    targets, temperature = torch.arange(7) % 11, torch.tensor([1.0, 0.5, 2.0] * 2 + [1.0], dtype=torch.float64)
    logits = LogitMap(scale, cap)

    linear = nn.functional.linear(hidden, weight, offset)
    every = (cap * torch.tanh(scale * linear / cap) / temperature[:, None]).log_softmax(-1)
    logprobs, entropy = every.gather(-1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)
    parameters = [hidden, weight, *([offset] if offset is not None else [])]
    expected = torch.autograd.grad(_loss(logprobs, entropy), parameters)

    following = Following.one_each(targets)
    found = capped_logprobs(hidden, weight, offset, following, temperature / scale, logits)
    torch.testing.assert_close(found, (logprobs, entropy))
    projection = CappedProjection(hidden.detach(), weight, offset, following, temperature / scale, logits)
    for tokens in (slice(0, 4), slice(4, 7)):
        torch.autograd.backward(_loss(*projection(Chunk(slice(0), tokens, (tokens,), (tokens,)))))
    projection.backward(hidden)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_cap_that_is_far_away_changes_nothing() -> None:
    torch.manual_seed(0)
    given = torch.randn(6, 4), torch.randn(9, 4), None, Following.one_each(torch.arange(6)), torch.ones(6)
    found = capped_logprobs(*given, LogitMap(1.0, 1e6))
    torch.testing.assert_close(found, linear_logprobs(*given), rtol=1e-4, atol=1e-5)
