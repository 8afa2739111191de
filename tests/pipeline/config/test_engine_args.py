"""Settings of vLLM that are handed on, and those that are not."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.config.engine import EngineConfig


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"logprobs_mode": "raw_logprobs"}, "args: logprobs_mode: stored logprobs are those of the distribution"),
        ({"seed": 1}, "args: seed: every completion has a seed of its own"),
        ({"kv_cache_dtype": "fp8", "max_num_seqs": 4}, "args: max_num_seqs: set engine.max_num_seqs"),
        ({"dtype": "float16"}, "args: dtype: set model.dtype"),
        ({"speculative_config": {"method": "ngram"}}, "guessed tokens are drawn otherwise"),
        ({"spec_tokens": 3}, "guessed tokens are drawn otherwise"),
        ({"override_generation_config": {"top_k": 1}}, "changes the distribution"),
        ({"logits_processors": ["a:b"]}, "changes the distribution"),
        ({"hf_overrides": {"rope_theta": 1.0}}, "as it was trained"),
        ({"enable_lora": True}, "as it was trained"),
        ({"data_parallel_size": 2}, "engine.replicas"),
        ({"worker_extension_cls": "a.B"}, "names code"),
        ({"kv-cache-dtype": "fp8"}, "expected vLLM's name of a setting as Python has it"),
        ({"pipeline_parallel_size": "2"}, "expected a whole number"),
    ],
)
def test_what_would_break_what_is_promised_is_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EngineConfig(args=args)


def test_servers_have_settings_of_their_own() -> None:
    with pytest.raises(ValidationError, match="servers are started with theirs"):
        EngineConfig.model_validate({"server": "http://gpu1:8000", "args": {"kv_cache_dtype": "fp8"}})


def test_stages_of_a_pipeline_take_gpus() -> None:
    assert EngineConfig(tensor_parallel_size=2, args={"pipeline_parallel_size": 3}).gpus == 6
