"""Files of other tools, all the way: imported, audited, and trained on by a comparison with the tiny model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "data" / "base"
FIXTURES = ROOT / "tests" / "pipeline" / "exchange" / "imports" / "fixtures"
OFTEN = ("art", "trl", "verifiers/traces.jsonl", "verl")
OTHERS = (
    *("atropos", "inspect_ai/sums.json", "lighteval", "llamafactory", "lm_eval/samples_sums_hf.jsonl"),
    *("ms_swift/completions.jsonl", "ms_swift/infer_result.jsonl", "nemo_rl", "nemo_rl_filtered", "open_instruct"),
    *("open_instruct_run", "openai", "openr1", "preference/train_prefs.parquet", "preference/hh_strings.jsonl"),
    *("skyrl/sums_test.jsonl", "trinity", "trl_extra", "verifiers/traces_tokens.jsonl", "verifiers_0_1", "verl_lists", "verl_v1"),
)
SAMPLES = [
    *(pytest.param(sample, marks=pytest.mark.slow) for sample in OFTEN),
    *(pytest.param(sample, marks=pytest.mark.long) for sample in OTHERS),
]


@pytest.fixture(scope="module")
def run(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run, whose model is trained and whose prompts judge it."""
    copy = tmp_path_factory.mktemp("samples") / "run"
    shutil.copytree(finished.directory, copy)
    return copy


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_sample_is_imported_audited_and_trained_on(rollbook: Any, run: Path, sample: str) -> None:
    files = sorted((FIXTURES / sample).iterdir()) if sample == "openai" else [FIXTURES / sample]
    made = rollbook("import", *files, "--store", run / "artifacts", "--model", BASE, "--json")
    assert made.status == 0, made.err
    path = Path(json.loads(made.out)["path"])
    audit = rollbook("audit", path)
    assert audit.status == 0, audit.out + audit.err
    said = rollbook("compare", path, "--run", run, "--algorithms", "sft", "--no-baseline", "--json")
    assert said.status == 0, said.err
    trial = pl.read_parquet(Path(json.loads(said.out)["path"]) / "comparison.parquet").row(0, named=True)
    rewards = pl.read_parquet(path / "part-*.parquet", columns=["reward"])["reward"]
    assert (trial["algorithm"], trial["status"]) == ("sft", "ok")
    assert (trial["steps"] > 0) == (rewards.count() > 0)  # what has no rewards teaches nothing
