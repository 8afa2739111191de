"""Engines for many checkpoints. The one here is a stand-in, so that its reload can fail as some builds of vLLM do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.common.errors import StageFailed
from pipeline.config.engine import EngineConfig
from pipeline.generate import live
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.live import LiveEngine
from pipeline.run.process import NeedsFreshProcess
from pipeline.store import Artifact, Request, Store

BASE = Path(__file__).resolve().parents[3] / "data/base"
PROMPTS = [[20, 30, 40], [50, 60]]


class StandIn:
    """Answers with the logprobs of the weights that it really has."""

    started = 0

    def __init__(self, model: Path, config: EngineConfig, dtype: str, *, trust_remote_code: bool, **_: Any) -> None:
        StandIn.started += 1
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.calls: list[str] = []

    def reload(self, model: Path) -> None:
        self.calls.append("reload")
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

    def begin(self, reporter: Any) -> None:
        self.calls.append("begin")

    @torch.no_grad()
    def answers_of_each(self, asks: Sequence[CompletionRequest]) -> list[list[Reply]]:
        return [list(self.answers(asks))]

    def answers(self, asks: Sequence[CompletionRequest]) -> Iterator[Reply]:
        for ask in asks:
            answer = torch.tensor([70, 80, 90])
            logits = self.model(torch.tensor([[*ask.prompt_token_ids, *answer.tolist()]])).logits
            of_answer = logits[0, len(ask.prompt_token_ids) - 1 : -1].log_softmax(-1).gather(-1, answer[:, None])[:, 0]
            yield Reply(ask.key, answer.tolist(), of_answer.tolist(), "stop", None, None)


class Deaf(StandIn):
    """Reports success and goes on with the old weights."""

    def reload(self, model: Path) -> None:
        self.calls.append("reload")


class Broken(StandIn):
    """Cannot reload."""

    def reload(self, model: Path) -> None:
        raise RuntimeError("no such method")


class Notes:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def checkpoint(store: Store, number: int, config: str = "") -> Artifact:
    """The base model with its output weights scaled: by 1 + 0.01 number."""
    with store.work(Request("checkpoint", "test/1", {"number": number, "config": config})) as work:
        if isinstance(work, Artifact):
            return work
        model: Any = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
        with torch.no_grad():
            model.lm_head.weight *= 1 + 0.01 * number
        model.save_pretrained(work.path)
        shutil.copy(BASE / "tokenizer.json", work.path)
        if config:
            (work.path / "generation_config.json").write_text(config, encoding="utf-8")
        return work.finish({"iteration": number})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def engine_for(engine: LiveEngine, policy: Artifact, dtype: str = "float32", **config: Any) -> Any:
    notes: Any = Notes()
    given = {"trust_remote_code": False, "mixed": None, "cluster": None}
    return engine.engine_for(policy, EngineConfig(**config), dtype, PROMPTS, notes, **given)


def test_an_engine_is_started_once_and_takes_later_checkpoints(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "Fleet", StandIn)
    monkeypatch.setattr(StandIn, "started", 0)
    engine = LiveEngine()
    first = engine_for(engine, checkpoint(store, 0))
    assert first.calls == ["begin"]
    assert engine_for(engine, checkpoint(store, 0)) is first
    assert first.calls == ["begin"] * 2
    assert engine_for(engine, checkpoint(store, 1)) is first
    assert first.calls == ["begin", "begin", "reload", "begin"]
    assert StandIn.started == 1


@pytest.mark.parametrize(
    ("kind", "said"), [(Deaf, "logprobs are 0.* nats from the checkpoint"), (Broken, "cannot reload weights: no such method")]
)
def test_an_engine_that_did_not_take_the_weights_is_not_used(
    store: Store, monkeypatch: pytest.MonkeyPatch, kind: type[StandIn], said: str
) -> None:
    monkeypatch.setattr(live, "Fleet", kind)
    engine = LiveEngine()
    engine_for(engine, checkpoint(store, 0))
    with pytest.raises(NeedsFreshProcess, match=said):
        engine_for(engine, checkpoint(store, 1))


def test_an_engine_serves_what_it_was_started_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "Fleet", StandIn)
    base, other = checkpoint(store, 0), checkpoint(store, 0, config='{"eos_token_id": 5}')
    for change in ({"policy": other}, {"policy": base, "max_num_seqs": 3}, {"policy": base, "dtype": "bfloat16"}):
        engine = LiveEngine()
        engine_for(engine, base)
        with pytest.raises(NeedsFreshProcess, match="started for another model or with other settings"):
            engine_for(engine, **change)


def test_weights_in_bfloat16_are_not_replaced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding hides whether they arrived."""
    monkeypatch.setattr(live, "Fleet", StandIn)
    engine = LiveEngine()
    engine_for(engine, checkpoint(store, 0), dtype="bfloat16")
    with pytest.raises(NeedsFreshProcess, match="only fp32 on a CPU"):
        engine_for(engine, checkpoint(store, 1), dtype="bfloat16")


def test_an_engine_that_cannot_start_leaves_none_behind(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object, **settings: object) -> None:
        raise StageFailed("no memory")

    monkeypatch.setattr(live, "Fleet", fails)
    engine = LiveEngine()
    for _ in range(2):
        with pytest.raises(StageFailed, match="no memory"):
            engine_for(engine, checkpoint(store, 0))
