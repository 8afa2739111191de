"""A mixture of two models in vLLM, token by token, against transformers in fp32."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from pipeline.generate.engine import engine_environment
from pipeline.generate.mixture.reference import mixture_logprobs

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "data/base"
PER_TOKEN = 2e-5
"""Largest difference of one logprob, nats. Measured: 5.5e-6."""
SMALLER = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2, "hidden_size": 64, "num_attention_heads": 2}
SMALLER |= {"num_key_value_heads": 2, "intermediate_size": 256}
DRAWN = """
import json, sys
from pathlib import Path
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.engine import CompletionRequest, Engine
from pipeline.generate.mixture.folder import MixedWith

policy, other, share, temperature = sys.argv[1:]
config, mixed = EngineConfig(kv_cache_mib=64, max_num_seqs=8), MixedWith(other, float(share))
engine = Engine(Path(policy), config, "float32", trust_remote_code=False, mixed=mixed)
sampling = SamplingConfig(max_tokens=24, temperature=float(temperature))
prompts = [[51, 28, 19 + number, 26, 13, 22, 18, 15, 20, 31] for number in range(8)]
for number, prompt in enumerate(prompts):
    assert engine.add(CompletionRequest((0, number, 0), prompt, sampling, seed=number)) is None
while engine.is_busy:
    for reply in engine.step():
        row = {"group_id": str(reply.key[1]), "sample_index": 0, "prompt_token_ids": prompts[reply.key[1]]}
        drawn = {"completion_token_ids": reply.token_ids, "behavior_logprobs": reply.logprobs, "engine": engine.name}
        print("row", json.dumps({**row, **drawn, "temperature": sampling.temperature}))
"""


def another(directory: Path, **changes: Any) -> Path:
    """A model of the base model's tokens with weights of its own, of another size if told so."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**json.loads((BASE / "config.json").read_text()), **changes})
    torch.manual_seed(1)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0 if weight.dim() > 1 else 1.0)  # far from uniform
    model.save_pretrained(directory)
    return directory


def drawn(policy: Path, other: Path, share: float, temperature: float) -> pl.DataFrame:
    command = [sys.executable, "-c", DRAWN, str(policy), str(other), str(share), str(temperature)]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **engine_environment()}, capture_output=True, text=True)
    rows = [json.loads(line.removeprefix("row ")) for line in ended.stdout.splitlines() if line.startswith("row ")]
    assert len(rows) == 8, ended.stderr
    return pl.DataFrame(rows)


@pytest.mark.parametrize(
    ("changes", "share", "temperature"),
    [({}, 0.125, 1.0), (SMALLER, -0.5, 0.7)],
    ids=["same size", "another size, away from it, at a temperature"],
)
def test_stored_logprobs_are_those_of_the_mixture(
    tmp_path: Path, changes: dict[str, Any], share: float, temperature: float
) -> None:
    other = another(tmp_path / "other", **changes)
    rows = drawn(BASE, other, share, temperature)
    assert set(rows["engine"].str.split(", ").list.last()) == {f"mixed by {share:g}"}

    def difference(of: float) -> float:
        again = mixture_logprobs(rows, BASE, other, of, "float32")
        both = rows.join(again, on=["group_id", "sample_index"])
        return float((both["logprobs"].explode() - both["behavior_logprobs"].explode()).abs().max())  # type: ignore[arg-type]

    assert difference(share) < PER_TOKEN
    assert difference(0.0) > 1000 * PER_TOKEN
