"""A run that trains adapters: vLLM generates from merged checkpoints what the trainer computes, and an audit finds them sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.run.record import load_run
from pipeline.store import read_table
from schemas import Metrics

pytestmark = pytest.mark.slow
CLOSE = 1e-4
"""Largest difference of engine's and trainer's logprobs of one token, nats; both compute in fp32."""


def test_the_engine_generates_from_a_merged_checkpoint(served: Any, finished: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = (f"run_dir={run}", "iterations=2", "train.lora.rank=4", "train.learning_rate=1e-3")
    ended = served("run", finished.config, *(word for setting in settings for word in ("--set", setting)))
    assert ended.status == 0, ended.err
    first, second, _ = load_run(run).iterations
    assert first.checkpoint and second.checkpoint and second.answers
    assert second.answers.rollouts.parent("policy").id == first.checkpoint.id
    files = {file.path for file in first.checkpoint.manifest.content.files}
    assert {"model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"} <= files
    assert read_table(second.checkpoint, Metrics)["logprob_difference_max"][0] < CLOSE
    audited = served("audit", run, "--deep")
    assert audited.status == 0, audited.out
