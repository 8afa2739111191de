"""What is refused before anything is trained or scored, and what is not, on tiny random models of several architectures."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
)

from pipeline.common.errors import UserError
from pipeline.run.process import Reporter
from pipeline.store import Artifact
from pipeline.train import resume
from pipeline.train.check import differences, make_ready, probe, self_check
from pipeline.train.family import why_alone
from pipeline.train.model import Policy
from pipeline.train.snapshot import TrainingGroup
from pipeline.train.team import alone

Rows = list[dict[str, Any]]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 40}
COMMON: dict[str, Any] = {
    **SIZES, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
LATENT = {
    "q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1,
    "topk_group": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "first_k_dense_replace": 2,
}  # fmt: skip
MakeGroup = Callable[..., TrainingGroup]


class Noting(Reporter):
    def __init__(self) -> None:
        super().__init__(os.open(os.devnull, os.O_WRONLY))
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def saved(tmp_path: Path, model_path: Callable[..., Path]) -> Callable[[PreTrainedConfig], Path]:
    """saved(config): a directory with a random model of that kind and a tokenizer."""

    def save(config: PreTrainedConfig) -> Path:
        torch.manual_seed(0)
        path = tmp_path / config.model_type
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).write_bytes((model_path() / name).read_bytes())
        return path

    return save


@pytest.fixture
def copied(tmp_path: Path, model_path: Callable[..., Path]) -> Path:
    """A model's directory that may be changed."""
    return Path(shutil.copytree(model_path(), tmp_path / "copied"))


def loaded(path: Path, dtype: str = "float32") -> Policy:
    return Policy(path, dtype, trust_remote_code=False)


def test_a_model_that_ignores_boundaries_is_not_packed_whatever_the_data(
    saved: Callable[[PreTrainedConfig], Path], make_group: MakeGroup
) -> None:
    """Its attention takes its own bias for any mask. One completion alone, or completions of one token, would not show it."""
    policy = loaded(saved(GPTJConfig(**COMMON, n_embd=16, n_layer=2, n_head=2, n_positions=64, rotary_dim=4)))
    for example in (make_group(5, [7]), make_group(1, [1, 1])):
        notes = list[str]()
        policy.use_attention("sdpa")
        with pytest.raises(UserError, match=r"gptj: packed rows give logprobs that differ .* leave train.attention at auto"):
            make_ready(policy, example, 12, "sdpa", notes.append)
        assert not notes
        make_ready(policy, example, 12, "auto", notes.append)
        assert policy.attention == "alone"
        assert re.match(
            r"gptj: attention sdpa does not work here \(it is .* nats off\); every completion is .* row of its own", notes[0]
        )


@pytest.mark.parametrize("longest", [1, 12, 64, 100_000])
def test_what_is_compared_is_short_and_has_several_completions_in_each_of_several_rows(
    longest: int, make_group: MakeGroup
) -> None:
    batch = probe(make_group(1, [1]), longest, torch.device("cpu"))
    assert len(batch.input_ids) == 2
    lengths = torch.bincount(batch.flat.sequence)
    assert len(lengths) == 6
    assert int(batch.position_ids.max()) + 2 <= max(8, min(longest, 96))
    assert sorted(lengths.tolist())[2] > 1


def test_rounding_of_bf16_is_no_fault_and_a_wrong_mask_is(
    saved: Callable[[PreTrainedConfig], Path], make_group: MakeGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits of up to 30 are 0.125 apart in bf16."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 128}
    config = Qwen2Config(**{**COMMON, **sizes, "initializer_range": 0.5}, num_key_value_heads=2, tie_word_embeddings=False)
    policy = loaded(saved(config), "bfloat16")
    batch = probe(make_group(20, [30]), 64, policy.device)
    assert differences(policy, batch).max() > 0.15
    self_check(policy, batch)
    inner: Any = policy.model.base_model
    whole = inner.forward
    monkeypatch.setattr(inner, "forward", lambda **given: whole(**{**given, "attention_mask": None}))
    with pytest.raises(UserError, match="packed rows give logprobs that differ"):
        self_check(policy, batch)


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (MistralConfig(**COMMON, num_key_value_heads=1, sliding_window=8), 8),
        (
            LlamaConfig(
                **{**COMMON, "max_position_embeddings": 32},
                num_key_value_heads=1,
                rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
            ),
            32,
        ),
        (
            Phi3Config(
                **COMMON,
                num_key_value_heads=1,
                original_max_position_embeddings=24,
                rope_parameters={
                    "rope_type": "longrope",
                    "short_factor": [1.0] * 4,
                    "long_factor": [4.0] * 4,
                    "rope_theta": 1e4,
                    "original_max_position_embeddings": 24,
                },
            ),
            24,
        ),
    ],
    ids=["sliding window", "dynamic", "longrope"],
)
def test_sequences_that_would_depend_on_their_neighbors_are_not_packed(
    config: PreTrainedConfig, limit: int, saved: Callable[[PreTrainedConfig], Path], make_group: MakeGroup
) -> None:
    policy = loaded(saved(config))
    assert why_alone(policy.model, limit) is None
    reason = why_alone(policy.model, limit + 1)
    assert reason is not None
    assert f"={limit} tokens, and the longest prompt and completion have {limit + 1}" in reason
    with pytest.raises(
        UserError, match=r"packed rows .train\.attention=segments. do not know of that\. Leave train\.attention at auto"
    ):
        make_ready(policy, make_group(5, [7]), limit + 1, "segments", lambda note: None)


