"""The stored tokens, logprobs, texts and seeds, against transformers in fp32 on real output of vLLM."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.run.record import load_run
from pipeline.run.state import Answers
from pipeline.store import Artifact, read_table
from schemas import Rollouts

PER_TOKEN = 1e-4
"""Largest difference of one logprob, nats. Measured: 2.4e-5."""
WHOSE = pytest.mark.parametrize("iteration", [0, 1], ids=["base model", "trained checkpoint"])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Short rows: more threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policies(finished: Any) -> list[Any]:
    """The model of each iteration, as transformers loads it."""
    steps = load_run(finished.directory).iterations
    return [AutoModelForCausalLM.from_pretrained(step.policy.path, dtype=torch.float32).eval() for step in steps]


def answers_of(finished: Any, iteration: int) -> Answers:
    answers = load_run(finished.directory).iterations[iteration].answers
    assert answers is not None
    return answers


def rows_of(artifact: Artifact | None) -> list[dict[str, Any]]:
    assert artifact is not None
    return read_table(artifact, Rollouts).to_dicts()


@torch.no_grad()
def logits_of(model: Any, row: dict[str, Any]) -> Tensor:
    """Logits before each completion token: [completion, vocabulary]."""
    prompt, completion = row["prompt_token_ids"], row["completion_token_ids"]
    return model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]


def largest_difference(model: Any, rows: list[dict[str, Any]], temperature: float) -> float:
    """Of stored and recomputed logprobs, over every token."""
    worst = 0.0
    for row in rows:
        logprobs = (logits_of(model, row) / temperature).log_softmax(-1)
        drawn = logprobs.gather(-1, torch.tensor(row["completion_token_ids"])[:, None])[:, 0]
        worst = max(worst, float((drawn - torch.tensor(row["behavior_logprobs"])).abs().max()))
    return worst


@WHOSE
def test_logprobs_at_temperature_1_are_the_models(finished: Any, policies: list[Any], iteration: int) -> None:
    rows = rows_of(answers_of(finished, iteration).sampled)
    assert {row["temperature"] for row in rows} == {1.0}
    assert largest_difference(policies[iteration], rows, 1.0) < PER_TOKEN


def test_logprobs_at_temperature_0_7_are_those_of_the_scaled_logits(finished: Any, policies: list[Any]) -> None:
    rows = rows_of(answers_of(finished, 0).rollouts)
    assert {row["temperature"] for row in rows} == {0.7}
    assert largest_difference(policies[0], rows, 0.7) < PER_TOKEN
    assert largest_difference(policies[0], rows, 1.0) > 100 * PER_TOKEN


@WHOSE
def test_greedy_tokens_are_the_likeliest(finished: Any, policies: list[Any], iteration: int) -> None:
    for row in rows_of(answers_of(finished, iteration).greedy):
        logits = logits_of(policies[iteration], row)
        chosen = logits.gather(-1, torch.tensor(row["completion_token_ids"])[:, None])[:, 0]
        assert float((logits.max(-1).values - chosen).max()) < PER_TOKEN
        assert row["seed"] is None


def test_texts_are_the_decoded_tokens(finished: Any) -> None:
    policy = load_run(finished.directory).iterations[0].policy
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    answers = answers_of(finished, 0)
    for row in rows_of(answers.rollouts) + rows_of(answers.sampled) + rows_of(answers.greedy):
        assert tokenizer.decode(row["completion_token_ids"], skip_special_tokens=True) == row["completion_text"]
        assert tokenizer(row["prompt_text"])["input_ids"] == row["prompt_token_ids"]
        assert row["prompt_text"].startswith("Q:")
        ended = row["completion_token_ids"][-1] == tokenizer.eos_token_id
        assert (row["finish_reason"], row["status"]) == (("stop", "ok") if ended else ("length", "truncated"))


def test_no_two_completions_share_a_seed(finished: Any) -> None:
    answers = answers_of(finished, 0)
    rows = rows_of(answers.rollouts) + rows_of(answers.sampled)
    seeds = [row["seed"] for row in rows]
    assert len(set(seeds)) == len(seeds) == 8 * 4 + 16 * 2
    assert all(abs(a - b) > 1000 for a, b in zip(sorted(seeds), sorted(seeds)[1:], strict=False))


def test_samples_of_a_prompt_differ(finished: Any) -> None:
    frame = read_table(answers_of(finished, 0).sampled, Rollouts)
    texts = frame.group_by("group_id").agg(pl.col("completion_text").n_unique())["completion_text"]
    assert texts.max() == 2


def test_held_out_seeds_are_those_of_the_prompt_whatever_the_checkpoint(finished: Any) -> None:
    first, last = (read_table(answers_of(finished, iteration).sampled, Rollouts) for iteration in (0, 1))
    keys = ["prompt_id", "sample_index", "seed"]
    assert first.select(keys).sort(keys).equals(last.select(keys).sort(keys))


@pytest.mark.slow
def test_other_batches_and_shards_give_the_same_completions(finished: Any, served: Any, tmp_path: Path) -> None:
    changes = ("engine.max_num_seqs=3", "generate.shard_groups=3", f"run_dir={tmp_path / 'run'}")
    ended = served("generate", finished.config, *(part for change in changes for part in ("--set", change)))
    assert ended.status == 0, ended.err
    other = load_run(tmp_path / "run").iterations[0].answers
    assert other is not None
    answers = answers_of(finished, 0)
    keys = ["prompt_id", "sample_index"]
    for before, after in ((answers.rollouts, other.rollouts), (answers.sampled, other.sampled), (answers.greedy, other.greedy)):
        assert before and after and before.id != after.id
        one, two = (read_table(artifact, Rollouts).sort(keys) for artifact in (before, after))
        same = [*keys, "seed", "prompt_token_ids", "completion_token_ids", "completion_text", "reward", "status"]
        assert one.select(same).equals(two.select(same))
        drift = (one["behavior_logprobs"].explode() - two["behavior_logprobs"].explode()).abs().max()
        assert drift < 1e-5
