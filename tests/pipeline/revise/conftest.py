"""Sums as the tiny model answers them, to be corrected."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipeline.config.revise import ReviseConfig
from pipeline.config.run import RunConfig
from pipeline.revise.order import revise_order
from pipeline.revise.stage import revise
from pipeline.run.process import Reporter
from pipeline.sources.tokenizer import load_tokenizer
from pipeline.store import Artifact, Request, Store, Work
from pipeline.store.store import load_artifact
from schemas import Prompts, Rollouts

BASE = Path(__file__).parents[3] / "data" / "base"
PATTERN = r"A:(-?[0-9]+)$"
SUMS = {"p0": ("18+40-2", "56"), "p1": ("7+5", "12"), "p2": ("9-9", "0"), "p3": ("2+2", "4")}
COMPLETIONS = {
    "p0": [(" A:53", 0.0), (" A:56", 1.0)],
    "p1": [(" 7+5=12 A:11", 0.0), (" A:12", 1.0)],
    "p2": [(" A:0", 1.0), (" A:7", 0.0)],
    "p3": [(" four", 0.0), (" A:4", 1.0)],
}


@pytest.fixture
def policy(store: Store) -> Artifact:
    """The tiny model as a checkpoint, without its weights."""
    with store.work(Request("checkpoint", "import/1", {"iteration": 0})) as work:
        assert isinstance(work, Work)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(BASE / name, work.path / name)
        return work.finish({"iteration": 0})


@pytest.fixture
def prompts(store: Store) -> Artifact:
    rows = [
        {"prompt_id": name, "question": question, "answer": answer, "prompt_text": f"Q:{question}=", "metadata": '{"level": 2}'}
        for name, (question, answer) in SUMS.items()
    ]
    with store.work(Request("prompts", "prompts/2", {})) as work:
        assert isinstance(work, Work)
        work.write_table("prompts.parquet", pl.DataFrame(rows), Prompts)
        return work.finish({"prompts": len(rows)})


@pytest.fixture
def rollouts(store: Store, policy: Artifact, prompts: Artifact) -> Artifact:
    """Two files of two groups of two completions. All end with the end-of-sequence token."""
    tokenizer = load_tokenizer(policy.path, trust_remote_code=False)
    request = Request("rollouts", "generate/1", {"samples": 2}, (policy.as_parent("policy"), prompts.as_parent("prompts")))

    def row(name: str, sample: int) -> dict[str, Any]:
        question, answer = SUMS[name]
        text, reward = COMPLETIONS[name][sample]
        tokens = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        return {
            **dict.fromkeys(Rollouts.columns()),
            "group_id": f"{name}@{request.key[:8]}",
            "sample_index": sample,
            "prompt_id": name,
            "prompt_token_ids": tokenizer.encode(f"Q:{question}=", add_special_tokens=False),
            "completion_token_ids": tokens,
            "behavior_logprobs": [-0.5] * len(tokens),
            "prompt_text": f"Q:{question}=",
            "completion_text": text,
            "answer": answer,
            "finish_reason": "stop",
            "reward": reward,
            "policy_id": policy.id,
            "policy_version": 0,
            "source": "self",
            "seed": 7,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "logprobs_mode": "processed_logprobs",
            "engine": "by hand",
            "status": "ok",
        }

    types = {name: column.dtype for name, column in Rollouts.columns().items()}
    with store.work(request) as work:
        assert isinstance(work, Work)
        names = list(SUMS)
        for number in range(2):
            rows = [row(name, sample) for name in names[2 * number : 2 * number + 2] for sample in range(2)]
            work.write_table(f"part-{number:05d}.parquet", pl.DataFrame(rows, schema=types), Rollouts)
        return work.finish({"groups": 4, "completions": 8})


class Revising:
    """Runs the stage in this process and keeps what it reports."""

    def __init__(self, config: Callable[..., RunConfig], parents: tuple[Artifact, ...], store: Store, place: Path) -> None:
        self._config, self._parents, self._store, self._place = config, parents, store, place
        self.said = ""

    def spec(self, **settings: Any) -> dict[str, Any]:
        reviser = settings.pop("reviser", None)
        config = self._config({"revise": ReviseConfig.model_validate(settings).model_dump(mode="json")})
        policy, prompts, rollouts = self._parents
        order = revise_order(config, 0, policy, prompts, rollouts, reviser)
        told = {name: value for name, value in order.spec().items() if name != "jobs"}
        (job,) = order.spec()["jobs"]
        return {"store": str(self._store.root), **told, **job}

    def __call__(self, into: Store | None = None, **settings: Any) -> Artifact:
        log = self._place / "events.jsonl"
        spec = self.spec(**settings) | ({"store": str(into.root)} if into else {})
        reporter = Reporter(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        try:
            return load_artifact(revise(spec, reporter)["artifact"])
        finally:
            self.said = log.read_text(encoding="utf-8")


@pytest.fixture
def revising(
    make_config: Callable[..., RunConfig], policy: Artifact, prompts: Artifact, rollouts: Artifact, store: Store, tmp_path: Path
) -> Revising:
    """revising(pattern="A:(.*)"): the revisions of the rollouts by such a config; `reviser`: a judge model."""
    return Revising(make_config, (policy, prompts, rollouts), store, tmp_path)
