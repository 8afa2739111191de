"""What shows only once the engine or the graders work: one clear message, status 2, and what was good is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.generate.engine import engine_environment
from pipeline.store import Store
from schemas import Rollouts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HELDOUT = {"path": str(ROOT / "data/arithmetic/heldout.parquet"), "prompt_id": "prompt_id", "limit": 2}
SMALL = {"generate": {"prompts": 2, "samples": 2, "shard_groups": 1}, "evaluate": {"samples": 1, "k": [1], "greedy": False}}


def small(write_config: Callable[..., Path], directory: Path, data: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A run of 2 x 2 completions and 2 held-out prompts, in `directory`."""
    run = str(directory / "run")
    return write_config(directory / "bad.yaml", run_dir=run, data={"heldout": HELDOUT, **(data or {})}, **SMALL, **changes)


def only_message(ended: Any) -> str:
    """The command ended with status 2 and one message, which is returned on one line. Warnings may come before."""
    assert ended.status == 2, ended.err
    assert "Traceback" not in ended.err + ended.out
    before, rollbook, message = ended.err.rpartition("rollbook: ")
    assert rollbook and all(line.startswith(("generate", "✓", "rollbook: ")) for line in before.splitlines()), ended.err
    return " ".join(message.split())


def rollouts_in(run: Path) -> pl.DataFrame:
    """Every completion on disk, in finished artifacts or not."""
    files = sorted((run / "artifacts" / "rollouts").glob("*/part-*.parquet"))
    return pl.concat([pl.read_parquet(file) for file in files])


def finished_kinds(run: Path) -> list[str]:
    return sorted(artifact.kind for artifact in Store(run / "artifacts").artifacts())


def test_a_model_that_vllm_cannot_run(served: Any, write_config: Callable[..., Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    GPT2LMHeadModel(GPT2Config(vocab_size=259, n_positions=256, n_embd=20, n_layer=1, n_head=2)).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "data/base" / name, model / name)
    message = only_message(served("run", small(write_config, tmp_path, model={"path": str(model)})))
    assert "vLLM" in message and "cannot" in message and "10" in message  # the head dimension, in the words of vLLM
    assert finished_kinds(tmp_path / "run") == ["checkpoint", "prompts", "prompts"]


def test_an_architecture_that_nobody_knows(served: Any, write_config: Callable[..., Path], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(ROOT / "data/base", model)
    config = model / "config.json"
    config.write_text(config.read_text().replace('"qwen2"', '"abacus"').replace("Qwen2ForCausalLM", "AbacusForCausalLM"))
    message = only_message(served("run", small(write_config, tmp_path, model={"path": str(model)})))
    assert "abacus" in message
    assert finished_kinds(tmp_path / "run") == ["checkpoint", "prompts", "prompts"]


def test_a_prompt_longer_than_the_context(served: Any, write_config: Callable[..., Path], tmp_path: Path) -> None:
    rows = pl.DataFrame({"prompt_id": ["short", "long"], "question": ["1+1", "1+" * 150 + "1"], "answer": ["2", "151"]})
    rows.write_parquet(tmp_path / "train.parquet")
    source = {"path": str(tmp_path / "train.parquet"), "prompt_id": "prompt_id"}
    config = small(write_config, tmp_path, data={"train": source})
    message = only_message(served("run", config))
    assert "train.parquet, row 1: the prompt has 304 tokens, and the context holds 256" in message
    assert "engine.max_model_len" in message and "bad_rows: set_aside" in message
    assert finished_kinds(tmp_path / "run") == []


ASKED = """
import sys
from pathlib import Path
from pipeline.config.engine import EngineConfig, SamplingConfig
from pipeline.generate.engine import CompletionRequest, Engine

engine = Engine(Path(sys.argv[1]), EngineConfig(kv_cache_mib=32, max_num_seqs=8), "float32", trust_remote_code=False)
prompts = [[5, 6], [5] * 256, [5] * 300, [999999]]
asks = [CompletionRequest((0, 0, number), prompt, SamplingConfig(max_tokens=2), seed=1) for number, prompt in enumerate(prompts)]
replies = [reply for ask in asks if (reply := engine.add(ask))]
while engine.is_busy:
    replies += engine.step()
for reply in sorted(replies, key=lambda reply: reply.key):
    print("reply", reply.key[2], len(reply.token_ids), reply.error)
"""


def test_what_the_engine_refuses_is_a_reply_with_its_reason() -> None:
    """vLLM has other limits than those that are looked at before, and errors of its own for them."""
    command = [sys.executable, "-c", ASKED, str(ROOT / "data/base")]
    ended = subprocess.run(command, cwd=ROOT, env={**os.environ, **engine_environment()}, capture_output=True, text=True)
    answered, *refused = [line for line in ended.stdout.splitlines() if line.startswith("reply")]
    assert answered == "reply 0 2 None", ended.stderr
    assert [line[:9] for line in refused] == ["reply 1 0", "reply 2 0", "reply 3 0"]
    assert "maximum model length of 256" in refused[0] and "300" in refused[1] and "out of vocabulary" in refused[2]


def test_a_grader_that_always_raises_and_is_then_given_what_it_misses(
    served: Any, write_config: Callable[..., Path], tmp_path: Path
) -> None:
    source = """
        from pathlib import Path

        def grade(completion, answer, prompt):
            return float(Path("worth.txt").read_text()) * len(completion)
    """
    (tmp_path / "graders.py").write_text(textwrap.dedent(source))
    config = small(write_config, tmp_path, reward={"components": [{"grader": "graders:grade"}]})
    ended = served("run", config, cwd=tmp_path)
    message = only_message(ended)
    assert "rollbook: reward.components.0 (graders:grade): fails on the right answer to prompt" in ended.err
    assert "rewards failed, more than reward.max_failed_share=0.2" in message
    assert "FileNotFoundError" in message and "worth.txt" in message
    assert "mend the grader and run the same command again" in message
    kept = rollouts_in(tmp_path / "run")
    assert Rollouts.check(kept).bad.is_empty()
    assert kept["status"].unique().to_list() == ["reward_error"]
    assert kept["behavior_logprobs"].null_count() == 0

    (tmp_path / "worth.txt").write_text("2.0")
    ended = served("evaluate", config, cwd=tmp_path)
    assert ended.status == 0, ended.err
    mended = rollouts_in(tmp_path / "run")
    assert set(mended["status"]) <= {"ok", "truncated"}
    assert mended["reward"].to_list() == [2.0 * len(text) for text in mended["completion_text"]]
    columns = ["group_id", "sample_index", "completion_token_ids", "behavior_logprobs", "seed"]
    assert kept.select(columns).join(mended.select(columns), on=columns, how="anti").is_empty()


def test_a_grader_that_hangs(rollbook: Any, write_config: Callable[..., Path], tmp_path: Path) -> None:
    source = """
        import signal, time

        def grade(completion, answer, prompt):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
    """
    (tmp_path / "graders.py").write_text(textwrap.dedent(source))
    reward = {"components": [{"grader": "graders:grade"}], "timeout_seconds": 0.5}
    started = rollbook.start("run", small(write_config, tmp_path, reward=reward), cwd=tmp_path)
    message = only_message(started.wait())
    assert "no answer within 0.5 s" in message
    assert started.left_over() == {}
    kept = rollouts_in(tmp_path / "run")
    assert kept["status"].unique().to_list() == ["reward_error"]
    assert kept["completion_token_ids"].list.len().min() >= 1
