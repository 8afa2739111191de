"""Tiny random models of every causal family that transformers knows and vLLM serves: what a config needs beside common sizes.

A family is there under the model_type of its config. Sizes are the smallest that vLLM's kernels take: heads of 32.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

WINDOW = 32
"""Tokens of sliding windows and chunks, so that sequences of a few dozen tokens leave them."""
LEFT_OUT = object()
"""For common sizes that a family's config does not take."""
COMMON: dict[str, Any] = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
_SHARED = {"shared_expert_intermediate_size": 32, "n_shared_experts": 1}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": 16,
}
_DEEPSEEK = {**_EXPERTS, **_LATENT, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
_GDN = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 32, "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "n_inner": 96}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "ministral3": {},
    "mixtral": {**_EXPERTS, "sliding_window": None},
    "qwen2": {},
    "qwen2_moe": {**_EXPERTS, **_SHARED},
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "qwen3_next": {**_EXPERTS, **_SHARED, **_GDN},
    "qwen3_5_text": _GDN,
    "qwen3_5_moe_text": {**_EXPERTS, **_SHARED, **_GDN},
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True, **_SLIDING, "query_pre_attn_scalar": 32},
    "gemma3_text": {"tie_word_embeddings": True, **_SLIDING, "query_pre_attn_scalar": 32},
    "gemma3n_text": {"tie_word_embeddings": True, **_SLIDING, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 260,
                     "hidden_size_per_layer_input": 16, "laurel_rank": 8, "intermediate_size": [96, 96],
                     "activation_sparsity_pattern": [0.0, 0.0], "altup_num_inputs": 2},
    "gemma4_text": {"tie_word_embeddings": True, **_SLIDING, "global_head_dim": 32, "vocab_size_per_layer_input": 260,
                    "hidden_size_per_layer_input": 16, "num_kv_shared_layers": 0, "num_global_key_value_heads": 2},
    "phi": {},
    "phi3": {},
    "phimoe": {**_EXPERTS, "intermediate_size": 32},
    "olmo": {},
    "olmo2": {},
    "olmo3": _SLIDING,
    "olmo_hybrid": _GDN,
    "olmoe": _EXPERTS,
    "smollm3": {},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.2},
    "granitemoe": {**_EXPERTS, "logits_scaling": 4.0},
    "granitemoeshared": {**_EXPERTS, "logits_scaling": 4.0, "shared_intermediate_size": 32},
    "granitemoehybrid": {**_EXPERTS, **_MAMBA2, "logits_scaling": 4.0, "shared_intermediate_size": 32,
                         "layer_types": ["mamba", "attention"]},
    "gpt_oss": {**_EXPERTS, **_SLIDING,
                "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                    "truncate": False, "original_max_position_embeddings": 128}},
    "glm": {},
    "glm4": {},
    "glm4_moe": {**_EXPERTS, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "glm4_moe_lite": _DEEPSEEK,
    "deepseek_v2": {**_DEEPSEEK, "topk_method": "greedy"},
    "deepseek_v3": _DEEPSEEK,
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 128, "lm_head_multiplier": 0.5, "projectors_bias": False},
    "falcon_mamba": {"intermediate_size": LEFT_OUT, "state_size": 16},
    "mamba": {"intermediate_size": LEFT_OUT, "state_size": 16},
    "mamba2": {"intermediate_size": LEFT_OUT, "state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 1},
    "zamba2": {"mamba_d_state": 16, "mamba_expand": 2, "n_mamba_heads": 2, "mamba_ngroups": 1,
               "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "adapter_rank": 8},
    "jamba": {**_EXPERTS, "num_experts": 2, "mamba_d_state": 16, "attn_layer_period": 2, "attn_layer_offset": 1,
              "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    "lfm2": {"conv_dim": 64, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {**_EXPERTS, "conv_dim": 64, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron": {},
    "nemotron_h": {**_EXPERTS, "n_shared_experts": 1, "mamba_num_heads": 4, "mamba_head_dim": 32, "n_groups": 1,
                   "ssm_state_size": 16, "moe_shared_expert_intermediate_size": 32, "num_hidden_layers": 3,
                   "layers_block_type": ["mamba", "attention", "mlp"], "use_mamba_kernels": False},
    "cohere": {"tie_word_embeddings": True, "logit_scale": 0.25},
    "cohere2": {**_SLIDING, "tie_word_embeddings": True, "logit_scale": 0.25},
    "ernie4_5": {},
    "ernie4_5_moe": {**_EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "exaone4": _SLIDING,
    "falcon": {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": LEFT_OUT},
    "stablelm": {},
    "starcoder2": {"sliding_window": None},
    "seed_oss": {},
    "apertus": {},
    "arcee": {},
    "hunyuan_v1_dense": {},
    "llama4_text": {**_EXPERTS, "attention_chunk_size": WINDOW, "intermediate_size_mlp": 96, "num_hidden_layers": 4,
                    "interleave_moe_layer_step": 1},
    "minimax_m2": _EXPERTS,
    "kimi_linear": {**_DEEPSEEK, "layer_types": ["linear_attention", "full_attention"]},
    "gpt2": _GPT,
    "gptj": {**_GPT, "rotary_dim": 16},
    "gpt_neox": {},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "bloom": {"n_head": 2, "n_layer": 2},
    "dbrx": {"d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": 256,
             "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
             "ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}},
}  # fmt: skip
"""By model_type."""


def save_tiny(family: str, directory: Path, tokenizer: Path) -> Path:
    """A random model of a family in a directory.

    Args:
        tokenizer: directory of a tokenizer of `COMMON`'s vocabulary.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind: Any = CONFIG_MAPPING[family]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = {**COMMON, **FAMILIES[family]}
        config = kind(**{name: value for name, value in given.items() if value is not LEFT_OUT})
        torch.manual_seed(0)
        make: Any = AutoModelForCausalLM.from_config
        model = make(config)
        model.generation_config = type(model.generation_config)()
        model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tokenizer / name).read_bytes())
    return directory
