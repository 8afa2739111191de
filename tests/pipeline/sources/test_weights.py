"""Models that lack weights are refused by the names of what is missing; sound ones of every kind are not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from pipeline.common.errors import UserError
from pipeline.sources.headers import looks_incomplete
from pipeline.sources.weights import keep_apart, lacking_weights, refuse_incomplete, refuse_missing_weights, refuse_without_head

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 100,
}
UNTIED = LlamaConfig(**SIZES, tie_word_embeddings=False)
TIED = LlamaConfig(**SIZES, tie_word_embeddings=True)
KINDS: dict[str, PreTrainedConfig] = {
    "untied": UNTIED,
    "tied": TIED,
    "qwen2": Qwen2Config(**SIZES),
    "gemma2": Gemma2Config(**SIZES, head_dim=16),
    "phi": PhiConfig(**SIZES),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=2),
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=100),
}


def save(directory: Path, config: PreTrainedConfig, **how: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory, **how)
    return directory


def without(directory: Path, *names: str) -> Path:
    """The model without some tensors."""
    file = directory / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if name not in names}, file, {"format": "pt"})
    assert len(load_file(file)) == len(tensors) - len(names)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_model_lacks_nothing(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, KINDS[kind])
    capfd.readouterr()
    refuse_missing_weights(tmp_path)
    assert capfd.readouterr().err == ""  # a check is no loading, and shows no bar
    refuse_without_head(tmp_path)


def test_a_model_in_several_files_lacks_nothing(tmp_path: Path) -> None:
    save(tmp_path, UNTIED, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert lacking_weights(tmp_path, trust_remote_code=False) == []


def test_names_of_the_bare_model_and_a_tied_head_alone_are_no_fault(tmp_path: Path) -> None:
    """Some files leave the prefix out; some hold the head where the embedding is tied to it."""
    file = save(tmp_path, TIED) / "model.safetensors"
    tensors = {name.removeprefix("model."): value for name, value in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    assert lacking_weights(tmp_path, trust_remote_code=False) == []
    tensors["lm_head.weight"] = tensors.pop("embed_tokens.weight")
    save_file(tensors, file, {"format": "pt"})
    assert lacking_weights(tmp_path, trust_remote_code=False) == []


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"])
def test_a_missing_weight_is_refused_by_name(name: str, tmp_path: Path) -> None:
    without(save(tmp_path, UNTIED), name)
    with pytest.raises(UserError, match=rf"its files lack {name}, which the model of config\.json needs\. Engines"):
        refuse_missing_weights(tmp_path)


LOST = (
    *("lm_head.weight", "model.norm.weight", "model.embed_tokens.weight", "model.layers.1.input_layernorm.weight"),
    *("model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"),
)


@pytest.mark.parametrize("name", LOST)
def test_check_sees_in_the_headers_that_a_weight_is_missing(name: str, tmp_path: Path) -> None:
    without(save(tmp_path, UNTIED), name)
    with pytest.raises(UserError, match=re.escape(name) if name != "lm_head.weight" else "no head"):
        refuse_incomplete(tmp_path, trust_remote_code=False)


def test_check_sees_that_layers_or_one_projection_of_all_are_missing(tmp_path: Path) -> None:
    names = list(load_file(save(tmp_path / "a", UNTIED) / "model.safetensors"))
    without(tmp_path / "a", *(name for name in names if ".layers.1." in name))
    without(save(tmp_path / "b", UNTIED), *(name for name in names if "v_proj" in name))
    for place in ("a", "b"):
        with pytest.raises(UserError, match=r"its files lack model\.layers\."):
            refuse_incomplete(tmp_path / place, trust_remote_code=False)


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_sound_model_check_asks_no_library(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, KINDS[kind])
    monkeypatch.setattr("pipeline.sources.weights.refuse_missing_weights", lambda *_, **__: pytest.fail("it was asked"))
    refuse_incomplete(tmp_path, trust_remote_code=False)


def test_layers_that_differ_from_one_another_look_complete() -> None:
    """Dense layers before those with experts, layers with attention of two kinds, one more layer that predicts further tokens."""
    attention = ["self_attn.q_a_proj.weight", "self_attn.kv_b_proj.weight", "self_attn.o_proj.weight"]
    dense, experts = (
        ["mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"],
        ["mlp.experts.0.w1", "mlp.gate.weight"],
    )
    kinds = [attention + dense, attention + experts, attention + experts, attention + experts + ["eh_proj.weight"]]
    names = [f"model.layers.{number}.{name}" for number, kind in enumerate(kinds) for name in kind]
    names += ["model.embed_tokens.weight", "model.norm.weight"]
    assert not looks_incomplete(names, 3)
    assert looks_incomplete(names, 4) and looks_incomplete(
        [name for name in names if "experts.0" not in name or ".2." not in name], 3
    )


def test_an_expert_that_is_missing_is_missed(tmp_path: Path) -> None:
    save(tmp_path, KINDS["mixtral"])
    names = [name for name in load_file(tmp_path / "model.safetensors") if ".layers.1." in name and ".w2." in name]
    without(tmp_path, *names)
    assert lacking_weights(tmp_path, trust_remote_code=False) == ["model.layers.1.mlp.experts.down_proj"]


def test_a_missing_embedding_of_a_tied_model_is_refused(tmp_path: Path) -> None:
    without(save(tmp_path, TIED), "model.embed_tokens.weight")
    assert "model.embed_tokens.weight" in lacking_weights(tmp_path, trust_remote_code=False)


def test_a_weight_of_another_shape_is_refused_with_both(tmp_path: Path) -> None:
    save(tmp_path, UNTIED)
    settings = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**settings, "vocab_size": 90}), encoding="utf-8")
    with pytest.raises(UserError, match=r"lack lm_head\.weight as \[90, 32\] \(it is \[100, 32\]\), model\.embed_tokens"):
        refuse_missing_weights(tmp_path)


def test_check_misses_a_head_without_asking_a_library(tmp_path: Path) -> None:
    without(save(tmp_path, UNTIED), "lm_head.weight")
    with pytest.raises(
        UserError, match=r"tie_word_embeddings: false, and the weights' files hold model\.embed_tokens\.weight but"
    ):
        refuse_without_head(tmp_path)


@pytest.mark.parametrize("settings", [{}, {"model_type": "unheard-of"}, {"model_type": "llama", "quantization_config": {}}])
def test_of_what_transformers_does_not_know_nothing_is_said(
    settings: dict[str, Any], tmp_path: Path, write_model: Callable[..., Path]
) -> None:
    write_model(tmp_path / "model", **{"config.json": json.dumps(settings).encode()})
    assert lacking_weights(tmp_path / "model", trust_remote_code=False) == []


def test_an_untied_model_whose_tensors_share_memory_is_saved_with_its_head(tmp_path: Path) -> None:
    """transformers saves shared memory once, under the name of a tied model's weight, whatever the config says."""
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    model.config.tie_word_embeddings = False
    keep_apart(model)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], saved["model.embed_tokens.weight"])
    assert lacking_weights(tmp_path, trust_remote_code=False) == []


def test_a_tied_model_is_saved_with_one_of_both(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True))
    keep_apart(model)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
