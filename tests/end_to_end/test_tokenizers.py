"""Models whose tokenizer transformers rebuilds, and whose texts lose their first space: vLLM, graders and audits agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flows.answers import hands, working
from flows.chain import chain
from pipeline.config.run import RunConfig
from pipeline.look.audit.audit import audit
from pipeline.store import Artifact, read_table
from schemas import Rollouts

QUESTIONS = ("Please work out 24+7.", "The answer is", "Stop here, now", "31")


def save_model(path: Path, vocabulary: int) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = LlamaConfig(**sizes, **ends, intermediate_size=32, vocab_size=vocabulary, max_position_embeddings=128)
    LlamaForCausalLM(config).save_pretrained(path)


@pytest.fixture
def answered(
    save_tokenizer: Callable[..., Any], settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[Artifact]]:
    """answered("bytes", [(), (" ",)]): the held-out answers with each of these stop texts, from one engine."""

    def answer(kind: str, stops: list[tuple[str, ...]]) -> list[Artifact]:
        monkeypatch.chdir(tmp_path)
        made = save_tokenizer(tmp_path / "model", kind, tokenizer_class="LlamaTokenizerFast")
        save_model(tmp_path / "model", made.get_vocab_size())
        for name, questions in (("train", ["24+7"]), ("heldout", QUESTIONS)):
            rows = [json.dumps({"question": question, "answer": "31"}) for question in questions]
            (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        sizes = {"evaluate.samples": 8, "evaluate.greedy": False, "generate.max_tokens": 24, "engine.kv_cache_mib": 64}
        found = []
        with hands() as processes:
            for stop in stops:
                changes = {
                    **sizes,
                    "generate.stop": list(stop),
                    "data.template": "<s>{question}",
                    "run_dir": str(tmp_path / "run"),
                }
                config = RunConfig.model_validate(settings(changes))
                (step,) = chain(config, working(config, processes), until=("generate", 0)).iterations
                assert step.answers
                found.append(step.answers.sampled)
        return found

    return answer


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "stop"), [("bytes", " "), ("spaces", ".")])
def test_stop_texts_cut_what_is_the_same_without_them(
    answered: Callable[..., list[Artifact]], tmp_path: Path, kind: str, stop: str
) -> None:
    whole, cut = (read_table(artifact, Rollouts) for artifact in answered(kind, [(), (stop,)]))
    stopped = 0
    for one, other in zip(whole.iter_rows(named=True), cut.iter_rows(named=True), strict=True):
        assert one["prompt_token_ids"] == other["prompt_token_ids"] and one["prompt_token_ids"].count(0) == 1
        length = len(other["completion_token_ids"])
        assert one["completion_token_ids"][:length] == other["completion_token_ids"]
        if length < len(one["completion_token_ids"]):
            stopped += 1
            assert other["completion_text"] == one["completion_text"].partition(stop)[0]
        else:
            assert other["completion_text"] == one["completion_text"]
    assert stopped > 8
    sound = audit(tmp_path / "run" / "artifacts")
    assert [finding for finding in sound.findings if finding.severity != "note"] == []
    assert pl.concat([whole, cut])["completion_text"].str.contains("Ġ|▁").sum() == 0
