"""A run that stopped because its grader failed is not generated again with the mended one: its shards are graded."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.common.errors import DataError, StageFailed, UserError
from pipeline.config.run import RunConfig
from pipeline.generate.engine import CompletionRequest, Reply
from pipeline.generate.order import rollouts_request
from pipeline.generate.shards import Shard
from pipeline.generate.stage import generate
from pipeline.run.process import Reporter
from pipeline.sources import models as base_model
from pipeline.sources.order import import_request
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import load_artifact
from schemas import Prompts

BASE = Path(__file__).resolve().parents[3] / "data" / "base"
PROMPTS, SAMPLES = 4, 2


class BySeed:
    """Draws an answer from the seed alone, as a seeded engine does, and counts what it was asked."""

    name = "by seed"
    tokens: list[int] = []

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.asked = 0

    def engine_for(self, *_: Any, **__: Any) -> BySeed:
        return self

    def rest(self) -> None: ...

    def wake(self) -> None: ...

    def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[list[Reply]]:
        for ask in itertools.chain.from_iterable(asks):
            self.asked += 1
            tokens = [2 + ask.seed % 7, 3 + ask.seed % 5]
            yield [Reply(ask.key, tokens, [-0.5, -0.25], "stop", None, None)]


class Project:
    """A model and prompts in a store, and the rollouts of iteration 0."""

    def __init__(self, root: Path, config: RunConfig) -> None:
        self.store, self.config = Store(root), config
        files = base_model.model_files(BASE)
        self.policy = base_model.import_model(self.store, import_request({"all": "1"}), files, "here", None)
        rows = [{"prompt_id": f"p{n}", "question": f"{n}+1", "answer": "1", "prompt_text": f"Q:{n}+1="} for n in range(PROMPTS)]
        with self.store.work(Request("prompts", "prompts/1", {"chat": False})) as work:
            assert isinstance(work, Work)
            work.write_table("prompts.parquet", pl.DataFrame(rows).with_columns(metadata=pl.lit(None, pl.String)), Prompts)
            self.prompts = work.finish({"prompts": PROMPTS})

    def generate(self, engine: Any, components: Sequence[dict[str, Any]]) -> Artifact:
        reward = self.config.reward.model_validate({"components": components})
        config = self.config.model_copy(update={"reward": reward})
        request = rollouts_request(config, 0, self.policy, self.prompts)
        spec = {
            "store": str(self.store.root),
            "policy": str(self.policy.path),
            "trust_remote_code": False,
            "engine": config.engine.model_dump(mode="json"),
            "reward": reward.model_dump(mode="json"),
            "jobs": [{"request": request.to_json(), "prompts": str(self.prompts.path)}],
        }
        return load_artifact(generate(spec, Reporter(os.open(os.devnull, os.O_WRONLY)), engine)["artifacts"][0])


def test_a_mended_grader_grades_what_is_there(make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config({"generate.prompts": PROMPTS, "generate.samples": SAMPLES, "generate.shard_groups": 1})
    labels = tmp_path / "labels.jsonl"
    labels.write_text('{"prompt_id": "none", "sample_index": 0, "reward": 1}\n', encoding="utf-8")
    project, engine = Project(tmp_path / "store", config), BySeed()
    with pytest.raises(UserError, match=r"rewards failed, more than reward.max_failed_share"):
        project.generate(engine, [{"grader": "from_file", "args": {"path": str(labels)}}])
    written = len(list((tmp_path / "store").glob("rollouts/*/part-*.parquet")))
    assert written >= 1
    before = engine.asked
    mended = [{"grader": "exact_match"}]
    made = project.generate(engine, mended)
    assert engine.asked - before == (PROMPTS - written) * SAMPLES
    direct = Project(tmp_path / "other", config).generate(BySeed(), mended)
    assert made.id == direct.id
    assert not (made.path / ".resume").exists()


def test_an_engine_that_answers_nothing_makes_no_artifact(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is overloaded refuses one request after the other. Later it is asked again."""
    monkeypatch.chdir(tmp_path)
    config = make_config({"generate.prompts": PROMPTS, "generate.samples": SAMPLES, "generate.shard_groups": 1})
    project, graders = Project(tmp_path / "store", config), [{"grader": "exact_match"}]

    class Overloaded(BySeed):
        def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[list[Reply]]:
            for ask in itertools.chain.from_iterable(asks):
                yield [Reply(ask.key, [], [], None, None, "status 503: too busy")]

    with pytest.raises(StageFailed, match=r"the engine failed on all 8 completions. One of the errors: status 503: too busy"):
        project.generate(Overloaded(), graders)
    engine = BySeed()
    made = project.generate(engine, graders)
    assert engine.asked == PROMPTS * SAMPLES and made.summary["statuses"] == {"ok": PROMPTS * SAMPLES}


def test_prompts_that_a_grader_cannot_score_are_refused_before_the_engine_is_asked(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    project, engine = Project(tmp_path / "store", make_config({"generate.prompts": PROMPTS})), BySeed()
    with pytest.raises(
        DataError, match=r"prompts/\w+: reward\.components\.0 \(reasoning_gym\): prompts that reasoning_gym cannot"
    ):
        project.generate(engine, [{"grader": "reasoning_gym"}])
    assert engine.asked == 0 and not list((tmp_path / "store").glob("rollouts/*/part-*.parquet"))


SLOW = """
import time

def slow(completion, answer, prompt):
    time.sleep(0.05)
    return 1.0
"""


def test_completions_do_not_pile_up_before_a_slow_grader(
    make_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine waits, and so do the completions of an earlier attempt, whose files hold them until they are graded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pipeline.generate.writer.MOST_UNGRADED", 1)
    (tmp_path / "slow_grader.py").write_text(SLOW, encoding="utf-8")
    config = make_config({"generate.prompts": PROMPTS, "generate.samples": SAMPLES, "generate.shard_groups": 1})
    project, held, most = Project(tmp_path / "store", config), set[int](), [0]
    take, write = Shard.add, Shard.frame

    def add(shard: Shard, *given: Any) -> None:
        held.add(id(shard))
        most[-1] = max(most[-1], len(held))
        take(shard, *given)

    def frame(shard: Shard, *given: Any) -> pl.DataFrame:
        held.discard(id(shard))
        return write(shard, *given)

    class Dying(BySeed):
        def run(self, asks: Iterator[Sequence[CompletionRequest]], in_flight: int) -> Iterator[list[Reply]]:
            yield from super().run(itertools.islice(asks, PROMPTS - 1), in_flight)
            while len(list((tmp_path / "store").glob("rollouts/*/part-*.parquet"))) < PROMPTS - 1:
                yield []
            raise StageFailed("the engine died")

    monkeypatch.setattr(Shard, "add", add)
    monkeypatch.setattr(Shard, "frame", frame)
    with pytest.raises(StageFailed):
        project.generate(Dying(), [{"grader": "slow_grader:slow"}])
    held.clear()
    most.append(0)
    project.generate(BySeed(), [{"grader": "slow_grader:slow", "weight": 2.0}])
    assert most == [2, 2]
