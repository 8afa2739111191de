"""Settings of vLLM that rollbook does not name (`engine.args`): which are refused, and which say only how the work is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_OWN = {
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "kv_cache_memory_bytes": "engine.kv_cache_mib",
    "enforce_eager": "engine.enforce_eager",
    "dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
}
_WHY = (
    (r"data_parallel_.*|nnodes|node_rank|master_.*|device_ids", "how many engines there are is engine.replicas's to say"),
    (
        r"logprobs_mode",
        "stored logprobs are those of the distribution that tokens are drawn from, and no others can be trained on",
    ),
    (r"max_logprobs|stream_interval|disable_log_stats|tokens_only", "rollbook asks for completions and logprobs in its own way"),
    (r"seed|enable_trace_replay", "every completion has a seed of its own, from the run's `seed`"),
    (r"speculative_config|spec_.*", "guessed tokens are drawn otherwise than their seeds say"),
    (
        r"logits_processors|watermark_config|(override_)?generation_config|reasoning_.*|structured_outputs_config",
        "it changes the distribution that tokens are drawn from, or where they end, beyond what rows record",
    ),
    (
        r"model|model_weights|model_class_overrides|hf_.*|(code_|tokenizer_)?revision|config_format|served_model_name|lo(ra|ras)_.*"
        r"|enable_(moe_shared_)?loras?|tokenizer|tokenizer_mode|skip_tokenizer_init|load_format|download_dir|runner|convert"
        r"|enable_prompt_embeds|weight_transfer_config",
        "the checkpoint answers as it was trained, with its own tokenizer",
    ),
    (
        r"worker_cls|worker_extension_cls|scheduler_cls|.*_plugin|model_loader_extra_config|distributed_executor_backend",
        "it names code or places that the run's record would not hold",
    ),
)
_REFUSED = [(re.compile(pattern), why) for pattern, why in _WHY]

OF_THE_WORK = frozenset(
    {
        *("max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_partial_prefills", "long_prefill_token_threshold"),
        *("enable_chunked_prefill", "enable_prefix_caching", "prefix_caching_hash_algo", "block_size", "num_gpu_blocks_override"),
        *("pipeline_parallel_size", "decode_context_parallel_size", "enable_expert_parallel", "expert_placement_strategy"),
        *("enable_eplb", "eplb_config", "all2all_backend", "moe_backend", "linear_backend", "attention_backend"),
        *("attention_config", "kernel_config", "mamba_backend", "disable_cascade_attn", "disable_custom_all_reduce"),
        *("cpu_offload_gb", "kv_offloading_size", "kv_offloading_backend", "enable_sleep_mode", "enable_cumem_allocator"),
        *("compilation_config", "optimization_level", "performance_mode", "cudagraph_capture_sizes", "async_scheduling"),
        *("max_cudagraph_capture_size", "max_parallel_loading_workers", "safetensors_load_strategy", "use_tqdm_on_load"),
        *("scheduling_policy", "numa_bind", "numa_bind_nodes", "numa_bind_cpus", "distributed_timeout_seconds"),
    }
)
"""They change what is drawn by rounding at most, and so no artifact's key. Any other is part of the key."""


def refused(args: Mapping[str, Any]) -> str | None:
    """Why these are not handed to vLLM; None if they are.

    >>> refused({"seed": 3})
    "seed: every completion has a seed of its own, from the run's `seed`"
    >>> refused({"max_num_seqs": 3})
    'max_num_seqs: set engine.max_num_seqs'
    >>> refused({"kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192})
    """
    for name in args:
        if not re.fullmatch("[a-z][a-z0-9_]*", name):
            return f"{name!r}: expected vLLM's name of a setting as Python has it, such as kv_cache_dtype"
        if name in _OWN:
            return f"{name}: set {_OWN[name]}"
        if why := next((why for pattern, why in _REFUSED if pattern.fullmatch(name)), None):
            return f"{name}: {why}"
    return None


def of_the_key(args: Mapping[str, Any]) -> dict[str, Any]:
    """Those that change what is drawn.

    >>> of_the_key({"kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192})
    {'kv_cache_dtype': 'fp8'}
    """
    return {name: value for name, value in args.items() if name not in OF_THE_WORK}