def test_scores_beyond_a_window_are_the_models_own(bench: Any, rows: Rows, saved: Callable[[PreTrainedConfig], Path]) -> None:
    """The longest of all files counts, not those of the first group."""
    path = saved(MistralConfig(**COMMON, num_key_value_heads=1, sliding_window=10))
    long = {**rows[-1], "completion_token_ids": [5, 7, 9, 4] * 5, "behavior_logprobs": [-1.0] * 20}
    scores = bench.scores(bench.rollouts([*rows[:-1], long]), bench.policy(path))
    found = pl.read_parquet(scores.tables("scores")).filter(group_id=long["group_id"], sample_index=long["sample_index"])
    model: Any = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    ids = torch.tensor([[*long["prompt_token_ids"], *long["completion_token_ids"]]])
    expected = model(ids).logits[0, -21:-1].div(long["temperature"]).log_softmax(-1).gather(-1, ids[0, -20:, None])[:, 0]
    assert found["logprobs"].item().to_list() == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_model_that_falls_back_is_packed_for_what_it_falls_back_to(
    bench: Any, saved: Callable[[PreTrainedConfig], Path]
) -> None:
    """Latent attention has values of another width than keys, which segments cannot take."""
    path = saved(DeepseekV3Config(**COMMON, num_key_value_heads=2, **LATENT))
    reporter, settings = Noting(), {"epochs": 1, "check_logprobs": False, "tokens_per_micro_batch": 40}
    checkpoint = bench.train(reporter, policy=bench.policy(path), **settings)
    assert "deepseek_v3: attention segments does not work here" in reporter.notes[0]
    notes = checkpoint.manifest.provenance.notes
    assert notes["attention"] == "sdpa"
    assert notes["packing"]["padding"] > 0
    assert notes["other_work"] >= 0


def test_weights_that_are_missing_are_named_instead_of_drawn_at_random(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["lm_head.weight"], weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"hold no lm_head.weight, model.layers.1.mlp.up_proj.weight, which Qwen2ForCausalLM"):
        loaded(copied)


def test_a_weight_that_never_has_a_gradient_is_resumed_as_it_was(tmp_path: Path) -> None:
    """As those of the picture part of a model that is trained on text."""
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.full((3,), 7.0))
    masters = {"used": used, "unused": unused}
    optimizer = torch.optim.AdamW(masters.values(), lr=0.1, fused=True)
    used.grad = torch.ones(2)
    optimizer.step()
    resume.save(tmp_path, 1, masters, optimizer, resume.Records(), alone())
    again = {name: nn.Parameter(torch.zeros_like(value)) for name, value in masters.items()}
    fresh = torch.optim.AdamW(again.values(), lr=0.1, fused=True)
    assert resume.load(tmp_path, again, fresh, alone())[0] == 1
    assert all(torch.equal(again[name], value) for name, value in masters.items())
    assert torch.equal(fresh.state[again["used"]]["exp_avg"], optimizer.state[used]["exp_avg"])
    assert not fresh.state[again["unused"]]


@pytest.mark.parametrize("given", [{"temperature": 0.7}, {"do_sample": False, "temperature": 0.6, "top_p": 0.9}])
def test_generation_settings_that_transformers_would_refuse_are_copied_as_they_are(
    given: dict[str, Any], bench: Any, copied: Path
) -> None:
    (copied / "generation_config.json").write_text(json.dumps(given))
    checkpoint: Artifact = bench.train(policy=bench.policy(copied), epochs=1, check_logprobs=False)
    assert json.loads((checkpoint.path / "generation_config.json").read_text()) == given
